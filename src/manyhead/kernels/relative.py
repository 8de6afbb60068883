"""Relative position bias: what is added to a logit depends on key minus query only.

Hassani et al., 'Neighborhood Attention Transformer', 2022, arXiv 2204.07143, and Shaw et al., 2018, arXiv
1803.02155. Tiles of one kind share their offsets, so a kernel that works in tiles needs one small table for
each kind, never an array of all queries and keys.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid
from manyhead.kernels.frames import Chunk, Layout, Rows
from manyhead.kernels.tiles import Tiling


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """A bias for `attend`: a table over the offset of key and query, per head.

    Args:
        table: `(heads, 2 * reach_0 + 1, ...)`, one axis of odd length per grid axis; the entry at `reach` is
            that of offset zero, offsets beyond the table take its last entry.
        dilation: tokens per step of the table, one number or one per axis; offsets between are rounded down.
    """

    table: Tensor
    dilation: int | Sequence[int] = 1

    def steps(self, axes: int) -> tuple[int, ...]:
        """Dilation per axis."""
        return (self.dilation,) * axes if isinstance(self.dilation, int) else tuple(self.dilation)

    def check(self, heads: int, axes: int, like: Tensor) -> None:
        """Refuse a table that does not fit a call.

        Raises:
            InputError: if heads, axes, lengths, dilation, dtype or device do not fit.
        """
        shape = tuple(self.table.shape)
        if len(shape) != 1 + axes or shape[0] != heads or any(size % 2 == 0 for size in shape[1:]):
            raise InputError(
                f"a relative bias has a table of {heads} heads and an odd length on {axes} grid axes, "
                f"got the shape {shape}"
            )
        steps = self.steps(axes)
        if len(steps) != axes or min(steps) < 1:
            raise InputError(
                f"dilation takes a number from 1, or one per axis of {axes}; got {self.dilation!r}"
            )
        if self.table.dtype != like.dtype or self.table.device != like.device:
            raise InputError(
                f"bias has the dtype and device of q, got {self.table.dtype} on {self.table.device}"
            )

    def dense(self, query_grid: Grid, key_grid: Grid) -> Tensor:
        """The bias of all pairs, `(heads, queries, keys)`, for kernels that hold them anyway."""
        axes, total = len(query_grid), None
        for number, step in enumerate(self.steps(axes)):
            offset = torch.arange(key_grid[number]) - torch.arange(query_grid[number])[:, None]
            shape = [1] * (2 * axes)
            shape[number], shape[axes + number] = offset.shape
            mine = _entry(offset, step, self.table.shape[1 + number]).reshape(shape)
            total = mine if total is None else total * self.table.shape[1 + number] + mine
        assert total is not None
        return self.table.flatten(1)[:, total.to(self.table.device)].flatten(-axes).flatten(1, axes)


def _entry(offset: Tensor, step: int, length: int) -> Tensor:
    """Place in an axis of a table of the offset key minus query in tokens."""
    return (torch.div(offset, step, rounding_mode="floor") + length // 2).clamp(0, length - 1)


@dataclass(frozen=True, eq=False)
class Offsets:
    """Entries of the flattened table that the tiles of a chunk take.

    Args:
        entries: per kind of tile, `(kinds, queries, keys)`.
        kind: of every tile of the grid `(tiles,)`, or None if there is one.
    """

    entries: Tensor
    kind: Tensor | None


def offsets_of(bias: RelativeBias, tiling: Tiling, chunk: Chunk, part: tuple[int, int]) -> Offsets:
    """Which entries a part of a chunk takes: tiles differ only by how far their boxes stand from them."""
    axes = len(tiling.axes)
    lengths, steps = bias.table.shape[1:], bias.steps(axes)
    entries = kind = None
    for number, (axis, width) in enumerate(zip(tiling.axes, (part[1], *chunk.widths[1:]), strict=True)):
        tiles = np.arange(chunk.tiles[number].start, chunk.tiles[number].stop)
        away = chunk.starts[number] + (part[0] if number == 0 else 0) - tiles * axis.size
        kinds, mine = np.unique(away, return_inverse=True)
        # (kinds, size, width): key minus query in tokens
        offset = (
            torch.from_numpy(kinds)[:, None, None] + torch.arange(width) - torch.arange(axis.size)[:, None]
        )
        place = _entry(offset * axis.step, steps[number], lengths[number])
        shape = [1] * (3 * axes)
        shape[number], shape[axes + number], shape[2 * axes + number] = place.shape
        place = place.reshape(shape)
        entries = place if entries is None else entries * lengths[number] + place
        spread = torch.from_numpy(mine.reshape([-1 if i == number else 1 for i in range(axes)]))
        kind = spread if kind is None else kind * len(kinds) + spread
    assert entries is not None
    assert kind is not None
    sizes = [math.prod(entries.shape[k * axes : (k + 1) * axes]) for k in range(3)]
    device = bias.table.device
    return Offsets(entries.reshape(sizes).to(device), kind.reshape(-1).to(device) if sizes[0] > 1 else None)


def _unfolded(logits: Tensor, tiling: Tiling, layout: Layout, rows: Rows) -> Tensor:
    """Logits as `(samples, heads, classes, tiles, groups, queries, keys)`."""
    samples, queries = rows.samples.stop - rows.samples.start, math.prod(tiling.tile)
    heads = rows.heads.stop - rows.heads.start
    return logits.view(samples, heads, tiling.classes, -1, layout.groups, queries, logits.shape[-1])


def _heads(table: Tensor, layout: Layout, rows: Rows) -> Tensor:
    """The part of a table of all heads that some rows have, `(heads, groups, entries)`."""
    grouped: Tensor = table.flatten(1).unflatten(0, (layout.key_heads, layout.groups))
    return grouped[rows.heads]


def add_bias(
    logits: Tensor, table: Tensor, offsets: Offsets, tiling: Tiling, layout: Layout, rows: Rows, factor: float
) -> None:
    """Add `factor` times the bias to the logits of a part of a chunk, in place."""
    mine = _heads(table, layout, rows)[:, :, offsets.entries].mul_(
        factor
    )  # (heads, groups, kinds, queries, keys)
    mine = mine.movedim(2, 1)  # (heads, kinds, groups, queries, keys)
    if offsets.kind is not None:
        mine = mine.index_select(1, offsets.kind)
    _unfolded(logits, tiling, layout, rows).add_(mine[:, None])


def collect_bias(
    d_table: Tensor, d_logits: Tensor, offsets: Offsets, tiling: Tiling, layout: Layout, rows: Rows
) -> None:
    """Add the gradient of a part of a chunk's logits to that of the table."""
    total = _unfolded(d_logits, tiling, layout, rows).sum((0, 2))  # (heads, tiles, groups, queries, keys)
    if offsets.kind is None:
        total = total.sum(1, keepdim=True)
    else:
        shape = [total.shape[0], len(offsets.entries), *total.shape[2:]]
        total = total.new_zeros(shape).index_add_(1, offsets.kind, total)
    mine = _heads(d_table, layout, rows)  # a view: (heads, groups, entries)
    collected = torch.zeros_like(mine)
    collected.index_add_(2, offsets.entries.flatten(), total.movedim(2, 1).flatten(2).to(mine.dtype))
    mine.add_(collected)
