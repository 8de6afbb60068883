"""Geometry of token grids: what one axis sees, and how tokens are cut into tiles, blocks and halos.

A grid is the tuple of its sizes, such as `(height, width)`. Tokens stand in row-major order, so token
`(i, j)` of a `(H, W)` grid has the flat index `i * W + j`. Every function takes grids of any size;
where a size does not divide, it pads and the inverse crops.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead.errors import InputError

Grid = tuple[int, ...]
Table = NDArray[np.int64]
T = TypeVar("T")


def as_grid(grid: int | Sequence[int], name: str = "grid") -> Grid:
    """Return a grid as a tuple of its sizes.

    Raises:
        InputError: if it has no axis, or a size is not a whole number above zero.
    """
    sizes = tuple(grid) if isinstance(grid, Sequence) and not isinstance(grid, str) else (grid,)
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise InputError(f"{name} takes one or more sizes above zero, such as 64 or (32, 32); got {grid!r}")
    return sizes


def per_axis(value: T | Sequence[T], axes: int, name: str) -> tuple[T, ...]:
    """Give every axis its value: one value goes to all, a sequence must have one per axis.

    Raises:
        InputError: if a sequence has another length than the grid has axes.
    """
    if not isinstance(value, tuple | list):
        return (value,) * axes  # type: ignore[return-value]
    if len(value) != axes:
        raise InputError(f"{name} has {len(value)} values {tuple(value)} for a grid of {axes} axes")
    return tuple(value)


def coordinates(flat: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """Coordinates of flat row-major indices, one tensor per axis, each of the shape of `flat`."""
    axes = []
    for size in reversed(grid[1:]):
        axes.append(flat % size)
        flat = flat // size
    return (flat, *reversed(axes))


def token_coordinates(grid: Grid, device: torch.device | None = None) -> tuple[Tensor, ...]:
    """Coordinates of all tokens in row-major order, one `(tokens,)` tensor per axis."""
    return coordinates(torch.arange(math.prod(grid), device=device), grid)


@dataclass(frozen=True, eq=False)
class Reach:
    """The keys that each query of one axis sees: an arithmetic progression.

    Query `x` sees keys `start[x] + j * step` for `0 <= j < count[x]`, taken modulo `keys` if `wrap`.
    The residue class modulo `step` of every key is that of its query, so that the axis falls apart
    into `step` independent groups.

    Args:
        start: first key of every query, `(queries,)`.
        count: number of keys of every query, `(queries,)`, zero where it sees none.
        step: distance between neighbouring keys.
        keys: number of keys on the axis.
        wrap: whether the axis is a ring.
    """

    start: Table
    count: Table
    step: int
    keys: int
    wrap: bool = False

    @staticmethod
    def whole(queries: int, keys: int) -> "Reach":
        """Every query sees every key."""
        return Reach(np.zeros(queries, np.int64), np.full(queries, keys, np.int64), 1, keys)

    @property
    def queries(self) -> int:
        return len(self.start)

    @property
    def pairs(self) -> int:
        """Number of query-key pairs of the axis."""
        return int(self.count.sum())

    @property
    def is_whole(self) -> bool:
        return bool((self.count == self.keys).all())

    def matrix(self) -> NDArray[np.bool_]:
        """The dense `(queries, keys)` mask, for small axes."""
        offset = np.arange(self.keys)[None] - self.start[:, None]
        if self.wrap:
            offset %= self.keys
        inside = (offset >= 0) & (offset < self.count[:, None] * self.step)
        return np.asarray(inside & (offset % self.step == 0))

    def intersect(self, other: "Reach") -> "Reach | None":
        """Keys in both, or None where that is no progression (rings, two different steps)."""
        if self.is_whole:
            return other
        if other.is_whole:
            return self
        if self.wrap or other.wrap:
            return None
        coarse, fine = (self, other) if self.step >= other.step else (other, self)
        if fine.step not in (1, coarse.step):
            return None
        step = coarse.step
        coarse_end = coarse.start + coarse.count * step
        fine_end = fine.start + (fine.count - 1) * fine.step + 1
        low = np.maximum(coarse.start, fine.start)
        low += (coarse.start - low) % step  # the first member of the coarse class at or above
        high = np.minimum(coarse_end, np.where(fine.count > 0, fine_end, 0))
        count = np.maximum(0, -((low - high) // step))
        empty = (count == 0) | (coarse.count == 0) | (fine.count == 0)
        return Reach(np.where(empty, coarse.start, low), np.where(empty, 0, count), step, self.keys)


def pad_to_multiple(x: Tensor, sizes: Sequence[int], first: int = 1) -> Tensor:
    """Zero-pad the grid axes of `x` at their ends to multiples of `sizes`.

    Args:
        x: tensor whose grid axes begin at axis `first`.
        sizes: one block size per grid axis.
        first: index of the first grid axis.
    """
    missing = [-x.shape[first + axis] % size for axis, size in enumerate(sizes)]
    if not any(missing):
        return x
    behind = x.ndim - first - len(sizes)
    widths = [0] * (2 * behind) + [width for gap in reversed(missing) for width in (0, gap)]
    return torch.nn.functional.pad(x, widths)


def crop(x: Tensor, grid: Sequence[int], first: int = 1) -> Tensor:
    """Cut the grid axes of `x` back to `grid`, the inverse of padding at the ends."""
    for axis, size in enumerate(grid):
        x = x.narrow(first + axis, 0, size)
    return x


def _interleave(x: Tensor, sizes: Sequence[int], *, inner_first: bool) -> Tensor:
    """Split axis i into (count_i, size_i) and bring the axes of one kind in front of the other's."""
    axes = len(sizes)
    split: list[int] = []
    for axis, size in enumerate(sizes):
        split += [x.shape[1 + axis] // size, size]
    x = x.reshape(x.shape[0], *split, *x.shape[1 + axes :])
    outer, inner = [1 + 2 * axis for axis in range(axes)], [2 + 2 * axis for axis in range(axes)]
    order = [0, *inner, *outer] if inner_first else [0, *outer, *inner]
    return x.permute(*order, *range(1 + 2 * axes, x.ndim))


def _restore(x: Tensor, axes: int, *, inner_first: bool) -> Tensor:
    """Undo `_interleave`."""
    order = [0]
    for axis in range(axes):
        order += [1 + axes + axis, 1 + axis] if inner_first else [1 + axis, 1 + axes + axis]
    x = x.permute(*order, *range(1 + 2 * axes, x.ndim))
    merged = [x.shape[1 + 2 * axis] * x.shape[2 + 2 * axis] for axis in range(axes)]
    return x.reshape(x.shape[0], *merged, *x.shape[1 + 2 * axes :])


def to_blocks(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cut `(batch, *grid, ...)` into blocks of neighbouring tokens, padding each axis at its end.

    Token `(i, j)` goes to block `(i // P, j // P)` at place `(i % P, j % P)`.

    Returns:
        `(batch, *blocks, *sizes, ...)`.
    """
    return _interleave(pad_to_multiple(x, sizes), sizes, inner_first=False)


def from_blocks(blocks: Tensor, grid: Sequence[int]) -> Tensor:
    """Put blocks `(batch, *blocks, *sizes, ...)` back together and crop to `grid`."""
    return crop(_restore(blocks, len(grid), inner_first=False), grid)


def to_lattices(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cut `(batch, *grid, ...)` into lattices of `sizes` tokens that each span the whole grid.

    With `H` rows and `G` lattice rows, token row `i` goes to lattice `i % (H / G)`, place
    `i // (H / G)`: the grid partition of MaxViT (arXiv 2204.01697).

    Returns:
        `(batch, *lattices, *sizes, ...)`.

    Raises:
        InputError: if an axis is not a multiple of its lattice size.
    """
    for axis, size in enumerate(sizes):
        if x.shape[1 + axis] % size:
            raise InputError(
                f"a grid partition into {size} needs a multiple of it on axis {axis}, got {x.shape[1 + axis]}"
            )
    steps = [x.shape[1 + axis] // size for axis, size in enumerate(sizes)]
    return _interleave(x, steps, inner_first=True)


def from_lattices(lattices: Tensor, grid: Sequence[int]) -> Tensor:
    """Put lattices `(batch, *lattices, *sizes, ...)` back into `(batch, *grid, ...)`."""
    return crop(_restore(lattices, len(grid), inner_first=True), grid)


def to_residues(x: Tensor, steps: Sequence[int]) -> Tensor:
    """Split every axis into the residue classes modulo its step, padding at the end.

    Args:
        x: `(batch, *grid, ...)`.
        steps: one step (dilation) per axis.

    Returns:
        `(batch, *steps, *lengths, ...)` with `lengths = ceil(grid / steps)`.
    """
    return _interleave(pad_to_multiple(x, steps), steps, inner_first=True)


def from_residues(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Undo `to_residues` and crop to `grid`."""
    return crop(_restore(x, len(grid), inner_first=True), grid)


def to_halos(x: Tensor, sizes: Sequence[int], halos: Sequence[int]) -> Tensor:
    """Cut `(batch, *grid, ...)` into overlapping windows: each block with a halo around it.

    Args:
        x: tokens whose grid is a multiple of `sizes`.
        sizes: block size per axis.
        halos: how far the window reaches beyond its block, per axis; zeros stand outside the grid.

    Returns:
        `(batch, *blocks, *windows, ...)` with `windows = sizes + 2 * halos`.
    """
    axes = len(sizes)
    behind = x.ndim - 1 - axes
    widths = [0] * (2 * behind) + [width for halo in reversed(halos) for width in (halo, halo)]
    x = torch.nn.functional.pad(x, widths)
    for axis, (size, halo) in enumerate(zip(sizes, halos, strict=True)):
        x = x.unfold(1 + axis, size + 2 * halo, size)  # the window axis goes to the end
    first_window = x.ndim - axes
    order = [*range(1 + axes), *range(first_window, x.ndim), *range(1 + axes, first_window)]
    return x.permute(*order)


class _GatherHalos(torch.autograd.Function):
    """`to_halos` copied once; its adjoint adds pieces no wider than a block, which never overlap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[int], halos: Sequence[int]) -> Tensor:
        ctx.shape, ctx.sizes, ctx.halos = x.shape, sizes, halos
        return to_halos(x, sizes, halos).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        axes, sizes, halos = len(ctx.sizes), ctx.sizes, ctx.halos
        grid = ctx.shape[1 : 1 + axes]
        reach = [-(-(size + 2 * halo) // size) for size, halo in zip(sizes, halos, strict=True)]
        # a frame of whole blocks: window `b` begins at place `b * size` of it
        frame = [tokens + (parts - 1) * size for tokens, parts, size in zip(grid, reach, sizes, strict=True)]
        total = gradient.new_zeros(ctx.shape[0], *frame, *ctx.shape[1 + axes :])
        for part in itertools.product(*(range(count) for count in reach)):
            source, target = gradient, total
            for axis, (number, size, halo) in enumerate(zip(part, sizes, halos, strict=True)):
                width = min(size, size + 2 * halo - number * size)
                source = source.narrow(1 + axes + axis, number * size, width)
                blocks = grid[axis] // size
                target = target.narrow(1 + 2 * axis, number * size, blocks * size)
                target = target.unflatten(1 + 2 * axis, (blocks, size)).narrow(2 + 2 * axis, 0, width)
            order = [0, *range(1, 1 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2)]
            target.permute(*order, *range(1 + 2 * axes, target.ndim)).add_(source)
        for axis, halo in enumerate(halos):
            total = total.narrow(1 + axis, halo, grid[axis])
        return total, None, None


def gather_halos(x: Tensor, sizes: Sequence[int], halos: Sequence[int]) -> Tensor:
    """`to_halos` as one copy whose backward pass is a few large additions.

    Args:
        x: as in `to_halos`.
        sizes: as there.
        halos: as there.
    """
    gathered: Tensor = _GatherHalos.apply(x, tuple(sizes), tuple(halos))  # type: ignore[no-untyped-call]
    return gathered
