"""Other ways to attend over processes than the native ring: the paper's, exchanges, and other packages.

Li et al., 'Sequence Parallelism', 2021, arXiv 2105.13120 ('rsa'); Jacobs et al., 'DeepSpeed Ulysses', 2023,
arXiv 2309.14509 ('ulysses'). The two for CUDA hand the call to code outside of this package.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError, optional
from manyhead.grid import Grid, coordinates
from manyhead.kernels.rings import Ring
from manyhead.kernels.shards import Layout
from manyhead.pattern import Causal, Chosen, Everything, Pattern
from manyhead.pattern.base import Place


@dataclass(frozen=True)
class Call:
    """One call of `ring_attend`, without its tensors.

    Args:
        pattern: who sees whom on the whole grid.
        grid: grid of all tokens.
        scale: factor on the logits.
        ring: the processes.
        spread: flat positions of the tokens of every process.
        layout: how tokens are spread.
        lse: whether the log-sum-exp is asked for.
    """

    pattern: Pattern
    grid: Grid
    scale: float
    ring: Ring
    spread: list[Any]
    layout: Layout
    lse: bool


class _Exchange(torch.autograd.Function):
    """Send one tensor to every process; the gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, ring: Ring, shapes: list[tuple[int, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ring, ctx.shapes = ring, [tuple(x.shape) for x in tensors]
        return tuple(x.clone() for x in ring.exchange(tensors, shapes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return (None, None, *ctx.ring.exchange(gradients, ctx.shapes))


def _ulysses(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Any:
    """Heads instead of tokens per process inside attention: two exchanges around any local attention."""
    from manyhead.attention import attend

    if k.shape[-2] < call.ring.size:
        raise InputError(
            f"the engine 'ulysses' needs a key head per process, got {k.shape[-2]} for {call.ring.size}"
        )
    groups = q.shape[-2] // k.shape[-2]
    parts = np.array_split(np.arange(k.shape[-2]), call.ring.size)
    order = np.concatenate(call.spread)
    back, forth = torch.as_tensor(np.argsort(order)), torch.as_tensor(order)

    def to_heads(x: Tensor, per_key: int) -> Tensor:
        slices = [x[:, :, p[0] * per_key : (p[-1] + 1) * per_key] for p in parts]
        mine = len(parts[call.ring.rank]) * per_key
        shapes = [(x.shape[0], len(where), mine, x.shape[-1]) for where in call.spread]
        got = _Exchange.apply(call.ring, shapes, *slices)  # type: ignore[no-untyped-call]
        return torch.cat(got, 1).index_select(1, back.to(x.device))

    def to_tokens(x: Tensor) -> Tensor:
        x = x.index_select(1, forth.to(x.device))
        slices = x.split([len(where) for where in call.spread], 1)
        tokens = len(call.spread[call.ring.rank])
        shapes = [(x.shape[0], tokens, len(p) * groups, x.shape[-1]) for p in parts]
        return torch.cat(_Exchange.apply(call.ring, shapes, *slices), 2)  # type: ignore[no-untyped-call]

    shape = (q.shape[0], *call.grid)
    q, k, v = to_heads(q, groups), to_heads(k, 1), to_heads(v, 1)
    q, k, v = (x.reshape(*shape, *x.shape[2:]) for x in (q, k, v))
    out, norm = attend(q, k, v, call.pattern, scale=call.scale, return_lse=True)
    out = to_tokens(out.flatten(1, -3))
    return (out, to_tokens(norm.flatten(1, -2)[..., None])[..., 0]) if call.lse else out


def _all_gather(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Any:
    """Every process gets all keys and values, for its own queries."""
    from manyhead.attention import attend

    back = torch.as_tensor(np.argsort(np.concatenate(call.spread)), device=q.device)

    def everyone(x: Tensor) -> Tensor:
        shapes = [(x.shape[0], len(where), *x.shape[2:]) for where in call.spread]
        got = _Exchange.apply(call.ring, shapes, *[x] * call.ring.size)  # type: ignore[no-untyped-call]
        x = torch.cat(got, 1).index_select(1, back)
        return x.reshape(x.shape[0], *call.grid, *x.shape[2:])

    chosen = Chosen(call.pattern, tuple(int(p) for p in call.spread[call.ring.rank]))
    return attend(q, everyone(k), everyone(v), chosen, scale=call.scale, return_lse=call.lse)


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


def _rsa(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Any:
    """The paper's two rings: full rows of scores are stored, then values travel."""
    where = torch.as_tensor(np.concatenate(call.spread))
    mine = torch.as_tensor(call.spread[call.ring.rank])
    query = tuple(axis[:, None].to(q.device) for axis in coordinates(mine, call.grid))
    key = tuple(axis[None].to(q.device) for axis in coordinates(where, call.grid))
    mask = call.pattern.sees(query, key, Place(call.grid, call.grid))
    groups = q.shape[-2] // k.shape[-2]
    k, v = (x.repeat_interleave(groups, 2) for x in (k, v))
    if len({len(part) for part in call.spread}) > 1:
        raise InputError("the engine 'rsa' needs equal shards")
    scores = (ring_scores(q, k, call.ring) * call.scale).masked_fill(~mask, -math.inf)
    norm = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - norm.masked_fill(norm == -math.inf, 0.0)[..., None])
    shapes = [tuple(v.shape)] * call.ring.size
    values = torch.cat(_Exchange.apply(call.ring, shapes, *[v] * call.ring.size), 1)  # type: ignore[no-untyped-call]
    out = torch.einsum("bhqk,bkhd->bqhd", weights, values)
    return (out, norm.transpose(1, 2)) if call.lse else out


def _torch_context_parallel(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Any:
    """PyTorch's own context parallelism, a prototype for CUDA kernels: full and 1-D causal attention.

    Written after PyTorch 2.13 and not run on a GPU for want of one. On CPU its attention without a mask
    equals the native ring on two processes; causal attention and backward passes it refuses there.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise InputError(
            "the engine 'torch-cp' gives no gradients: PyTorch's context has to span the backward pass too; "
            "the engine 'native' gives them"
        )
    if not q.is_cuda:
        raise InputError(
            f"the engine 'torch-cp' runs on CUDA only, its attention has no kernel for {q.device.type}; "
            f"the engine 'native' runs here"
        )
    causal = len(call.grid) == 1 and call.pattern.same(Causal(), call.grid)
    if not causal and call.pattern != Everything():
        raise InputError(f"the engine 'torch-cp' takes Everything() and 1-D Causal(), got {call.pattern!r}")
    wanted = "zigzag" if causal else "contiguous"
    if call.layout != wanted:
        raise InputError(f"the engine 'torch-cp' needs the layout {wanted!r} here, got {call.layout!r}")
    return context_parallel_attention(q, k, v, call, causal=causal)


def context_parallel_attention(q: Tensor, k: Tensor, v: Tensor, call: Call, *, causal: bool) -> Tensor:
    """What the engine 'torch-cp' does on any device that PyTorch's kernels take."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.experimental import _attention, context_parallel

    mesh = DeviceMesh(q.device.type, list(range(call.ring.size)))
    # PyTorch takes its sizes from a buffer of the whole sequence
    places = torch.arange(math.prod(call.grid), device=q.device)
    balanced = _attention._cp_options.enable_load_balance
    _attention._cp_options.enable_load_balance = causal  # it has no other way to say it
    try:
        with context_parallel(mesh, buffers=[places], buffer_seq_dims=[0]):
            query, key, value = (x.transpose(1, 2) for x in (q, k, v))
            # by its full name, because the context replaces it there
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=causal, scale=call.scale
            )
    finally:
        _attention._cp_options.enable_load_balance = balanced
    return out.transpose(1, 2)


def _ring_flash(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Any:
    """The public CUDA rings of zhuzilin/ring-flash-attention."""
    if not q.is_cuda:
        raise InputError("the engine 'ring-flash-attn' runs on CUDA only; the engine 'native' runs here")
    package = optional("ring_flash_attn", "cuda")
    names = {"contiguous": "ring_flash_attn_func", "zigzag": "zigzag_ring_flash_attn_func"}
    run = getattr(package, names.get(call.layout, "stripe_flash_attn_func"))
    group = getattr(call.ring, "group", None)
    return run(q, k, v, softmax_scale=call.scale, causal=call.pattern == Causal(), group=group)


ENGINES: dict[str, Callable[[Tensor, Tensor, Tensor, Call], Any]] = {
    "rsa": _rsa,
    "ulysses": _ulysses,
    "all-gather": _all_gather,
    "torch-cp": _torch_context_parallel,
    "ring-flash-attn": _ring_flash,
}
