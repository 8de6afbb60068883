"""Exact attention over tiles with halos: fused forward, backward by recomputation, no stored weights.

Hassani et al., 'Faster Neighborhood Attention', 2024, arXiv 2403.04690: per tile of queries the box of
keys that any of them sees is taken, logits outside each query's own window are masked, and softmax
runs online over parts of the box. Backward computes the weights again from the log-sum-exp. Memory is
that of the inputs and one small batch of tiles, whatever the window.

Shapes: B batch, H query heads, K key heads, D channels of a head; see `frames` for rows and classes.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyhead.kernels.frames import (
    Chunk,
    Layout,
    Rows,
    add_keys,
    compute_dtype,
    from_key_frame,
    from_query_frame,
    key_frame,
    key_rows,
    put_queries,
    query_frame,
    query_rows,
    split_rows,
    take_keys,
    take_queries,
)
from manyhead.kernels.tiles import Tiling, axis_mask
from manyhead.pattern.base import Pattern, Place

LOGITS = 1 << 18  # logits held at a time: 1 MiB of float32 stays near the cores
LOGITS_CUDA = 1 << 26
LOWEST = -1e30  # below every logit; the maximum over no key becomes this


@dataclass(frozen=True, eq=False)
class Job:
    """One term of a pattern, tiled.

    Args:
        tiling: its tiles.
        inside: what to ask besides the boxes, or None.
    """

    tiling: Tiling
    inside: Pattern | None


def _budget(device: torch.device) -> int:
    return LOGITS_CUDA if device.type == "cuda" else LOGITS


def rows_together(job: Job, layout: Layout, budget: int) -> int:
    """Rows whose logits fit the budget, at least one."""
    tiling = job.tiling
    return max(1, budget // max(1, tiling.logits * layout.groups))


def chunks(job: Job, layout: Layout, rows: int, budget: int) -> Iterator[Chunk]:
    """Cut the tiles into chunks of about `budget` logits."""
    axes = job.tiling.axes
    tile = rows * job.tiling.classes * layout.groups * math.prod(job.tiling.tile)
    room = budget // (tile * max(1, math.prod(job.tiling.box())))
    taken = []
    for axis in reversed(axes):
        taken.append(min(axis.tiles, max(1, room)))
        room //= taken[-1]
    counts = taken[::-1]
    for firsts in itertools.product(
        *(range(0, axis.tiles, count) for axis, count in zip(axes, counts, strict=True))
    ):
        tiles = tuple(
            slice(first, min(first + count, axis.tiles))
            for first, count, axis in zip(firsts, counts, axes, strict=True)
        )
        widths = tuple(int(axis.width[part].max()) for axis, part in zip(axes, tiles, strict=True))
        if math.prod(widths) == 0:
            continue  # these queries see nothing
        starts = tuple(
            np.minimum(axis.start[part], axis.begin + axis.frame - width)
            for axis, part, width in zip(axes, tiles, widths, strict=True)
        )
        yield Chunk(tiles, starts, widths)


def parts(chunk: Chunk, tiles: int, budget: int) -> list[tuple[int, int]]:
    """Ranges of the leading axis of the boxes, so that each part of a chunk stays near the budget.

    Args:
        chunk: the tiles.
        tiles: queries of all of them, over rows, classes and groups.
        budget: logits at a time.
    """
    row = tiles * math.prod(chunk.widths[1:])
    length = min(chunk.widths[0], max(1, 2 * budget // row))
    return [(first, min(length, chunk.widths[0] - first)) for first in range(0, chunk.widths[0], length)]


def _spread(x: Tensor, number: int, axes: int, kinds: tuple[int, ...]) -> Tensor:
    """Put a table of one axis among those of all.

    The result has the axes (classes of all, tiles of all, sizes of all, widths of all); `kinds` says
    which of the four the table has.
    """
    shape = [1] * (4 * axes)
    for kind, size in zip(kinds, x.shape, strict=True):
        shape[kind * axes + number] = size
    return x.reshape(shape)


def _mask(
    job: Job, chunk: Chunk, layout: Layout, rows: Rows, part: tuple[int, int], like: Tensor
) -> Tensor | None:
    """Additive mask of a part of a chunk, broadcastable to the unfolded logits, or None if all is seen.

    The logits are unfolded to (samples, heads, *classes, *tiles, groups, *sizes, *widths).
    """
    axes, (first, length) = job.tiling.axes, part
    number_of = len(axes)
    total: Tensor | None = None
    widths = (length, *chunk.widths[1:])
    for number, axis in enumerate(axes):
        start = chunk.starts[number] + (first if number == 0 else 0)
        table = axis_mask(axis, chunk.tiles[number], widths[number], start)
        if table is not None:
            table = _spread(table.to(like.device, like.dtype), number, number_of, (0, 1, 2, 3))
            total = table if total is None else total + table
    if total is not None:
        total = total[None, None, None]  # samples, heads, groups
    if job.inside is not None:
        allowed = _inside(job, chunk, layout, rows, first, widths, like.device)
        condition = torch.zeros((), dtype=like.dtype, device=like.device)
        condition = condition.masked_fill(~allowed, -math.inf)
        total = condition if total is None else total + condition
    if total is None:
        return None
    return total.movedim(2, 2 + 2 * number_of)  # groups stand behind the tiles


def _inside(
    job: Job,
    chunk: Chunk,
    layout: Layout,
    rows: Rows,
    first: int,
    widths: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Ask the condition of a term, `(samples, heads, groups, *classes, *tiles, *sizes, *widths)`."""
    assert job.inside is not None
    axes = job.tiling.axes
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
    if job.inside.samples:
        sample = torch.arange(rows.samples.start, rows.samples.stop, device=device).reshape(-1, 1, 1, *ones)
    if job.inside.heads:
        first_head, behind = rows.heads.start * layout.groups, rows.heads.stop * layout.groups
        head = torch.arange(first_head, behind, device=device).reshape(1, -1, layout.groups, *ones)
    place = Place(layout.query_grid, layout.key_grid, sample, head)
    allowed = job.inside.sees(tuple(query), tuple(key), place)
    return allowed.reshape([1] * (3 + 4 * len(axes) - allowed.ndim) + list(allowed.shape))


def _logits(
    query: Tensor, key: Tensor, job: Job, chunk: Chunk, layout: Layout, rows: Rows, part: tuple[int, int]
) -> Tensor:
    """Masked logits of a part of a chunk, `(tiles of all rows, queries, keys)`; `query` is scaled."""
    logits = torch.bmm(query, key.transpose(1, 2))
    mask = _mask(job, chunk, layout, rows, part, logits)
    if mask is not None:
        shape = [rows.samples.stop - rows.samples.start, rows.heads.stop - rows.heads.start]
        shape += [axis.step for axis in job.tiling.axes] + chunk.counts
        shape += [layout.groups, *job.tiling.tile, part[1], *chunk.widths[1:]]
        logits.view(shape).add_(mask)
    return logits


class _Tiled(torch.autograd.Function):
    """Attention of all jobs (disjoint parts of one pattern) and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, jobs: list[Job], layout: Layout
    ) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(q.dtype)
        shape = (layout.batch, *layout.query_grid, layout.key_heads * layout.groups)
        out = lse = None
        for job in jobs:
            part = q.new_zeros((*shape, v.shape[-1]), dtype=dtype if len(jobs) > 1 else q.dtype)
            part_lse = q.new_full(shape, -math.inf, dtype=dtype)
            _forward(q, k, v, scale, job, layout, part, part_lse)
            if out is None or lse is None:
                out, lse = part, part_lse
                continue
            both = torch.logaddexp(lse, part_lse)
            safe = both.masked_fill(both == -math.inf, 0.0)
            out = out.mul_(torch.exp(lse - safe)[..., None])
            out.add_(part.mul_(torch.exp(part_lse - safe)[..., None]))
            lse = both
        assert out is not None
        assert lse is not None
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.jobs, ctx.layout = scale, jobs, layout
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dtype = compute_dtype(q.dtype)
        d_out = torch.zeros_like(out) if d_out is None else d_out
        delta = torch.linalg.vecdot(d_out.to(dtype), out.to(dtype))
        if d_lse is not None:
            delta -= d_lse
        one = len(ctx.jobs) == 1
        gradients = [torch.zeros_like(x, dtype=x.dtype if one else dtype) for x in (q, k, v)]
        lse = lse.masked_fill(lse == -math.inf, 0.0)
        for job in ctx.jobs:
            _backward((q, k, v, d_out), lse, delta, ctx.scale, job, ctx.layout, gradients)
        d_q, d_k, d_v = gradients
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), None, None, None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, job: Job, layout: Layout, out: Tensor, lse: Tensor
) -> None:
    """Write output and log-sum-exp of one job, some rows at a time."""
    for rows in split_rows(layout, rows_together(job, layout, _budget(q.device))):
        _forward_rows(q, k, v, scale, job, layout, rows, out, lse)


def _forward_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    job: Job,
    layout: Layout,
    rows: Rows,
    out: Tensor,
    lse: Tensor,
) -> None:
    """The part of `_forward` that some rows are; its frames are gone when it returns."""
    tiling, budget = job.tiling, _budget(q.device)
    queries = query_frame(query_rows(q, layout, rows), tiling)
    keys, values = key_frame(key_rows(k, rows), tiling), key_frame(key_rows(v, rows), tiling)
    mixed_frame = queries.new_zeros(*queries.shape[:-1], v.shape[-1])
    lse_frame = queries.new_full((*queries.shape[:-1], 1), -math.inf)
    for chunk in chunks(job, layout, rows.number, budget):
        query = take_queries(queries, chunk, tiling).mul(scale)
        best = total = mixed = None
        for part in parts(chunk, query.shape[0] * query.shape[1], budget):
            key = take_keys(keys, chunk, tiling, *part)
            weights = _logits(query, key, job, chunk, layout, rows, part)
            top = weights.amax(-1, keepdim=True).clamp_(min=LOWEST)
            if best is not None:
                top = torch.maximum(best, top)
            weights = weights.sub_(top).exp_()
            value = take_keys(values, chunk, tiling, *part)
            if best is None or total is None or mixed is None:
                total, mixed = weights.sum(-1, keepdim=True), torch.bmm(weights, value)
            else:
                fade = torch.exp(best - top)
                total = total.mul_(fade).add_(weights.sum(-1, keepdim=True))
                mixed = mixed.mul_(fade).baddbmm_(weights, value)
            best = top
            del weights, key, value  # before the next ones are made
        assert best is not None
        assert total is not None
        assert mixed is not None
        put_queries(lse_frame, best + total.log(), chunk, tiling)
        put_queries(mixed_frame, mixed.div_(total.clamp_(min=1e-30)), chunk, tiling)
    samples = rows.samples.stop - rows.samples.start
    for target, frame in ((out, mixed_frame), (lse[..., None], lse_frame)):
        query_rows(target, layout, rows).copy_(from_query_frame(frame, tiling, layout.query_grid, samples))


def _backward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    lse: Tensor,
    delta: Tensor,
    scale: float,
    job: Job,
    layout: Layout,
    gradients: list[Tensor],
) -> None:
    """Add the gradients of one job, some rows at a time."""
    for rows in split_rows(layout, rows_together(job, layout, _budget(lse.device))):
        _backward_rows(inputs, lse, delta, scale, job, layout, rows, gradients)


def _backward_rows(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    lse: Tensor,
    delta: Tensor,
    scale: float,
    job: Job,
    layout: Layout,
    rows: Rows,
    gradients: list[Tensor],
) -> None:
    """The part of `_backward` that some rows are: P = exp(S - lse), dS = P * (dO V^T - delta)."""
    q, k, v, d_out = inputs
    tiling, budget = job.tiling, _budget(q.device)
    queries, upstream = (query_frame(query_rows(x, layout, rows), tiling) for x in (q, d_out))
    known = [query_frame(query_rows(x[..., None], layout, rows), tiling) for x in (lse, delta)]
    keys, values = key_frame(key_rows(k, rows), tiling), key_frame(key_rows(v, rows), tiling)
    frames = [torch.zeros_like(frame) for frame in (queries, keys, values)]
    for chunk in chunks(job, layout, rows.number, budget):
        query = take_queries(queries, chunk, tiling).mul(scale)
        gradient = take_queries(upstream, chunk, tiling)
        norm, mean = (take_queries(x, chunk, tiling) for x in known)
        d_query = None
        for part in parts(chunk, query.shape[0] * query.shape[1], budget):
            key = take_keys(keys, chunk, tiling, *part)
            weights = _logits(query, key, job, chunk, layout, rows, part).sub_(norm).exp_()
            add_keys(frames[2], torch.bmm(weights.transpose(1, 2), gradient), chunk, tiling, *part)
            value = take_keys(values, chunk, tiling, *part)
            d_logits = torch.bmm(gradient, value.transpose(1, 2)).sub_(mean).mul_(weights)
            add_keys(frames[1], torch.bmm(d_logits.transpose(1, 2), query), chunk, tiling, *part)
            d_query = torch.bmm(d_logits, key) if d_query is None else d_query.baddbmm_(d_logits, key)
            del weights, d_logits, key, value  # before the next ones are made
        assert d_query is not None
        put_queries(frames[0], d_query.mul_(scale), chunk, tiling)
    samples = rows.samples.stop - rows.samples.start
    restored = from_query_frame(frames[0], tiling, layout.query_grid, samples)
    query_rows(gradients[0], layout, rows).add_(restored)
    for gradient, frame in zip(gradients[1:], frames[1:], strict=True):
        key_rows(gradient, rows).add_(from_key_frame(frame, tiling, layout.key_grid, samples))


def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, jobs: list[Job], layout: Layout
) -> tuple[Tensor, Tensor]:
    """Attention of a tiled pattern, differentiable in all three inputs and in both outputs.

    Args:
        q: `(B, *query_grid, H, D)`.
        k: `(B, *key_grid, K, D)`.
        v: `(B, *key_grid, K, E)`.
        scale: factor on the logits.
        jobs: the pattern's disjoint terms with their tilings.
        layout: sizes of the call.

    Returns:
        Output `(B, *query_grid, H, E)` in the dtype of `q`, and the log-sum-exp of the scaled logits
        `(B, *query_grid, H)`, -inf where a query sees nothing, in float32 or float64.
    """
    out, lse = _Tiled.apply(q, k, v, scale, jobs, layout)  # type: ignore[no-untyped-call]
    return out, lse
