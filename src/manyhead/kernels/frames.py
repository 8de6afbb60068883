"""Moving tokens between their own layout and the tiles of a tiling, by views and few large copies.

A *frame* holds the tokens of a few heads, `(rows, classes, groups, *lengths, channels)` for queries and
`(rows, classes, *lengths, channels)` for keys, padded so that every tile is a plain slice of it. Rows
are pairs of sample and key head, groups the query heads that share a key head, classes the residue
classes of a dilated pattern.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from manyhead.grid import Grid, crop, from_residues, pad_to_multiple, to_residues
from manyhead.kernels.tiles import AxisTiles, Tiling


@dataclass(frozen=True)
class Layout:
    """Sizes of one call."""

    batch: int
    key_heads: int
    groups: int
    query_grid: Grid
    key_grid: Grid


@dataclass(frozen=True)
class Rows:
    """The samples and key heads that are computed together."""

    samples: slice
    heads: slice

    @property
    def number(self) -> int:
        samples: int = self.samples.stop - self.samples.start
        heads: int = self.heads.stop - self.heads.start
        return samples * heads


@dataclass(frozen=True, eq=False)
class Chunk:
    """Tiles computed together: a range per axis, with boxes of one size."""

    tiles: tuple[slice, ...]
    starts: tuple[Any, ...]  # per axis, where the boxes begin in class coordinates, an array
    widths: tuple[int, ...]  # per axis, keys per box
    kinds: dict[tuple[int, int], Any] = field(default_factory=dict)  # masks of its parts, once asked for

    @cached_property
    def counts(self) -> list[int]:
        return [tiles.stop - tiles.start for tiles in self.tiles]

    @cached_property
    def firsts(self) -> list[list[int]]:
        """`starts` as plain numbers."""
        return [[int(first) for first in starts] for starts in self.starts]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Softmax statistics and sums of half-precision inputs are kept in float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def split_rows(layout: Layout, number: int) -> Iterator[Rows]:
    """Cut samples and key heads into sets of at most `number` rows (at least one)."""
    if number >= layout.key_heads:
        samples = number // layout.key_heads
        for first in range(0, layout.batch, samples):
            yield Rows(slice(first, min(first + samples, layout.batch)), slice(0, layout.key_heads))
        return
    number = max(1, number)
    for sample, first in itertools.product(range(layout.batch), range(0, layout.key_heads, number)):
        yield Rows(slice(sample, sample + 1), slice(first, min(first + number, layout.key_heads)))


def same_memory(x: Tensor, y: Tensor) -> bool:
    """Whether one of two tensors is a view of the other, or both of a third."""
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def query_rows(x: Tensor, layout: Layout, rows: Rows) -> Tensor:
    """View of some rows of `(B, *grid, H, C)` as `(samples, *grid, heads, groups, C)`."""
    x = x.unflatten(-2, (layout.key_heads, layout.groups))
    return x[rows.samples].narrow(-3, rows.heads.start, rows.heads.stop - rows.heads.start)


def key_rows(x: Tensor, rows: Rows) -> Tensor:
    """View of some rows of `(B, *grid, K, C)` as `(samples, *grid, heads, C)`."""
    return x[rows.samples].narrow(-2, rows.heads.start, rows.heads.stop - rows.heads.start)


def query_frame(x: Tensor, tiling: Tiling) -> Tensor:
    """`(samples, *grid, heads, groups, C)` to `(rows, classes, groups, *padded lengths, C)`."""
    axes = len(tiling.axes)
    x = to_residues(x, [axis.step for axis in tiling.axes])  # (samples, *steps, *lengths, heads, groups, C)
    x = x.permute(0, 1 + 2 * axes, *range(1, 1 + axes), 2 + 2 * axes, *range(1 + axes, 1 + 2 * axes), -1)
    x = x.reshape(x.shape[0] * x.shape[1], tiling.classes, *x.shape[2 + axes :])
    return pad_to_multiple(x.to(compute_dtype(x.dtype)), tiling.tile, first=3)


def from_query_frame(x: Tensor, tiling: Tiling, grid: Grid, samples: int) -> Tensor:
    """`(rows, classes, groups, *padded lengths, C)` to `(samples, *grid, heads, groups, C)`."""
    axes = len(tiling.axes)
    x = crop(x, [axis.queries for axis in tiling.axes], first=3)
    x = x.unflatten(1, [axis.step for axis in tiling.axes]).unflatten(0, (samples, -1))
    x = x.permute(0, *range(2, 2 + axes), *range(3 + axes, 3 + 2 * axes), 1, 2 + axes, -1)
    return from_residues(x, grid)


def key_frame(x: Tensor, tiling: Tiling) -> Tensor:
    """`(samples, *grid, heads, C)` to `(rows, classes, *frame, C)`."""
    axes = len(tiling.axes)
    x = to_residues(x, [axis.step for axis in tiling.axes])
    x = x.permute(0, 1 + 2 * axes, *range(1, 1 + 2 * axes), -1)
    x = x.reshape(x.shape[0] * x.shape[1], tiling.classes, *x.shape[2 + axes :])
    x = x.to(compute_dtype(x.dtype))
    widths = [0, 0]  # of the channels
    for number, axis in reversed(list(enumerate(tiling.axes))):
        length = x.shape[2 + number]
        if axis.ring:
            index = (torch.arange(axis.frame, device=x.device) + axis.begin) % axis.ring
            x = x.index_select(2 + number, index)
            widths += [0, 0]
        else:
            widths += [-axis.begin, axis.frame + axis.begin - length]
    return torch.nn.functional.pad(x, widths) if any(widths) else x


def from_key_frame(x: Tensor, tiling: Tiling, grid: Grid, samples: int) -> Tensor:
    """The adjoint of `key_frame`: `(rows, classes, *frame, C)` to `(samples, *grid, heads, C)`."""
    axes = len(tiling.axes)
    for number, axis in enumerate(tiling.axes):
        length = -(-grid[number] // axis.step)
        if axis.ring:
            index = (torch.arange(axis.frame, device=x.device) + axis.begin) % axis.ring
            shape = [*x.shape[: 2 + number], length, *x.shape[3 + number :]]
            x = x.new_zeros(shape).index_add_(2 + number, index, x)
        else:
            x = x.narrow(2 + number, -axis.begin, length)
    x = x.unflatten(1, [axis.step for axis in tiling.axes]).unflatten(0, (samples, -1))
    x = x.permute(0, *range(2, 2 + 2 * axes), 1, -1)
    return from_residues(x, grid)


def _tiles_of_queries(frame: Tensor, chunk: Chunk, tiling: Tiling) -> Tensor:
    """View of a chunk of a query frame: `(rows, classes, *tiles, groups, *sizes, C)`."""
    strides, offset = frame.stride(), frame.storage_offset()
    counts, steps, sizes, inner = [], [], [], []
    for number, (axis, tiles) in enumerate(zip(tiling.axes, chunk.tiles, strict=True)):
        stride = strides[3 + number]
        offset += tiles.start * axis.size * stride
        counts.append(tiles.stop - tiles.start)
        steps.append(axis.size * stride)
        sizes.append(axis.size)
        inner.append(stride)
    return frame.as_strided(
        (*frame.shape[:2], *counts, frame.shape[2], *sizes, frame.shape[-1]),
        (*strides[:2], *steps, strides[2], *inner, strides[-1]),
        offset,
    )  # one call, where slicing axis by axis takes longer than the arithmetic on a tile


def take_queries(frame: Tensor, chunk: Chunk, tiling: Tiling) -> Tensor:
    """The queries of a chunk, `(rows * classes * tiles, groups * queries, C)`."""
    x = _tiles_of_queries(frame, chunk, tiling)
    return x.reshape(math.prod(x.shape[: 2 + len(tiling.axes)]), -1, x.shape[-1])


def put_queries(frame: Tensor, x: Tensor, chunk: Chunk, tiling: Tiling, *, add: bool = False) -> None:
    """Write, or add, `(rows * classes * tiles, groups * queries, C)` to its place in a query frame."""
    target = _tiles_of_queries(frame, chunk, tiling)
    if add:
        target.add_(x.view(target.shape))
    else:
        target.copy_(x.view(target.shape))


def _boxes(
    frame: Tensor,
    chunk: Chunk,
    axes: Sequence[AxisTiles],
    offsets: Sequence[int],
    widths: Sequence[int],
) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Parts of the boxes of a chunk as views of a key frame.

    Yields:
        The index of the tiles, one entry per axis, and the view `(rows, classes, *tiles of regular
        axes, *widths, C)`.
    """
    choices = [
        [None] if axis.regular else range(count) for axis, count in zip(axes, chunk.counts, strict=True)
    ]
    strides = frame.stride()
    for where in itertools.product(*choices):
        offset = frame.storage_offset()
        counts, steps = [], []
        for number, (axis, tile) in enumerate(zip(axes, where, strict=True)):
            stride = strides[2 + number]
            offset += (chunk.firsts[number][tile or 0] - axis.begin + offsets[number]) * stride
            if tile is None:
                counts.append(chunk.counts[number])
                steps.append(axis.size * stride)
        box = frame.as_strided(
            (*frame.shape[:2], *counts, *widths, frame.shape[-1]),
            (*strides[:2], *steps, *strides[2:-1], strides[-1]),
            offset,
        )
        yield tuple(slice(None) if tile is None else tile for tile in where), box


def take_keys(frame: Tensor, chunk: Chunk, tiling: Tiling, first: int, length: int) -> Tensor:
    """Keys `first` to `first + length` on the leading axis of the boxes, `(tiles of all rows, keys, C)`."""
    widths = [length, *chunk.widths[1:]]
    offsets = [first] + [0] * (len(widths) - 1)
    taken = frame.new_empty(*frame.shape[:2], *chunk.counts, *widths, frame.shape[-1])
    for where, box in _boxes(frame, chunk, tiling.axes, offsets, widths):
        (taken if box.ndim == taken.ndim else taken[(slice(None), slice(None), *where)]).copy_(box)
    return taken.view(math.prod(taken.shape[: 2 + len(widths)]), -1, taken.shape[-1])


def add_keys(
    frame: Tensor, x: Tensor, chunk: Chunk, tiling: Tiling, first: int, length: int, *, factor: float = 1.0
) -> None:
    """Add `factor` times `(tiles of all rows, keys, C)` onto boxes of a frame, the adjoint of `take_keys`.

    Boxes of neighbouring tiles overlap; pieces no wider than a tile do not, so each is one addition.
    """
    axes = len(tiling.axes)
    widths = [length, *chunk.widths[1:]]
    x = x.view(*frame.shape[:2], *chunk.counts, *widths, frame.shape[-1])
    pieces = [
        [(at, min(axis.size, width - at)) for at in range(0, width, axis.size)]
        if axis.regular
        else [(0, width)]
        for axis, width in zip(tiling.axes, widths, strict=True)
    ]
    for piece in itertools.product(*pieces):
        source = x
        for number, (at, width) in enumerate(piece):
            source = source.narrow(2 + axes + number, at, width)
        offsets = [at + (first if number == 0 else 0) for number, (at, _) in enumerate(piece)]
        for where, box in _boxes(frame, chunk, tiling.axes, offsets, [width for _, width in piece]):
            mine = source if box.ndim == source.ndim else source[(slice(None), slice(None), *where)]
            box.add_(mine, alpha=factor)
