"""MultiMNIST: two digits on one canvas, each digit a task.

Sabour, Frosst, Hinton, 'Dynamic Routing Between Capsules', 2017, arXiv 1710.09829, as Sener and Koltun,
2018, arXiv 1810.04650, use it for many tasks: one image in the upper left corner, one in the lower right,
joined by the larger value of each pixel. Any set of square grey images will do (Fashion-MNIST gives
MultiFashion).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from manyhead.errors import InputError


@dataclass(frozen=True)
class Pairs:
    """Canvases of two images, a data set that `fit` and `MultiTask` take.

    Args:
        inputs: `(n, 1, side, side)`, in 0 to 1.
        targets: task name -> integer labels `(n,)`.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> dict[str, object]:
        """Inputs and targets of some canvases."""
        return {
            "inputs": self.inputs[indices],
            "targets": {name: labels[indices] for name, labels in self.targets.items()},
        }


def pair_images(images: Tensor, labels: Tensor, count: int, seed: int = 0, canvas: int = 36) -> Pairs:
    """Lay two images, drawn at random, on one canvas.

    Args:
        images: `(m, side, side)` or `(m, 1, side, side)`, bytes or numbers in 0 to 1.
        labels: integers `(m,)`.
        count: how many canvases.
        seed: of the draw.
        canvas: side of the canvas; the second image ends at its lower right corner.

    Returns:
        canvases with the tasks 'first' (upper left) and 'second'.

    Raises:
        InputError: if the shapes do not fit together or the canvas is smaller than an image.
    """
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3 or images.shape[1] != images.shape[2] or len(images) != len(labels):
        raise InputError(
            "images must be square and grey, (m, side, side), with m labels; got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    side = images.shape[1]
    if canvas < side:
        raise InputError(f"canvas must be at least the side of an image, {side}, got {canvas}")
    if count < 1 or len(images) < 1:
        raise InputError(f"count must be at least 1 and there must be images, got {count} of {len(images)}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(images), (2, count), generator=generator)
    values = images if images.is_floating_point() else images.float() / 255
    joined = values.new_zeros(count, 1, canvas, canvas)
    joined[:, 0, :side, :side] = values[drawn[0]]
    corner = joined[:, 0, canvas - side :, canvas - side :]
    torch.maximum(corner, values[drawn[1]], out=corner)
    first, second = labels[drawn].long()
    return Pairs(joined, {"first": first, "second": second})


def multi_mnist(train: int, validation: int, test: int, seed: int = 0) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test canvases of the data set 'mnist_10k'; no digit is in two of them.

    Args:
        train, validation, test: how many canvases of each; six tenths of the digits are for training, one
            tenth for validation, three tenths for the test.
        seed: of the split and of the pairs.
    """
    from manyhead.data.locate import load

    digits = load("mnist_10k")
    images, labels = torch.from_numpy(digits["image"]), torch.from_numpy(digits["label"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    cuts = [0, 6 * len(order) // 10, 7 * len(order) // 10, len(order)]
    parts = [order[start:stop] for start, stop in pairwise(cuts)]
    made = [
        pair_images(images[rows], labels[rows], count, seed=3 * seed + number)
        for number, (rows, count) in enumerate(zip(parts, (train, validation, test), strict=True))
    ]
    return made[0], made[1], made[2]
