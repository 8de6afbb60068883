"""Composites of real images with several labels: one to three objects in the quarters of a canvas."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manyhead.data.stream import has_any
from manyhead.errors import InputError


@dataclass(frozen=True)
class Canvases:
    """Images and multi-hot labels, a data set that `fit` takes.

    Args:
        image: `(n, channels, 2 * side, 2 * side)`.
        target: `(n, classes)` of zeros and ones.
    """

    image: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch."""
        return self.image[indices], self.target[indices]

    def with_any(self, classes: Sequence[int]) -> "Canvases":
        """Canvases that hold one of the classes."""
        rows = has_any(self.target, classes)
        return Canvases(self.image[rows], self.target[rows])


def compose(objects: Tensor, labels: Tensor, count: int, seed: int, classes: int = 10) -> Canvases:
    """Put one to three objects into the four quarters of each canvas.

    Args:
        objects: `(n, channels, side, side)`.
        labels: `(n,)` classes.
        count: canvases to make.
        seed: of the choice of objects and places.
        classes: number of classes.

    Raises:
        InputError: if the shapes do not fit or a label is out of range.
    """
    if objects.ndim != 4 or objects.shape[2] != objects.shape[3] or len(objects) != len(labels):
        raise InputError(
            "objects must be (n, channels, side, side) with n labels, got "
            f"{tuple(objects.shape)} and {tuple(labels.shape)}"
        )
    if len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"labels must be from 0 to {classes - 1}, one at least")
    channels, side = objects.shape[1], objects.shape[2]
    generator = torch.Generator().manual_seed(seed)
    image, target = torch.zeros(count, channels, 2 * side, 2 * side), torch.zeros(count, classes)
    number = torch.randint(1, 4, (count,), generator=generator)
    chosen = torch.randint(len(objects), (count, 3), generator=generator)
    places = torch.rand(count, 4, generator=generator).argsort(1)
    for slot in range(3):
        rows = (number > slot).nonzero().flatten()
        for place in range(4):
            here = rows[places[rows, slot] == place]
            top, left = side * (place // 2), side * (place % 2)
            image[here, :, top : top + side, left : left + side] = objects[chosen[here, slot]]
            target[here, labels[chosen[here, slot]]] = 1
    return Canvases(image, target)
