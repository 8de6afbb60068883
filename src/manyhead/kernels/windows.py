"""Exact attention over tiles with halos: fused forward, backward by recomputation, no stored weights.

Hassani et al., 'Faster Neighborhood Attention', 2024, arXiv 2403.04690: per tile of queries the box of
keys that any of them sees is taken, logits outside each query's own window are masked, and softmax
runs online over parts of the box. Backward computes the weights again from the log-sum-exp. Memory is
that of the inputs and one small batch of tiles, whatever the window.

Shapes: B batch, H query heads, K key heads, D channels of a head; see `frames` for rows and classes.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    same_memory,
    split_rows,
    take_keys,
    take_queries,
)
from manyhead.kernels.masks import add_mask
from manyhead.kernels.relative import RelativeBias, add_bias, collect_bias, offsets_of
from manyhead.kernels.tiles import Tiling
from manyhead.pattern.base import Pattern

LOGITS = 1 << 18  # logits held at a time: 1 MiB of float32 stays near the cores
LOGITS_CUDA = 1 << 26
LOWEST = -1e30  # below every logit; the maximum over no key becomes this
# Logits are kept in base 2: exp2 is some ten times faster than exp where masked entries underflow, because
# the vector library behind exp leaves its fast path there.
LOG2E = math.log2(math.e)
LN2 = math.log(2.0)


@dataclass(frozen=True, eq=False)
class Job:
    """One term of a pattern, tiled.

    Args:
        tiling: its tiles.
        inside: what to ask besides the boxes, or None.
    """

    tiling: Tiling
    inside: Pattern | None
    cut: dict[tuple[int, int, int], list[Chunk]] = field(default_factory=dict)  # its chunks, once asked for


def _budget(device: torch.device) -> int:
    return LOGITS_CUDA if device.type == "cuda" else LOGITS


def rows_together(job: Job, layout: Layout, budget: int) -> int:
    """Rows whose logits fit the budget, at least one."""
    tiling = job.tiling
    return max(1, budget // max(1, tiling.logits * layout.groups))


def chunks(job: Job, layout: Layout, rows: int, budget: int) -> list[Chunk]:
    """Cut the tiles into chunks of about `budget` logits."""
    key = (layout.groups, rows, budget)
    if key not in job.cut:
        job.cut[key] = list(_chunks(job, layout, rows, budget))
    return job.cut[key]


def _chunks(job: Job, layout: Layout, rows: int, budget: int) -> Iterator[Chunk]:
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


def _logits(
    query: Tensor,
    key: Tensor,
    job: Job,
    chunk: Chunk,
    layout: Layout,
    rows: Rows,
    part: tuple[int, int],
    bias: RelativeBias | None,
) -> Tensor:
    """Masked logits of a part of a chunk, `(tiles of all rows, queries, keys)`; `query` is scaled."""
    logits = torch.bmm(query, key.transpose(1, 2))
    if bias is not None:
        offsets = offsets_of(bias, job.tiling, chunk, part)
        add_bias(logits, bias.table, offsets, job.tiling, layout, rows, LOG2E)
    add_mask(logits, job.tiling, job.inside, chunk, layout, rows, part)
    return logits


class _Tiled(torch.autograd.Function):
    """Attention of all jobs (disjoint parts of one pattern) and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        scale: float,
        jobs: list[Job],
        layout: Layout,
        dilation: int | Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        bias = None if table is None else RelativeBias(table, dilation)
        dtype = compute_dtype(q.dtype)
        shape = (layout.batch, *layout.query_grid, layout.key_heads * layout.groups)
        out = lse = None
        for job in jobs:
            part = q.new_zeros((*shape, v.shape[-1]), dtype=dtype if len(jobs) > 1 else q.dtype)
            part_lse = q.new_full(shape, -math.inf, dtype=dtype)
            _forward(q, k, v, bias, scale, job, layout, part, part_lse)
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
        ctx.save_for_backward(q, k, v, out, lse, table)
        ctx.scale, ctx.jobs, ctx.layout, ctx.dilation = scale, jobs, layout, dilation
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, out, lse, table = ctx.saved_tensors
        bias = None if table is None else RelativeBias(table, ctx.dilation)
        dtype = compute_dtype(q.dtype)
        d_out = torch.zeros_like(out) if d_out is None else d_out
        delta = torch.linalg.vecdot(d_out.to(dtype), out.to(dtype))
        if d_lse is not None:
            delta -= d_lse
        one = len(ctx.jobs) == 1
        gradients = [torch.zeros_like(x, dtype=x.dtype if one else dtype) for x in (q, k, v)]
        d_table = None if table is None else torch.zeros_like(table, dtype=dtype)
        lse = lse.masked_fill(lse == -math.inf, 0.0)
        for job in ctx.jobs:
            _backward((q, k, v, d_out), bias, lse, delta, ctx.scale, job, ctx.layout, gradients, d_table)
        d_q, d_k, d_v = gradients
        if d_table is not None:
            d_table = d_table.to(q.dtype)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), d_table, None, None, None, None


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: RelativeBias | None,
    scale: float,
    job: Job,
    layout: Layout,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Write output and log-sum-exp of one job, some rows at a time."""
    for rows in split_rows(layout, rows_together(job, layout, _budget(q.device))):
        _forward_rows(q, k, v, bias, scale, job, layout, rows, out, lse)


def _forward_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: RelativeBias | None,
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
    targets = [query_rows(out, layout, rows), query_rows(lse[..., None], layout, rows)]
    frames = [query_frame(x, tiling) for x in targets]
    mixed_frame, lse_frame = frames
    for chunk in chunks(job, layout, rows.number, budget):
        query = take_queries(queries, chunk, tiling).mul(scale * LOG2E)
        best = total = mixed = None
        for part in parts(chunk, query.shape[0] * query.shape[1], budget):
            key = take_keys(keys, chunk, tiling, *part)
            weights = _logits(query, key, job, chunk, layout, rows, part, bias)
            top = weights.amax(-1, keepdim=True).clamp_(min=LOWEST)
            if best is not None:
                top = torch.maximum(best, top)
            weights = weights.sub_(top).exp2_()
            value = take_keys(values, chunk, tiling, *part)
            if best is None or total is None or mixed is None:
                total, mixed = weights.sum(-1, keepdim=True), torch.bmm(weights, value)
            else:
                fade = torch.exp2(best - top)
                total = total.mul_(fade).add_(weights.sum(-1, keepdim=True))
                mixed = mixed.mul_(fade).baddbmm_(weights, value)
            best = top
            del weights, key, value  # before the next ones are made
        assert best is not None
        assert total is not None
        assert mixed is not None
        put_queries(lse_frame, best.add_(total.log2()).mul_(LN2), chunk, tiling)
        put_queries(mixed_frame, mixed.div_(total.clamp_(min=1e-30)), chunk, tiling)
    samples = rows.samples.stop - rows.samples.start
    for target, frame in zip(targets, frames, strict=True):
        if not same_memory(frame, target):
            target.copy_(from_query_frame(frame, tiling, layout.query_grid, samples))


def _backward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    bias: RelativeBias | None,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    job: Job,
    layout: Layout,
    gradients: list[Tensor],
    d_table: Tensor | None,
) -> None:
    """Add the gradients of one job, some rows at a time."""
    for rows in split_rows(layout, rows_together(job, layout, _budget(lse.device))):
        _backward_rows(inputs, bias, lse, delta, scale, job, layout, rows, gradients, d_table)


def _collector(
    make: Callable[[Tensor, Tiling], Tensor], target: Tensor, tiling: Tiling, like: Tensor, x: Tensor
) -> Tensor:
    """Frame that collects a gradient: a view of its place where the input's frame is one, else zeros."""
    if same_memory(like, x) and target.dtype == like.dtype:
        frame = make(target, tiling)
        if same_memory(frame, target):
            return frame
    return torch.zeros_like(like)


def _backward_rows(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    bias: RelativeBias | None,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    job: Job,
    layout: Layout,
    rows: Rows,
    gradients: list[Tensor],
    d_table: Tensor | None,
) -> None:
    """The part of `_backward` that some rows are: P = exp(S - lse), dS = P * (dO V^T - delta)."""
    q, k, v, d_out = inputs
    tiling, budget = job.tiling, _budget(q.device)
    queries, upstream = (query_frame(query_rows(x, layout, rows), tiling) for x in (q, d_out))
    known = [query_frame(query_rows(x[..., None], layout, rows), tiling) for x in (lse, delta)]
    keys, values = key_frame(key_rows(k, rows), tiling), key_frame(key_rows(v, rows), tiling)
    targets = [query_rows(gradients[0], layout, rows), *(key_rows(x, rows) for x in gradients[1:])]
    frames = [
        _collector(query_frame, targets[0], tiling, queries, q),
        _collector(key_frame, targets[1], tiling, keys, k),
        _collector(key_frame, targets[2], tiling, values, v),
    ]
    for chunk in chunks(job, layout, rows.number, budget):
        query = take_queries(queries, chunk, tiling).mul(scale * LOG2E)
        gradient = take_queries(upstream, chunk, tiling)
        norm, mean = (take_queries(x, chunk, tiling) for x in known)
        norm = norm * LOG2E
        d_query = None
        for part in parts(chunk, query.shape[0] * query.shape[1], budget):
            key = take_keys(keys, chunk, tiling, *part)
            weights = _logits(query, key, job, chunk, layout, rows, part, bias).sub_(norm).exp2_()
            add_keys(frames[2], torch.bmm(weights.transpose(1, 2), gradient), chunk, tiling, *part)
            value = take_keys(values, chunk, tiling, *part)
            d_logits = torch.bmm(gradient, value.transpose(1, 2)).sub_(mean).mul_(weights)
            if bias is not None and d_table is not None:
                offsets = offsets_of(bias, tiling, chunk, part)
                collect_bias(d_table, d_logits, offsets, tiling, layout, rows)
            d_key = torch.bmm(d_logits.transpose(1, 2), query)
            add_keys(frames[1], d_key, chunk, tiling, *part, factor=LN2)
            d_query = torch.bmm(d_logits, key) if d_query is None else d_query.baddbmm_(d_logits, key)
            del weights, d_logits, key, value, d_key  # before the next ones are made
        assert d_query is not None
        put_queries(frames[0], d_query.mul_(scale), chunk, tiling, add=True)
    samples = rows.samples.stop - rows.samples.start
    if not same_memory(frames[0], targets[0]):
        targets[0].add_(from_query_frame(frames[0], tiling, layout.query_grid, samples))
    for target, frame in zip(targets[1:], frames[1:], strict=True):
        if not same_memory(frame, target):
            target.add_(from_key_frame(frame, tiling, layout.key_grid, samples))


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    jobs: list[Job],
    layout: Layout,
    bias: RelativeBias | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of a tiled pattern, differentiable in all inputs and in both outputs.

    Args:
        q: `(B, *query_grid, H, D)`.
        k: `(B, *key_grid, K, D)`.
        v: `(B, *key_grid, K, E)`.
        scale: factor on the logits.
        jobs: the pattern's disjoint terms with their tilings.
        layout: sizes of the call.
        bias: relative position bias, or None.

    Returns:
        Output `(B, *query_grid, H, E)` in the dtype of `q`, and the log-sum-exp of the scaled logits
        `(B, *query_grid, H)`, -inf where a query sees nothing, in float32 or float64.
    """
    table, dilation = (None, 1) if bias is None else (bias.table, bias.dilation)
    out, lse = _Tiled.apply(q, k, v, table, scale, jobs, layout, dilation)  # type: ignore[no-untyped-call]
    return out, lse
