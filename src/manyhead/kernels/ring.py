"""Ring attention: exact attention of one sequence spread over processes, under any pattern.

Li et al., 'Sequence Parallelism', 2021, arXiv 2105.13120, with online softmax instead of stored rows:
keys and values travel around the ring, each process merges what its queries see of them, and in the
backward pass the gradients of keys and values travel with them and arrive at home after N steps.
Tiles that a pattern leaves empty are skipped, those that it fills are not masked.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError, optional
from manyhead.grid import Grid, as_grid, coordinates
from manyhead.kernels.frames import compute_dtype
from manyhead.kernels.rings import Ring, default_ring
from manyhead.kernels.shards import Layout, positions
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


def _tile_logits(
    q: Tensor, k: Tensor, scale: float, mask: Tensor | None
) -> Tensor:  # q (B, K, G, queries, D), k (B, K, 1, keys, D)
    logits = (q * scale) @ k.transpose(-1, -2)
    return logits if mask is None else logits.masked_fill(~mask, -math.inf)


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

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, source: int, out: Tensor, lse: Tensor
    ) -> None:
        """Merge attention to the keys of a source into `out` and `lse`."""
        for rows, columns, mask in self.tiles(source, q.device):
            logits = _tile_logits(q[..., rows, :], k[..., columns, :], scale, mask)
            new = torch.logsumexp(logits.masked_fill_(logits == -math.inf, -1e30), -1)
            new = new.masked_fill(new < -1e29, -math.inf)
            safe = new.masked_fill(new == -math.inf, 0.0)
            part = torch.exp(logits.sub_(safe[..., None])) @ v[..., columns, :]
            old = lse[..., rows]
            both = torch.logaddexp(old, new)
            steady = both.masked_fill(both == -math.inf, 0.0)
            out[..., rows, :] = (
                out[..., rows, :] * torch.exp(old - steady)[..., None]
                + part * torch.exp(new - steady)[..., None]
            )
            lse[..., rows] = both

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
        for rows, columns, mask in self.tiles(source, q.device):
            query, key = q[..., rows, :], k[..., columns, :]
            logits = _tile_logits(query, key, scale, mask)
            weights = torch.exp(logits.sub_(lse[..., rows][..., None]))
            gradient = upstream[..., rows, :]
            d_v[..., columns, :] += (weights.transpose(-1, -2) @ gradient).sum(2, keepdim=True)
            d_logits = (gradient @ v[..., columns, :].transpose(-1, -2)).sub_(delta[..., rows][..., None])
            d_logits = d_logits.mul_(weights).mul_(scale)
            d_q[..., rows, :] += d_logits @ key
            d_k[..., columns, :] += (d_logits.transpose(-1, -2) @ query).sum(2, keepdim=True)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, work: _Shard, ring: Ring
    ) -> tuple[Tensor, Tensor]:
        # q (B, K, G, s, D), k and v (B, K, 1, s, D), all of this process
        out = q.new_zeros(*q.shape[:-1], v.shape[-1])
        lse = q.new_full(q.shape[:-1], -math.inf)
        keys, values = k, v
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            wait = None
            if step + 1 < ring.size:  # the next keys travel while these are used
                tokens = work.pieces[(source - 1) % ring.size].places[0].shape[0]
                shapes = [(*x.shape[:-2], tokens, x.shape[-1]) for x in (keys, values)]
                wait = ring.shift([keys, values], shapes)
            work.forward(q, keys, values, scale, source, out, lse)
            if wait is not None:
                keys, values = wait()
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
        d_q, keys, values = torch.zeros_like(q), k, v
        d_keys, d_values = torch.zeros_like(k), torch.zeros_like(v)
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            work.backward((q, keys, values, upstream), lse, delta, ctx.scale, source, (d_q, d_keys, d_values))
            tokens = work.pieces[(source - 1) % ring.size].places[0].shape[0]
            travelling = [d_keys, d_values] + ([keys, values] if step + 1 < ring.size else [])
            shapes = [(*x.shape[:-2], tokens, x.shape[-1]) for x in travelling]
            arrived = ring.shift(travelling, shapes)()
            d_keys, d_values = arrived[:2]  # after N steps those of this process's own keys
            if step + 1 < ring.size:
                keys, values = arrived[2:]
        return d_q, d_keys, d_values, None, None, None


class _Exchange(torch.autograd.Function):
    """Send one tensor to every process; the gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, ring: Ring, shapes: list[tuple[int, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ring, ctx.shapes = ring, [tuple(x.shape) for x in tensors]
        return tuple(x.clone() for x in ring.exchange(tensors, shapes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return (None, None, *ctx.ring.exchange(gradients, ctx.shapes))


def _ulysses(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    grid: Grid,
    scale: float,
    ring: Ring,
    spread: list[Any],
    lse: bool,
) -> Any:
    """Heads instead of tokens per process inside attention: two exchanges around any local attention."""
    from manyhead.attention import attend

    if k.shape[-2] < ring.size:
        raise InputError(
            f"the engine 'ulysses' needs a key head per process, got {k.shape[-2]} for {ring.size}"
        )
    groups = q.shape[-2] // k.shape[-2]
    parts = np.array_split(np.arange(k.shape[-2]), ring.size)
    order = np.concatenate(spread)
    back, forth = torch.as_tensor(np.argsort(order)), torch.as_tensor(order)

    def to_heads(x: Tensor, per_key: int) -> Tensor:
        slices = [x[:, :, p[0] * per_key : (p[-1] + 1) * per_key] for p in parts]
        mine = len(parts[ring.rank]) * per_key
        shapes = [(x.shape[0], len(where), mine, x.shape[-1]) for where in spread]
        got = _Exchange.apply(ring, shapes, *slices)  # type: ignore[no-untyped-call]
        return torch.cat(got, 1).index_select(1, back.to(x.device))

    def to_tokens(x: Tensor) -> Tensor:
        x = x.index_select(1, forth.to(x.device))
        slices = x.split([len(where) for where in spread], 1)
        tokens = len(spread[ring.rank])
        shapes = [(x.shape[0], tokens, len(p) * groups, x.shape[-1]) for p in parts]
        return torch.cat(_Exchange.apply(ring, shapes, *slices), 2)  # type: ignore[no-untyped-call]

    shape = (q.shape[0], *grid)
    q, k, v = to_heads(q, groups), to_heads(k, 1), to_heads(v, 1)
    q, k, v = (x.reshape(*shape, *x.shape[2:]) for x in (q, k, v))
    out, norm = attend(q, k, v, pattern, scale=scale, return_lse=True)
    out = to_tokens(out.flatten(1, -3))
    return (out, to_tokens(norm.flatten(1, -2)[..., None])[..., 0]) if lse else out


def _all_gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    grid: Grid,
    scale: float,
    ring: Ring,
    spread: list[Any],
    lse: bool,
) -> Any:
    """Every process gets all keys and values, for its own queries."""
    from manyhead.attention import attend
    from manyhead.pattern import Chosen

    back = torch.as_tensor(np.argsort(np.concatenate(spread)), device=q.device)

    def everyone(x: Tensor) -> Tensor:
        shapes = [(x.shape[0], len(where), *x.shape[2:]) for where in spread]
        got = _Exchange.apply(ring, shapes, *[x] * ring.size)  # type: ignore[no-untyped-call]
        x = torch.cat(got, 1).index_select(1, back)
        return x.reshape(x.shape[0], *grid, *x.shape[2:])

    chosen = Chosen(pattern, tuple(int(p) for p in spread[ring.rank]))
    return attend(q, everyone(k), everyone(v), chosen, scale=scale, return_lse=lse)


def ring_scores(q: Tensor, k: Tensor, ring: Ring) -> Tensor:
    """Ring self-attention of the paper, first half: rows of scores from travelling keys.

    Args:
        q: `(B, s, H, D)` of this process; shards are contiguous and equal.
        k: likewise.
        ring: the processes.

    Returns:
        Unscaled scores `(B, H, s, L)` against the keys of all processes, differentiable.
    """
    shapes = [tuple(k.shape)] * ring.size
    keys = torch.cat(_Exchange.apply(ring, shapes, *[k] * ring.size), 1)  # type: ignore[no-untyped-call]
    return torch.einsum("bqhd,bkhd->bhqk", q, keys)


def _rsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    grid: Grid,
    scale: float,
    ring: Ring,
    spread: list[Any],
    lse: bool,
) -> Any:
    """The paper's two rings: full rows of scores are stored, then values travel."""
    where = torch.as_tensor(np.concatenate(spread))
    mine = torch.as_tensor(spread[ring.rank])
    query = tuple(axis[:, None].to(q.device) for axis in coordinates(mine, grid))
    key = tuple(axis[None].to(q.device) for axis in coordinates(where, grid))
    mask = pattern.sees(query, key, Place(grid, grid))
    groups = q.shape[-2] // k.shape[-2]
    k, v = (x.repeat_interleave(groups, 2) for x in (k, v))
    if len({len(part) for part in spread}) > 1:
        raise InputError("the engine 'rsa' needs equal shards")
    scores = (ring_scores(q, k, ring) * scale).masked_fill(~mask, -math.inf)
    norm = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - norm.masked_fill(norm == -math.inf, 0.0)[..., None])
    shapes = [tuple(v.shape)] * ring.size
    values = torch.cat(_Exchange.apply(ring, shapes, *[v] * ring.size), 1)  # type: ignore[no-untyped-call]
    out = torch.einsum("bhqk,bkhd->bqhd", weights, values)
    return (out, norm.transpose(1, 2)) if lse else out


def _torch_context_parallel(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, grid: Grid, scale: float
) -> Any:
    """PyTorch's own context parallelism, on CUDA, for full and causal attention."""
    if not q.is_cuda:
        raise InputError("the engine 'torch-cp' runs on CUDA only; the engine 'native' runs here")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import _attention as experimental

    size = torch.distributed.get_world_size()
    causal = pattern.same(_causal(), grid) if len(grid) == 1 else False
    if not causal and pattern != Everything():
        raise InputError("the engine 'torch-cp' takes Everything() and 1-D Causal() only")
    mesh = init_device_mesh("cuda", (size,))
    with experimental._context_parallel(1, mesh):  # type: ignore[attr-defined]
        query, key, value = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale
        )
    return out.transpose(1, 2)


def _causal() -> Pattern:
    from manyhead.pattern import Causal

    return Causal()


def _ring_flash(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float, layout: Layout, ring: Ring
) -> Any:
    """The public CUDA rings of zhuzilin/ring-flash-attention."""
    if not q.is_cuda:
        raise InputError("the engine 'ring-flash-attn' runs on CUDA only; the engine 'native' runs here")
    package = optional("ring_flash_attn", "cuda")
    names = {"contiguous": "ring_flash_attn_func", "zigzag": "zigzag_ring_flash_attn_func"}
    run = getattr(package, names.get(layout, "stripe_flash_attn_func"))
    return run(q, k, v, softmax_scale=scale, causal=pattern == _causal(), group=getattr(ring, "group", None))


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
            'ulysses' (heads are exchanged for tokens), 'all-gather', 'torch-cp' and 'ring-flash-attn'
            (CUDA).
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
    if engine == "torch-cp":
        return _torch_context_parallel(q, k, v, pattern, sizes, scale)
    if engine == "ring-flash-attn":
        return _ring_flash(q, k, v, pattern, scale, layout, ring)
    others = {"ulysses": _ulysses, "all-gather": _all_gather, "rsa": _rsa}
    if engine in others:
        return others[engine](q, k, v, pattern, sizes, scale, ring, spread, return_lse)
    if engine != "native":
        raise InputError(
            f"engine is 'native', 'torch-cp', 'ring-flash-attn' or one of {', '.join(others)}; got {engine!r}"
        )
    dtype, heads = compute_dtype(q.dtype), k.shape[-2]
    work = _Shard(pattern, sizes, spread, ring.rank)
    query = q.to(dtype).reshape(*q.shape[:2], heads, -1, q.shape[-1])
    query = query.permute(0, 2, 3, 1, 4).contiguous()  # (B, K, G, s, D)
    key, value = (x.to(dtype).transpose(1, 2)[:, :, None].contiguous() for x in (k, v))
    out, lse = _Ring.apply(query, key, value, scale, work, ring)  # type: ignore[no-untyped-call]
    out = out.permute(0, 3, 1, 2, 4).flatten(2, 3).to(q.dtype)
    return (out, lse.permute(0, 3, 1, 2).flatten(2)) if return_lse else out
