"""Additive masks of chunks of tiles: a few kinds of tiles, of which every tile is one.

On every axis tiles differ only by where windows begin and end relative to their boxes: those inside of a grid
are alike, those at its borders are not. So a mask is a small table of kinds, and the kind of every tile.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from manyhead.grid import Table
from manyhead.kernels.frames import Chunk, Layout, Rows
from manyhead.kernels.tiles import Tiling
from manyhead.pattern.base import Pattern, Place

KINDS = 1 << 18  # entries of a table of kinds; with more, masks are made from those of the axes every time


@dataclass(frozen=True)
class AxisKinds:
    """Tiles of one axis that differ in their masks.

    Args:
        bounds: where windows begin and end in their boxes, int64 of `(kinds, 2, size)` as bytes.
        kinds: number of kinds.
        size: queries of a tile.
        width: keys of a box.
        whole: whether every query sees its whole box.
    """

    bounds: bytes
    kinds: int
    size: int
    width: int
    whole: bool

    def table(self) -> Table:
        """The mask of every kind, `(kinds, size, width)`: 0 where a query sees, -inf elsewhere."""
        low, high = np.moveaxis(np.frombuffer(self.bounds, np.int64).reshape(self.kinds, 2, -1, 1), 1, 0)
        place = np.arange(self.width)
        return np.where((place >= low) & (place < high), 0.0, -np.inf).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Kinds:
    """Kinds of the tiles of a chunk.

    Args:
        axes: kinds per axis.
        of: per axis, the kind of each tile, `(classes, tiles)`.
        index: kind of every tile of the grid `(classes * tiles,)`, or None if there is one.
        entries: numbers in the table of all kinds.
    """

    axes: tuple[AxisKinds, ...]
    of: tuple[Table, ...]
    index: Tensor | None
    entries: int


def kinds_of(tiling: Tiling, chunk: Chunk, part: tuple[int, int]) -> Kinds | None:
    """Kinds of the tiles of a part of a chunk, remembered with it; None if every query sees its whole box."""
    if part not in chunk.kinds:
        chunk.kinds[part] = _kinds(tiling, chunk, part)
    found: Kinds | None = chunk.kinds[part]
    return found


def _kinds(tiling: Tiling, chunk: Chunk, part: tuple[int, int]) -> Kinds | None:
    axes: list[AxisKinds] = []
    of: list[Table] = []
    for number, (axis, width) in enumerate(zip(tiling.axes, (part[1], *chunk.widths[1:]), strict=True)):
        start = (chunk.starts[number] + (part[0] if number == 0 else 0))[:, None]
        bounds = [np.clip(bound[:, chunk.tiles[number]] - start, 0, width) for bound in (axis.low, axis.high)]
        every = np.concatenate(bounds, -1)  # (classes, tiles, low and high of all queries)
        kinds, inverse = np.unique(every.reshape(-1, 2 * axis.size), axis=0, return_inverse=True)
        whole = bool((kinds[:, : axis.size] == 0).all() and (kinds[:, axis.size :] == width).all())
        axes.append(AxisKinds(kinds.tobytes(), len(kinds), axis.size, width, whole))
        of.append(inverse.reshape(every.shape[:2]))
    if all(axis.whole for axis in axes):
        return None
    index: Table = np.zeros([1] * (2 * len(axes)), np.int64)
    for number, (mixed, mine) in enumerate(zip(axes, of, strict=True)):
        shape = [1] * (2 * len(axes))
        shape[number], shape[len(axes) + number] = mine.shape
        index = index * mixed.kinds + mine.reshape(shape)
    return Kinds(
        tuple(axes),
        tuple(of),
        torch.from_numpy(index.reshape(-1)) if math.prod(axis.kinds for axis in axes) > 1 else None,
        math.prod(axis.kinds * axis.size * axis.width for axis in axes),
    )


def _product(tables: list[Tensor]) -> Tensor:
    """Sum of per-axis tables `(a, b, c)` over all combinations, `(a, b, c)` of all axes together."""
    axes, total = len(tables), torch.zeros(())
    for number, table in enumerate(tables):
        shape = [1] * (3 * axes)
        for kind, size in enumerate(table.shape):
            shape[kind * axes + number] = size
        total = total + table.reshape(shape)
    return total.reshape([math.prod(total.shape[k * axes : (k + 1) * axes]) for k in range(3)])


@lru_cache(maxsize=16)
def _table(axes: tuple[AxisKinds, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Masks of all kinds, `(kinds of all axes, queries, keys)`."""
    return _product([torch.from_numpy(axis.table()) for axis in axes]).to(device, dtype)


def mask_entries(tiling: Tiling, chunk: Chunk, part: tuple[int, int]) -> int:
    """Numbers that `add_mask` allocates for a part of a chunk, if there is no condition to ask."""
    kinds = kinds_of(tiling, chunk, part)
    if kinds is None or (kinds.index is None and kinds.entries <= KINDS):
        return 0
    tiles = tiling.classes * math.prod(chunk.counts)
    return tiles * math.prod(tiling.tile) * part[1] * math.prod(chunk.widths[1:])


def add_mask(
    logits: Tensor,
    tiling: Tiling,
    inside: Pattern | None,
    chunk: Chunk,
    layout: Layout,
    rows: Rows,
    part: tuple[int, int],
) -> None:
    """Add the mask of a part of a chunk to its logits `(tiles of all rows, groups * queries, keys)`.

    Args:
        logits: changed in place.
        tiling: the tiles.
        inside: what to ask besides the boxes, or None.
        chunk: the tiles of these logits.
        layout: sizes of the call.
        rows: samples and heads.
        part: first and number of keys on the leading axis of the boxes.
    """
    kinds = kinds_of(tiling, chunk, part)
    if kinds is not None:
        if kinds.entries <= KINDS:
            table = _table(kinds.axes, logits.dtype, logits.device)
            if kinds.index is not None:
                table = table.index_select(0, kinds.index.to(table.device))
        else:
            table = _of_tiles(kinds, logits)
        queries, keys = table.shape[1:]
        logits.view(rows.number, -1, layout.groups, queries, keys).add_(table[:, None])
    if inside is not None:
        widths = (part[1], *chunk.widths[1:])
        allowed = _inside(inside, tiling, chunk, layout, rows, part[0], widths, logits.device)
        condition = torch.zeros((), dtype=logits.dtype, device=logits.device)
        condition = condition.masked_fill(~allowed, -math.inf)
        shape = [rows.samples.stop - rows.samples.start, rows.heads.stop - rows.heads.start]
        shape += [axis.step for axis in tiling.axes] + chunk.counts
        shape += [layout.groups, *tiling.tile, *widths]  # groups stand behind the tiles
        logits.view(shape).add_(condition.movedim(2, 2 + 2 * len(tiling.axes)))


def _of_tiles(kinds: Kinds, like: Tensor) -> Tensor:
    """The mask of every tile, `(classes * tiles, queries, keys)`, from those of the axes."""
    tables = []
    for axis, of in zip(kinds.axes, kinds.of, strict=True):
        tables.append(torch.from_numpy(axis.table()).to(like.device, like.dtype)[torch.from_numpy(of)])
    axes, total = len(tables), None
    for number, table in enumerate(tables):  # (classes, tiles, size, width)
        spread = _spread(table, number, axes, (0, 1, 2, 3))
        total = spread if total is None else total + spread
    assert total is not None
    sizes = [math.prod(total.shape[k * axes : (k + 1) * axes]) for k in range(4)]
    return total.reshape(sizes[0] * sizes[1], *sizes[2:])


def _spread(x: Tensor, number: int, axes: int, kinds: tuple[int, ...]) -> Tensor:
    """Put a table of one axis among those of all.

    The result has the axes (classes of all, tiles of all, sizes of all, widths of all); `kinds` says
    which of the four the table has.
    """
    shape = [1] * (4 * axes)
    for kind, size in zip(kinds, x.shape, strict=True):
        shape[kind * axes + number] = size
    return x.reshape(shape)


def _inside(
    inside: Pattern,
    tiling: Tiling,
    chunk: Chunk,
    layout: Layout,
    rows: Rows,
    first: int,
    widths: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Ask the condition of a term, `(samples, heads, groups, *classes, *tiles, *sizes, *widths)`."""
    axes = tiling.axes
    query, key = [], []
    for number, axis in enumerate(axes):
        group = torch.arange(axis.step, device=device)[:, None, None]
        tiles = torch.arange(chunk.tiles[number].start, chunk.tiles[number].stop, device=device)
        x = tiles[:, None] * axis.size + torch.arange(axis.size, device=device)
        position = (x * axis.step + group).clamp(max=layout.query_grid[number] - 1)
        query.append(_spread(position, number, len(axes), (0, 1, 2)))
        start = torch.as_tensor(chunk.starts[number], device=device) + (first if number == 0 else 0)
        y = start[:, None] + torch.arange(widths[number], device=device)
        if axis.ring:
            y = y % axis.ring
        position = (y * axis.step + group).clamp(min=0, max=layout.key_grid[number] - 1)
        key.append(_spread(position, number, len(axes), (0, 1, 3)))
    ones = [1] * (4 * len(axes))
    sample = head = None
    if inside.samples:
        sample = torch.arange(rows.samples.start, rows.samples.stop, device=device).reshape(-1, 1, 1, *ones)
    if inside.heads:
        first_head, behind = rows.heads.start * layout.groups, rows.heads.stop * layout.groups
        head = torch.arange(first_head, behind, device=device).reshape(1, -1, layout.groups, *ones)
    place = Place(layout.query_grid, layout.key_grid, sample, head)
    allowed = inside.sees(tuple(query), tuple(key), place)
    return allowed.reshape([1] * (3 + 4 * len(axes) - allowed.ndim) + list(allowed.shape))
