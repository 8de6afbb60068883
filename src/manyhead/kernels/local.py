"""The windows kernel as `attend` sees it: which patterns it takes and what its tiles cost."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid
from manyhead.kernels import windows
from manyhead.kernels.base import Bias, Kernel, Request
from manyhead.kernels.frames import Layout
from manyhead.kernels.masks import mask_entries
from manyhead.kernels.tiles import choose, cost
from manyhead.kernels.windows import Job, tiled_attention
from manyhead.pattern.base import Pattern
from manyhead.pattern.members import Chosen

PER_CHUNK = 0.015e-3  # seconds of slicing and calling, a chunk of tiles
PER_START = 0.5e-3  # seconds before the first chunk


@lru_cache(maxsize=128)
def jobs_of(
    pattern: Pattern, query_grid: Grid, key_grid: Grid, head_dim: int, groups: int
) -> tuple[Job, ...]:
    """Terms of a pattern with the tilings of least cost."""
    terms = pattern.terms(query_grid, key_grid)
    return tuple(Job(choose(term.reach, head_dim, groups), term.inside) for term in terms)


def _layout(request: Request) -> Layout:
    return Layout(request.batch, request.key_heads, request.groups, request.query_grid, request.key_grid)


def _contains_chosen(pattern: Pattern) -> bool:
    if isinstance(pattern, Chosen):
        return True
    inner = [getattr(pattern, name, None) for name in ("left", "right", "pattern")]
    inner += list(getattr(pattern, "patterns", ()))
    return any(_contains_chosen(part) for part in inner if isinstance(part, Pattern))


class Windows(Kernel):
    """Tiles with halos: gathers only the keys that a tile of queries sees."""

    name = "windows"
    relative = True

    def refusal(self, request: Request) -> str | None:
        if request.bias and not request.relative:
            return "the fused windows take no bias of all pairs; they take a RelativeBias"
        if len(request.query_grid) != len(request.key_grid):
            return (
                f"tiles need queries and keys of equally many axes, "
                f"got {request.query_grid} and {request.key_grid}"
            )
        if _contains_chosen(request.pattern):
            return "chosen queries have no tiles of their own"
        if request.relative and any(axis.ring for job in self._jobs(request) for axis in job.tiling.axes):
            return "a relative bias has no one offset for the keys of a box that reaches around the grid"
        return None

    def _jobs(self, request: Request) -> tuple[Job, ...]:
        return jobs_of(
            request.pattern, request.query_grid, request.key_grid, request.head_dim, request.groups
        )

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, request: Request, scale: float, bias: Bias
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(bias, Tensor):
            raise InputError("the windows kernel takes a RelativeBias, got a bias of all pairs")
        out, lse = tiled_attention(q, k, v, scale, list(self._jobs(request)), _layout(request), bias)
        return out, lse if request.lse else None

    def peak_bytes(self, request: Request) -> int:
        jobs = self._jobs(request)
        return max(self._job_bytes(job, request, later=number > 0) for number, job in enumerate(jobs))

    def _job_bytes(self, job: Job, request: Request, *, later: bool) -> int:
        """Frames of some rows and the arrays of one chunk, beside what earlier jobs have left."""
        size, layout, tiling = request.statsize, _layout(request), job.tiling
        budget = windows._budget(torch.device(request.device))
        rows = min(windows.rows_together(job, layout, budget), request.batch * request.key_heads)
        if rows >= request.key_heads:
            rows -= rows % request.key_heads
        places = tiling.classes * request.groups * math.prod(a.tiles * a.size for a in tiling.axes)
        frame_keys = rows * tiling.classes * math.prod(axis.frame for axis in tiling.axes)
        frame_queries = rows * places
        d, e = request.head_dim, request.value_dim
        tiles_total = 0
        for chunk in windows.chunks(job, layout, rows, budget):
            tiles = rows * tiling.classes * math.prod(chunk.counts)
            queries = tiles * request.groups * math.prod(tiling.tile)
            length = windows.parts(chunk, queries, budget)[0][1]
            keys = tiles * length * math.prod(chunk.widths[1:])
            logits = keys * request.groups * math.prod(tiling.tile)
            first = windows.parts(chunk, queries, budget)[0]
            mask = mask_entries(tiling, chunk, first) if job.inside is None else logits
            if request.relative:  # the entries of a kind of tiles, and their bias spread over the tiles
                mask += 2 * logits // max(1, math.prod(chunk.counts)) + logits
            if request.grad:
                arrays = max(2 * logits + keys * (2 * d + e), logits + mask + keys * d)
                arrays += queries * (d + e + 2)
            else:
                arrays = max(logits + keys * (d + e) + queries * e, logits + mask + keys * d)
                arrays += queries * d
            tiles_total = max(tiles_total, arrays)
        heads = request.batch * request.queries * request.heads
        fixed = request.out_bytes + heads * size
        if later and not request.grad:
            fixed += request.out_bytes + 2 * heads * size
        # frames of one sample, or of one head, that need no padding are views: of inputs, outputs, gradients
        single = rows <= request.key_heads or request.key_heads == 1
        single = single and tiling.classes == 1 and request.itemsize == size
        padded = any(axis.tiles * axis.size != axis.queries for axis in tiling.axes)
        wider = any(
            axis.ring or axis.frame != n for axis, n in zip(tiling.axes, request.key_grid, strict=True)
        )
        copied_queries = 0 if single and not padded else frame_queries
        copied_keys = 0 if single and not wider else frame_keys
        frames = copied_queries * (d + e + 1) + copied_keys * (d + e)
        if request.grad:
            frames = copied_queries * (2 * d + e + 2) + 2 * copied_keys * (d + e)
            fixed += request.gradient_bytes + 2 * heads * size
            if request.itemsize < size:
                fixed += 2 * heads * e * size
        return fixed + (frames + tiles_total) * size

    def seconds(self, request: Request) -> float:
        rows = request.batch * request.key_heads
        budget = windows._budget(torch.device(request.device))
        total = 0.0
        for job in self._jobs(request):
            single = cost(job.tiling, request.head_dim, request.groups) * 1e-9 * rows
            chunks = rows * job.tiling.logits * request.groups / budget
            single *= 3.0 if job.inside is not None else 1.0
            total += (single + PER_START + chunks * PER_CHUNK) * (2.7 if request.grad else 1.0)
        return total
