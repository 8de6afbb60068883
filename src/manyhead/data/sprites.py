"""Rendered sprites whose shape, scale, orientation and position are known: many tasks on one image.

After dSprites (Matthey et al., 2017), drawn here by NumPy alone: every factor is uniform and independent of
the others. A pixel holds the share of it that the sprite covers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError

if TYPE_CHECKING:
    from manyhead.data.multi_mnist import Pairs

SHAPES = ("square", "ellipse", "heart")
SMALLEST = 0.5  # scale of the smallest sprite over that of the largest
RADIUS = 0.22  # of the largest sprite, over the side of the image
ROWS = 256  # images drawn at once

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Sprites:
    """Images of one sprite each, and what was drawn.

    Args:
        image: float32 `(n, 1, side, side)`, 0 to 1 before noise.
        labels: factor -> int64 `(n,)`: 'shape', 'scale', 'orientation', 'x', 'y'.
        classes: factor -> number of its values.
    """

    image: Floats
    labels: Mapping[str, Integers]
    classes: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.image)

    def tasks(self, *names: str) -> "Pairs":
        """The images as a data set for `fit`, with some factors (all if none is named) as tasks.

        Raises:
            InputError: if there is no such factor.
        """
        import torch

        from manyhead.data.multi_mnist import Pairs

        for name in names:
            if name not in self.labels:
                raise InputError(f"there is no factor {name!r}; the factors are {', '.join(self.labels)}")
        chosen = names or tuple(self.labels)
        return Pairs(
            torch.from_numpy(self.image), {name: torch.from_numpy(self.labels[name]) for name in chosen}
        )


def sprites(
    count: int,
    seed: int = 0,
    *,
    side: int = 64,
    scales: int = 6,
    orientations: int = 40,
    positions: int = 32,
    turn: float = 2 * np.pi,
    noise: float = 0.0,
    oversample: int = 2,
) -> Sprites:
    """Draw sprites with every factor at random.

    Args:
        count: number of images.
        seed: of factors and noise.
        side: height and width of an image.
        scales: how many sizes, evenly from half to the whole of the largest.
        orientations: how many angles, evenly from 0 on.
        positions: how many places along each axis, so that every sprite lies within the image.
        turn: the angles span this many radians. A square looks alike after a quarter and an ellipse after
            half of a whole turn, so that with `2 pi` (as in dSprites) their orientation cannot be told for
            certain; with `pi / 2` every sprite's can.
        noise: standard deviation of Gaussian noise added to each pixel.
        oversample: points along each axis of a pixel at which the shape is looked up.

    Raises:
        InputError: if a number is out of range.
    """
    whole = {"count": count, "side": side, "scales": scales, "orientations": orientations}
    whole |= {"positions": positions, "oversample": oversample}
    for name, value in whole.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not noise >= 0 or not 0 < turn < float("inf"):
        raise InputError(f"noise must not be negative and turn must be above zero, got {noise} and {turn}")
    random = np.random.default_rng(seed)
    classes = {"shape": len(SHAPES), "scale": scales, "orientation": orientations}
    classes |= {"x": positions, "y": positions}
    labels = {name: random.integers(number, size=count) for name, number in classes.items()}
    image = draw(
        labels["shape"],
        SMALLEST + (1 - SMALLEST) * _even(labels["scale"], scales, last=1.0),
        labels["orientation"] * np.float64(turn / orientations),
        _even(labels["x"], positions),
        _even(labels["y"], positions),
        side=side,
        oversample=oversample,
    )[:, None]
    if noise:
        image += noise * random.standard_normal(image.shape, dtype=np.float32)
    return Sprites(image, labels, classes)


def _even(values: Integers, number: int, last: float = 0.5) -> NDArray[np.float64]:
    """Numbers 0 .. number - 1 as 0 .. 1; a single one is `last`."""
    return values / (number - 1) if number > 1 else np.full(len(values), last)


def draw(
    shape: Integers,
    scale: NDArray[np.float64],
    angle: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    side: int,
    oversample: int = 2,
) -> Floats:
    """Draw one sprite an image.

    Args:
        shape: `(n,)` indices into SHAPES.
        scale: `(n,)`, 1 for the largest sprite.
        angle: `(n,)` in radians, counter-clockwise.
        x, y: `(n,)` in 0 to 1, from the left and the top; at the ends the largest sprite touches the border.
        side: height and width.
        oversample: as in `sprites`.

    Returns:
        shares of pixels covered, float32 `(n, side, side)`.
    """
    fine = side * oversample
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    image = np.empty((len(shape), side, side), np.float32)
    for start in range(0, len(shape), ROWS):
        rows = slice(start, start + ROWS)

        def column(values: NDArray[np.float64], rows: slice = rows) -> Floats:
            return values[rows, None, None].astype(np.float32)

        right = axis[None, None, :] - (RADIUS + (1 - 2 * RADIUS) * column(x))
        up = (RADIUS + (1 - 2 * RADIUS) * column(y)) - axis[None, :, None]
        size, cosine, sine = RADIUS * column(scale), np.cos(column(angle)), np.sin(column(angle))
        # the image's axes in those of the sprite, whose farthest point has a distance of 1
        u, v = (right * cosine + up * sine) / size, (up * cosine - right * sine) / size
        covered = np.empty(u.shape, bool)
        for number, name in enumerate(SHAPES):
            mine = shape[rows] == number
            covered[mine] = inside(name, u[mine], v[mine])
        parts = covered.reshape(-1, side, oversample, side, oversample)
        image[rows] = parts.mean((2, 4), dtype=np.float32)
    return image


def inside(name: str, u: Floats, v: Floats) -> NDArray[np.bool_]:
    """Which points lie in a shape of radius 1 about the origin."""
    if name == "square":
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) < 0.5**0.5)
    if name == "ellipse":
        return np.asarray(u**2 + (v / 0.6) ** 2 < 1)
    u, v = 1.25 * u, 1.25 * v + 0.1
    square = u**2
    return np.asarray((square + v**2 - 1) ** 3 < square * v**3)
