"""Unfused neighbourhood attention: logits of every query's own window, then values weighted by them.

Hassani et al., 'Faster Neighborhood Attention', 2024, arXiv 2403.04690. Three primitives carry the
forward and the backward pass: PN (queries with their neighbourhoods, giving weights), NN (weights with
neighbourhoods, giving tokens) and IN (weights of all queries that see a key, giving tokens). Each is
written twice: naively, by one gather per query, and as matrix products of tiles with their halos.

Layout here is heads first, `(B, H, *grid, D)`; nothing is scaled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid
from manyhead.kernels.frames import (
    Chunk,
    add_keys,
    from_key_frame,
    from_query_frame,
    key_frame,
    put_queries,
    query_frame,
    take_keys,
    take_queries,
)
from manyhead.kernels.tiles import Tiling, choose
from manyhead.pattern.window import Window

Method = Literal["tiles", "naive"]


@dataclass(frozen=True, eq=False)
class Slots:
    """The neighbours of every query in row-major order of its window.

    Args:
        index: flat key of every slot, `(queries, slots)`; some key where the slot is empty.
        valid: whether the slot has a key, `(queries, slots)`.
        box: place of every slot in the key box of the query's tile, `(classes, *tiles, *sizes, slots)`
            as `(classes * tiles, tile, slots)`.
        inside: `valid` in the same order.
        tiling: the tiles.
        offsets: per axis, key minus query in coordinates of the residue class, `(queries, slots)`.
    """

    index: Tensor
    valid: Tensor
    box: Tensor
    inside: Tensor
    tiling: Tiling
    offsets: tuple[Tensor, ...]


@lru_cache(maxsize=32)
def slots_of(window: Window, grid: Grid, head_dim: int) -> Slots:
    """Tables of a window on a grid."""
    reach = window.reach(grid, grid)
    tiling = choose(reach, head_dim)
    sizes = [axis.size or tokens for axis, tokens in zip(window.axes(len(grid)), grid, strict=True)]
    per_axis = []  # keys (queries, slots), valid, offsets of every axis
    for axis, size in zip(reach, sizes, strict=True):
        place = np.arange(size)
        valid = place < axis.count[:, None]
        key = axis.start[:, None] + np.where(valid, place, 0) * axis.step
        per_axis.append((key, valid, (key - np.arange(axis.queries)[:, None]) // axis.step))
    axes, slots = len(grid), math.prod(sizes)

    def product(tables: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
        total: Any = None
        for number, table in enumerate(tables):
            shape = [1] * (2 * axes)
            shape[number], shape[axes + number] = table.shape
            table = table.reshape(shape)
            total = table if total is None else combine(total, table)
        return np.broadcast_to(total, (*grid, *sizes)).reshape(-1, slots)

    strides = [math.prod(grid[number + 1 :]) for number in range(axes)]
    index = product([key * stride for (key, _, _), stride in zip(per_axis, strides, strict=True)], np.add)
    valid = product([valid for _, valid, _ in per_axis], np.logical_and)
    offsets = []
    for number, (_, _, offset) in enumerate(per_axis):
        zeros = [np.zeros_like(other[2]) for other in per_axis]
        zeros[number] = offset
        offsets.append(torch.from_numpy(product(zeros, np.add).copy()))
    box, inside = _box_places(tiling, sizes, axes)
    return Slots(
        torch.from_numpy(index.copy()), torch.from_numpy(valid.copy()), box, inside, tiling, tuple(offsets)
    )


def _box_places(tiling: Tiling, sizes: list[int], axes: int) -> tuple[Tensor, Tensor]:
    """Where in its tile's box each slot of a query stands, and whether it is filled."""
    chunk = _all_tiles(tiling)
    place: Any = None
    inside: Any = None
    for number, (axis, size) in enumerate(zip(tiling.axes, sizes, strict=True)):
        slot = np.arange(size)
        first = np.minimum(axis.low - chunk.starts[number][:, None], chunk.widths[number] - 1)
        at = np.clip(first, 0, None)[..., None] + slot  # (classes, tiles, sizes, slots)
        filled = slot < (axis.high - axis.low)[..., None]
        at = np.where(filled, at, 0) * math.prod(chunk.widths[number + 1 :])
        shape = [1] * (4 * axes)
        for kind, length in enumerate(at.shape):
            shape[kind * axes + number] = length
        at, filled = at.reshape(shape), filled.reshape(shape)
        place = at if place is None else place + at
        inside = filled if inside is None else inside & filled
    full = np.broadcast_shapes(place.shape, inside.shape)
    number_of = tiling.classes * math.prod(tiling.shape)
    flat = (number_of, math.prod(tiling.tile), math.prod(sizes))
    place = np.where(np.broadcast_to(inside, full), np.broadcast_to(place, full), 0)
    return (
        torch.from_numpy(place.reshape(flat).copy()),
        torch.from_numpy(np.broadcast_to(inside, full).reshape(flat).copy()),
    )


def _all_tiles(tiling: Tiling) -> Chunk:
    """All tiles at once, with boxes of one size."""
    widths = tiling.box()
    starts = tuple(
        np.minimum(axis.start, axis.begin + axis.frame - width)
        for axis, width in zip(tiling.axes, widths, strict=True)
    )
    return Chunk(tuple(slice(0, axis.tiles) for axis in tiling.axes), starts, widths)


def _queries(x: Tensor, slots: Slots) -> Tensor:
    """`(B, H, *grid, C)` to tiles `(B * H * classes * tiles, tile, C)`."""
    frame = query_frame(x.movedim(1, -2)[..., None, :], slots.tiling)
    return take_queries(frame, _all_tiles(slots.tiling), slots.tiling)


def _from_queries(tiles: Tensor, like: Tensor, slots: Slots) -> Tensor:
    """Tiles back to `(B, H, *grid, C)` on the grid of `like`."""
    batch, heads, *grid = like.shape[:-1]
    lengths = [axis.tiles * axis.size for axis in slots.tiling.axes]
    frame = tiles.new_empty(batch * heads, slots.tiling.classes, 1, *lengths, tiles.shape[-1])
    put_queries(frame, tiles, _all_tiles(slots.tiling), slots.tiling)
    return from_query_frame(frame, slots.tiling, tuple(grid), batch)[..., 0, :].movedim(-2, 1)


def _keys(x: Tensor, slots: Slots) -> Tensor:
    """`(B, H, *grid, C)` to key boxes `(B * H * classes * tiles, keys, C)`."""
    chunk = _all_tiles(slots.tiling)
    frame = key_frame(x.movedim(1, -2), slots.tiling)
    return take_keys(frame, chunk, slots.tiling, 0, chunk.widths[0])


def _placed(weights: Tensor, slots: Slots, keys: int) -> Tensor:
    """Weights `(B, H, *grid, slots)` scattered into zero-filled tiles `(tiles of all, tile, keys)`."""
    tiles = _queries(weights, slots)
    rows = tiles.shape[0] // slots.box.shape[0]
    index = slots.box.to(weights.device).repeat(rows, 1, 1)
    tiles = tiles.masked_fill(~slots.inside.to(weights.device).repeat(rows, 1, 1), 0.0)
    return tiles.new_zeros(*tiles.shape[:2], keys).scatter_add_(2, index, tiles)


def pointwise_neighborhood(
    q: Tensor, k: Tensor, slots: Slots, empty: float, method: Method = "tiles"
) -> Tensor:
    """PN: products of every query with the keys of its slots, `(B, H, *grid, slots)`."""
    valid = slots.valid.to(q.device).unflatten(0, q.shape[2:-1])
    if method == "naive":
        neighbors = k.flatten(2, -2)[:, :, slots.index.to(q.device)]  # (B, H, queries, slots, D)
        products = (q.flatten(2, -2)[..., None, :] * neighbors).sum(-1)
        return products.reshape(*q.shape[:-1], -1).masked_fill(~valid, empty)
    products = torch.bmm(_queries(q, slots), _keys(k, slots).transpose(1, 2))
    index = slots.box.to(q.device).repeat(products.shape[0] // slots.box.shape[0], 1, 1)
    return _from_queries(products.gather(2, index), q, slots).masked_fill(~valid, empty)


def neighborhood_neighborhood(weights: Tensor, v: Tensor, slots: Slots, method: Method = "tiles") -> Tensor:
    """NN: values of every query's slots added up with weights, `(B, H, *grid, D)`."""
    if method == "naive":
        weights = weights.flatten(2, -2).masked_fill(~slots.valid.to(v.device), 0.0)
        neighbors = v.flatten(2, -2)[:, :, slots.index.to(v.device)]
        return (weights[..., None] * neighbors).sum(-2).reshape(v.shape)
    boxes = _keys(v, slots)
    return _from_queries(torch.bmm(_placed(weights, slots, boxes.shape[1]), boxes), v, slots)


def inverse_neighborhood(weights: Tensor, x: Tensor, slots: Slots, method: Method = "tiles") -> Tensor:
    """IN: for every key, the tokens of all queries that see it added up with their weights."""
    if method == "naive":
        weights = weights.flatten(2, -2).masked_fill(~slots.valid.to(x.device), 0.0)
        parts = (weights[..., None] * x.flatten(2, -2)[..., None, :]).flatten(2, 3)
        total = torch.zeros_like(x.flatten(2, -2))
        return total.index_add_(2, slots.index.to(x.device).flatten(), parts).reshape(x.shape)
    chunk, tiling = _all_tiles(slots.tiling), slots.tiling
    placed = _placed(weights, slots, math.prod(chunk.widths))
    boxes = torch.bmm(placed.transpose(1, 2), _queries(x, slots))
    batch, heads, *grid = x.shape[:-1]
    frame = x.new_zeros(batch * heads, tiling.classes, *(axis.frame for axis in tiling.axes), x.shape[-1])
    add_keys(frame, boxes, chunk, tiling, 0, chunk.widths[0])
    return from_key_frame(frame, tiling, tuple(grid), batch).movedim(-2, 1)


class _QueryKey(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, slots: Slots, method: Method) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.slots, ctx.method = slots, method
        return pointwise_neighborhood(q, k, slots, -math.inf, method)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        q, k = ctx.saved_tensors
        d_q = neighborhood_neighborhood(upstream, k, ctx.slots, ctx.method)
        return d_q, inverse_neighborhood(upstream, q, ctx.slots, ctx.method), None, None


class _WeightsValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, v: Tensor, slots: Slots, method: Method) -> Tensor:
        ctx.save_for_backward(weights, v)
        ctx.slots, ctx.method = slots, method
        return neighborhood_neighborhood(weights, v, slots, method)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weights, v = ctx.saved_tensors
        d_weights = pointwise_neighborhood(upstream, v, ctx.slots, 0.0, ctx.method)
        return d_weights, inverse_neighborhood(weights, upstream, ctx.slots, ctx.method), None, None


def _checked(x: Tensor, window: Window, name: str) -> Grid:
    if x.ndim < 4:
        raise InputError(f"{name} has the shape (batch, heads, *grid, head_dim), got {tuple(x.shape)}")
    grid = tuple(x.shape[2:-1])
    if window.border != "shift":
        raise InputError(
            f"unfused neighbourhood attention moves windows inside the grid, got {window.border!r}"
        )
    window.check(grid, grid)
    return grid


def neighborhood_qk(
    q: Tensor, k: Tensor, window: Window, rpb: Tensor | None = None, method: Method = "tiles"
) -> Tensor:
    """Logits of every query's window, not scaled.

    Args:
        q: `(B, H, *grid, D)`.
        k: `(B, H, *grid, D)`.
        window: size, stride, dilation and causal axes, with border 'shift'.
        rpb: relative position bias `(H, 2 * size_0 - 1, ...)`, added to the slot of offset `key - query`
            (in residue-class coordinates); for axes that are not causal.
        method: 'tiles' (matrix products) or 'naive' (one gather per query).

    Returns:
        `(B, H, *grid, slots)`, slots in row-major order of the window, -inf where there is no key.

    Raises:
        InputError: if shapes do not fit, or a bias meets a causal axis.
    """
    grid = _checked(q, window, "q")
    if k.shape != q.shape:
        raise InputError(f"q and k have one shape, got {tuple(q.shape)} and {tuple(k.shape)}")
    slots = slots_of(window, grid, q.shape[-1])
    logits: Tensor = _QueryKey.apply(q, k, slots, method)  # type: ignore[no-untyped-call]
    if rpb is None:
        return logits
    axes = window.axes(len(grid))
    if any(axis.causal for axis in axes):
        raise InputError("a relative position bias takes windows that are not causal")
    sizes = [axis.size or tokens for axis, tokens in zip(axes, grid, strict=True)]
    wanted = (q.shape[1], *(2 * size - 1 for size in sizes))
    if tuple(rpb.shape) != wanted:
        raise InputError(f"rpb has the shape {wanted}, got {tuple(rpb.shape)}")
    places = [offset.to(q.device) + size - 1 for offset, size in zip(slots.offsets, sizes, strict=True)]
    index: tuple[Any, ...] = (slice(None), *places)
    return logits + rpb[index].reshape(q.shape[1], *grid, -1)


def neighborhood_av(weights: Tensor, v: Tensor, window: Window, method: Method = "tiles") -> Tensor:
    """Values of every query's window, added up with its weights.

    Args:
        weights: `(B, H, *grid, slots)` as from `neighborhood_qk`; empty slots do not count.
        v: `(B, H, *grid, D)`.
        window: as there.
        method: as there.

    Returns:
        `(B, H, *grid, D)`.

    Raises:
        InputError: if shapes do not fit.
    """
    grid = _checked(v, window, "v")
    slots = slots_of(window, grid, v.shape[-1])
    if tuple(weights.shape) != (*v.shape[:-1], slots.valid.shape[1]):
        raise InputError(
            f"weights have the shape {(*v.shape[:-1], slots.valid.shape[1])}, got {tuple(weights.shape)}"
        )
    out: Tensor = _WeightsValue.apply(weights, v, slots, method)  # type: ignore[no-untyped-call]
    return out
