"""Moving tokens between their own layout and the tiles of a tiling, by views and few large copies.

A *frame* holds the tokens of a few heads, `(rows, classes, groups, *lengths, channels)` for queries and
`(rows, classes, *lengths, channels)` for keys, padded so that every tile is a plain slice of it. Rows
are pairs of sample and key head, groups the query heads that share a key head, classes the residue
classes of a dilated pattern.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Chunk:
    """Tiles computed together: a range per axis, with boxes of one size."""

    tiles: tuple[slice, ...]
    starts: tuple[Any, ...]  # per axis, where the boxes begin in class coordinates, an array
    widths: tuple[int, ...]  # per axis, keys per box

    @property
    def counts(self) -> list[int]:
        return [tiles.stop - tiles.start for tiles in self.tiles]


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
    axes = len(tiling.axes)
    for number, (axis, tiles) in enumerate(zip(tiling.axes, chunk.tiles, strict=True)):
        count = tiles.stop - tiles.start
        frame = frame.narrow(3 + 2 * number, tiles.start * axis.size, count * axis.size)
        frame = frame.unflatten(3 + 2 * number, (count, axis.size))
    return frame.permute(0, 1, *range(3, 3 + 2 * axes, 2), 2, *range(4, 4 + 2 * axes, 2), -1)


def take_queries(frame: Tensor, chunk: Chunk, tiling: Tiling) -> Tensor:
    """The queries of a chunk, `(rows * classes * tiles, groups * queries, C)`."""
    x = _tiles_of_queries(frame, chunk, tiling)
    return x.reshape(math.prod(x.shape[: 2 + len(tiling.axes)]), -1, x.shape[-1])


def put_queries(frame: Tensor, x: Tensor, chunk: Chunk, tiling: Tiling) -> None:
    """Write `(rows * classes * tiles, groups * queries, C)` to its place in a query frame."""
    target = _tiles_of_queries(frame, chunk, tiling)
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
        [slice(None)] if axis.regular else list(range(count))
        for axis, count in zip(axes, chunk.counts, strict=True)
    ]
    for where in itertools.product(*choices):
        part, order_tiles, order_keys, behind = frame, [], [], frame.ndim
        for number, (axis, chosen) in enumerate(zip(axes, where, strict=True)):
            tile = 0 if axis.regular else chosen
            first = int(chunk.starts[number][tile]) - axis.begin + offsets[number]
            if axis.regular:
                span = (chunk.counts[number] - 1) * axis.size + widths[number]
                part = part.narrow(2 + number, first, span).unfold(2 + number, widths[number], axis.size)
                order_tiles.append(2 + number)
                order_keys.append(behind)
                behind += 1
            else:
                part = part.narrow(2 + number, first, widths[number])
                order_keys.append(2 + number)
        yield where, part.permute(0, 1, *order_tiles, *order_keys, 2 + len(axes))


def take_keys(frame: Tensor, chunk: Chunk, tiling: Tiling, first: int, length: int) -> Tensor:
    """Keys `first` to `first + length` on the leading axis of the boxes, `(tiles of all rows, keys, C)`."""
    widths = [length, *chunk.widths[1:]]
    offsets = [first] + [0] * (len(widths) - 1)
    taken = frame.new_empty(*frame.shape[:2], *chunk.counts, *widths, frame.shape[-1])
    for where, box in _boxes(frame, chunk, tiling.axes, offsets, widths):
        taken[(slice(None), slice(None), *where)].copy_(box)
    return taken.view(math.prod(taken.shape[: 2 + len(widths)]), -1, taken.shape[-1])


def add_keys(frame: Tensor, x: Tensor, chunk: Chunk, tiling: Tiling, first: int, length: int) -> None:
    """Add `(tiles of all rows, keys, C)` onto the boxes of a key frame, the adjoint of `take_keys`.

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
            box.add_(source[(slice(None), slice(None), *where)])
