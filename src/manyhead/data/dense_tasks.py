"""Dense tasks derived from labelled grey images: what is at each pixel, how bright, which way, an edge?

The labels are computed from the clean image; the input is spoilt by noise and a hole, so that no task is
solved by copying. They stand in for segmentation, depth, normals and boundaries of scenes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, normalize

from manyhead.errors import InputError


@dataclass(frozen=True)
class Scenes:
    """Spoilt images and the targets derived from the clean ones, a data set that `fit` takes.

    Args:
        image: `(n, 1, height, width)` with noise and a hole.
        kind: `(n, height, width)` class of the pixel; `background` outside of the object.
        clean: `(n, 1, height, width)` intensity in 0 to 1.
        direction: `(n, 2, height, width)` unit gradient (right, down) of intensity; 0 where there is none.
        edge: `(n, 1, height, width)` 1 where the gradient is strong.
        background: number of the class of the background, one more than the last class.
    """

    image: Tensor
    kind: Tensor
    clean: Tensor
    direction: Tensor
    edge: Tensor
    background: int

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Image, kind, clean, direction and edge of some scenes."""
        return self.image[rows], self.kind[rows], self.clean[rows], self.direction[rows], self.edge[rows]

    def split(self, count: int) -> tuple["Scenes", "Scenes"]:
        """The first `count` scenes, and the others."""
        image, kind, clean, direction, edge = self.batch(torch.arange(len(self)))
        front, back = slice(count), slice(count, None)
        return (
            Scenes(image[front], kind[front], clean[front], direction[front], edge[front], self.background),
            Scenes(image[back], kind[back], clean[back], direction[back], edge[back], self.background),
        )


def dense_tasks(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int = 10,
    noise: float = 0.3,
    hole: int = 8,
    foreground: float = 0.1,
    strong: float = 0.5,
    seed: int = 0,
) -> Scenes:
    """Derive four dense tasks from images of one object on black.

    Args:
        images: `(n, height, width)` or `(n, 1, height, width)`, bytes or numbers in 0 to 1.
        labels: integers `(n,)`, the object's class.
        classes: number of classes; the background is one more.
        noise: standard deviation of the Gaussian noise of the input.
        hole: side of a square of zeros at a random place of the input; 0 for none.
        foreground: pixels brighter than this belong to the object.
        strong: length of the Sobel gradient (a step of 1 has one of 1) above which there is an edge.
        seed: of noise and holes.

    Raises:
        InputError: if shapes do not fit or the hole is larger than the image.
    """
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3 or len(images) != len(labels):
        raise InputError(
            "images must be grey, (n, height, width), with n labels; got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    height, width = images.shape[1:]
    if not 0 <= hole <= min(height, width) or noise < 0:
        raise InputError(
            f"hole must be from 0 to the {min(height, width)} pixels of the image and noise not negative, "
            f"got {hole} and {noise}"
        )
    generator = torch.Generator().manual_seed(seed)
    clean = (images if images.is_floating_point() else images.float() / 255)[:, None]
    kind = torch.where(clean[:, 0] > foreground, labels.long()[:, None, None], classes)
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=clean.dtype) / 4
    gradient = conv2d(clean, torch.stack([sobel, sobel.T])[:, None], padding=1)
    edge = (gradient.norm(dim=1, keepdim=True) > strong).to(clean.dtype)
    image = clean + noise * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    top = torch.randint(height - hole + 1, (len(clean), 1), generator=generator)
    left = torch.randint(width - hole + 1, (len(clean), 1), generator=generator)
    down, right = torch.arange(height), torch.arange(width)
    rows, columns = (down >= top) & (down < top + hole), (right >= left) & (right < left + hole)
    image = image.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0.0)
    return Scenes(image, kind, clean, normalize(gradient, dim=1), edge, classes)
