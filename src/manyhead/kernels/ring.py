"""Ring attention: exact attention of one sequence spread over processes, under any pattern.

Li et al., 'Sequence Parallelism', 2021, arXiv 2105.13120, with online softmax instead of stored rows:
keys and values travel around the ring, each process merges what its queries see of them, and in the
backward pass the gradients of keys and values travel with them and arrive at home after N steps.
Tiles that a pattern leaves empty are skipped, those that it fills are not masked.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid, as_grid, coordinates
from manyhead.kernels.frames import compute_dtype
from manyhead.kernels.ring_engines import ENGINES, Call
from manyhead.kernels.rings import Ring, default_ring
from manyhead.kernels.shards import Layout, positions
from manyhead.kernels.windows import LN2, LOG2E, LOWEST
from manyhead.pattern import Everything, Pattern
from manyhead.pattern.base import Place

TILE = 512  # queries and keys at a time
Engine = Literal["native", "rsa", "ulysses", "all-gather", "torch-cp", "ring-flash-attn"]


class Pieces:
    """Flat positions of one process, cut into runs of at most `TILE`, with their bounds per axis."""

    def __init__(self, where: Any, grid: Grid, pattern: Pattern) -> None:
        self.slices: list[slice] = []
        breaks = np.flatnonzero(np.abs(np.diff(where)) > max(1, int(np.median(np.diff(where))))) + 1
        for run in np.split(np.arange(len(where)), breaks):
            self.slices += [slice(run[i], min(run[-1] + 1, run[i] + TILE)) for i in range(0, len(run), TILE)]
        flat = torch.as_tensor(where)
        self.places = coordinates(flat, grid)
        arrays = [axis.numpy() for axis in self.places]
        self.first = [[int(axis[part].min()) for axis in arrays] for part in self.slices]
        self.last = [[int(axis[part].max()) for axis in arrays] for part in self.slices]
        reach = pattern.reach(grid, grid)
        self.boxes: list[list[tuple[int, int, int, int]]] | None = None
        if reach is not None and not any(axis.wrap for axis in reach):
            self.boxes = []
            for part in self.slices:
                bounds = []
                for axis, place in zip(reach, arrays, strict=True):
                    start, count = axis.start[place[part]], axis.count[place[part]]
                    end = start + (count - 1) * axis.step + 1
                    # where any query looks, and where all look without gaps
                    inner = (int(start.max()), int(end.min())) if axis.step == 1 else (1, 0)
                    bounds.append((int(start.min()), int(end.max()), *inner))
                self.boxes.append(bounds)

    def relation(self, query: int, other: "Pieces", key: int) -> Literal["none", "some", "all"]:
        """Whether a run of these queries sees nothing, something or everything of a run of keys."""
        if self.boxes is None:
            return "some"
        everything = True
        bounds = zip(self.boxes[query], other.first[key], other.last[key], strict=True)
        for (low, high, inner_low, inner_high), first, last in bounds:
            if last < low or first >= high:
                return "none"
            everything = everything and inner_low <= first and last < inner_high
        return "all" if everything else "some"


class _Shard:
    """What one process computes with the keys of one source."""

    def __init__(self, pattern: Pattern, grid: Grid, spread: list[Any], rank: int) -> None:
        self.pattern, self.grid, self.rank = pattern, grid, rank
        self.pieces = [Pieces(where, grid, pattern) for where in spread]

    def tiles(self, source: int, device: torch.device) -> Any:
        """Slices of queries and keys that see each other, with their masks `(..., queries, keys)`."""
        mine, theirs = self.pieces[self.rank], self.pieces[source]
        for i, rows in enumerate(mine.slices):
            for j, columns in enumerate(theirs.slices):
                relation = mine.relation(i, theirs, j)
                if relation == "none":
                    continue
                mask = None
                if relation == "some":
                    query = tuple(axis[rows, None].to(device) for axis in mine.places)
                    key = tuple(axis[None, columns].to(device) for axis in theirs.places)
                    mask = self.pattern.sees(query, key, Place(self.grid, self.grid))
                    if not bool(mask.any()):
                        continue
                yield rows, columns, mask

    def logits(
        self, q: Tensor, k: Tensor, scale: float, source: int
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Tiles of queries and keys with their logits in base 2, -inf where a query does not see a key.

        Args:
            q: `(B, K, G, s, D)` of this process.
            k: `(B, K, 1, s, D)` of the source.
            scale: factor on the logits.
            source: process whose keys these are.
        """
        q = q * (scale * LOG2E)  # see `windows` for the base
        for rows, columns, mask in self.tiles(source, q.device):
            logits = q[..., rows, :] @ k[..., columns, :].transpose(-1, -2)
            yield rows, columns, logits if mask is None else logits.masked_fill_(~mask, -math.inf)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, source: int, out: Tensor, lse: Tensor
    ) -> None:
        """Merge attention to the keys of a source into `out` and `lse`."""
        for rows, columns, logits in self.logits(q, k, scale, source):
            top = logits.amax(-1, keepdim=True).clamp_(min=LOWEST)
            weights = logits.sub_(top).exp2_()
            total = weights.sum(-1, keepdim=True)
            part = weights @ v[..., columns, :] / total.clamp(min=1e-30)
            new = (top + total.log2()).mul_(LN2)  # -inf where a query sees nothing
            old = lse[..., rows, None]
            both = torch.logaddexp(old, new)
            steady = both.masked_fill(both == -math.inf, 0.0)
            out[..., rows, :] = out[..., rows, :] * torch.exp(old - steady) + part * torch.exp(new - steady)
            lse[..., rows] = both[..., 0]

    def backward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor],
        lse: Tensor,
        delta: Tensor,
        scale: float,
        source: int,
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Add this process's share of the gradients of the keys of a source, and of its queries."""
        q, k, v, upstream = inputs
        d_q, d_k, d_v = gradients
        lse = lse * LOG2E
        for rows, columns, logits in self.logits(q, k, scale, source):
            weights = logits.sub_(lse[..., rows, None]).exp2_()
            gradient = upstream[..., rows, :]
            d_v[..., columns, :] += (weights.transpose(-1, -2) @ gradient).sum(2, keepdim=True)
            d_logits = (gradient @ v[..., columns, :].transpose(-1, -2)).sub_(delta[..., rows, None])
            d_logits = d_logits.mul_(weights).mul_(scale)
            d_q[..., rows, :] += d_logits @ k[..., columns, :]
            d_k[..., columns, :] += (d_logits.transpose(-1, -2) @ q[..., rows, :]).sum(2, keepdim=True)


def _pass_on(ring: Ring, work: _Shard, source: int, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Send tensors of a source to the next process; what is returned waits for those of the source before."""
    tokens = work.pieces[(source - 1) % ring.size].places[0].shape[0]
    return ring.shift(tensors, [(*x.shape[:-2], tokens, x.shape[-1]) for x in tensors])


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, work: _Shard, ring: Ring
    ) -> tuple[Tensor, Tensor]:
        # q (B, K, G, s, D), k and v (B, K, 1, s, D), all of this process
        out = q.new_zeros(*q.shape[:-1], v.shape[-1])
        lse = q.new_full(q.shape[:-1], -math.inf)
        held = [k, v]
        for step in range(ring.size):
            source, last = (ring.rank - step) % ring.size, step + 1 == ring.size
            # the next keys travel while these are used
            arrive = None if last else _pass_on(ring, work, source, held)
            work.forward(q, held[0], held[1], scale, source, out, lse)
            if arrive is not None:
                held = arrive()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.work, ctx.ring = scale, work, ring
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        ring, work = ctx.ring, ctx.work
        upstream = torch.zeros_like(out) if upstream is None else upstream.contiguous()
        delta = (upstream * out).sum(-1)
        if d_lse is not None:
            delta = delta - d_lse
        lse = lse.masked_fill(lse == -math.inf, 0.0)
        d_q, collected, held = torch.zeros_like(q), [torch.zeros_like(k), torch.zeros_like(v)], [k, v]
        for step in range(ring.size):
            source, last = (ring.rank - step) % ring.size, step + 1 == ring.size
            arrive = None if last else _pass_on(ring, work, source, held)
            gradients = (d_q, collected[0], collected[1])
            work.backward((q, held[0], held[1], upstream), lse, delta, ctx.scale, source, gradients)
            if arrive is not None:
                held = arrive()
            collected = _pass_on(ring, work, source, collected)()  # after N steps those of one's own keys
        return d_q, collected[0], collected[1], None, None, None


def ring_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    grid: int | tuple[int, ...] | None = None,
    *,
    ring: Ring | None = None,
    layout: Layout = "zigzag",
    scale: float | None = None,
    engine: Engine = "native",
    return_lse: bool = False,
) -> Any:
    """Exact attention of a sequence of which every process holds a shard.

    Args:
        q: this process's queries `(B, s, H, D)`, as `shards.shard` cuts them.
        k: its keys `(B, s, K, D)`, `K` dividing `H`.
        v: its values `(B, s, K, E)`.
        pattern: who sees whom on the whole grid, the same for all samples and heads.
        grid: grid of all tokens; 1-D with equal shards if left out.
        ring: the processes; the default process group, or this process alone, if left out.
        layout: how tokens are spread.
        scale: factor on the logits, `D ** -0.5` if left out.
        engine: 'native' (ring with online softmax), 'rsa' (the paper's, storing rows of scores),
            'ulysses' (heads are exchanged for tokens), 'all-gather'; on CUDA 'torch-cp' (PyTorch's own
            context parallelism) and 'ring-flash-attn'.
        return_lse: whether to return the log-sum-exp `(B, s, H)` too; not from the CUDA engines.

    Returns:
        Output `(B, s, H, E)` of this process's queries, differentiable.

    Raises:
        InputError: if the shapes do not fit the layout or the engine cannot run.
        LostPeer: if another process ends or does not answer.
    """
    ring = default_ring() if ring is None else ring
    pattern = Everything() if pattern is None else pattern
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.ndim != 4:
            raise InputError(f"{name} has the shape (batch, tokens, heads, head_dim), got {tuple(x.shape)}")
    if q.shape[-2] % k.shape[-2] or k.shape[:-1] != v.shape[:-1] or q.shape[1] != k.shape[1]:
        raise InputError(
            f"q, k and v have the tokens of one shard and key heads that divide the heads; got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    sizes = as_grid(q.shape[1] * ring.size if grid is None else grid)
    pattern.check(sizes, sizes)
    if pattern.samples or pattern.heads:
        raise InputError("a ring takes patterns that are the same for all samples and heads")
    spread = positions(math.prod(sizes), ring.size, layout)
    if q.shape[1] != len(spread[ring.rank]):
        raise InputError(
            f"process {ring.rank} of {ring.size} holds {len(spread[ring.rank])} tokens of {sizes} in layout "
            f"{layout!r}, got {q.shape[1]}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if engine in ENGINES:
        return ENGINES[engine](q, k, v, Call(pattern, sizes, scale, ring, spread, layout, return_lse))
    if engine != "native":
        raise InputError(f"engine is 'native' or one of {', '.join(ENGINES)}; got {engine!r}")
    dtype, heads = compute_dtype(q.dtype), k.shape[-2]
    work = _Shard(pattern, sizes, spread, ring.rank)
    query = q.to(dtype).reshape(*q.shape[:2], heads, -1, q.shape[-1])
    query = query.permute(0, 2, 3, 1, 4).contiguous()  # (B, K, G, s, D)
    key, value = (x.to(dtype).transpose(1, 2)[:, :, None].contiguous() for x in (k, v))
    out, lse = _Ring.apply(query, key, value, scale, work, ring)  # type: ignore[no-untyped-call]
    out = out.permute(0, 3, 1, 2, 4).flatten(2, 3).to(q.dtype)
    return (out, lse.permute(0, 3, 1, 2).flatten(2)) if return_lse else out
