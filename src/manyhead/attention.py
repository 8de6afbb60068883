"""attend(): exact attention under a pattern on any device; `plan` says beforehand which kernel, at what cost.

Queries, keys and values are `(batch, *grid, heads, head_dim)`; the pattern says who sees whom; the
kernel never changes the result beyond rounding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from manyhead.errors import InputError
from manyhead.grid import Grid
from manyhead.kernels.base import Bias
from manyhead.kernels.frames import compute_dtype
from manyhead.kernels.relative import RelativeBias
from manyhead.pattern import Everything, Pattern, PerHead, PerSample
from manyhead.planning import (
    KERNELS,
    Plan,
    able_of,
    assert_plan,
    bias_of,
    crop,
    fastest_of,
    measure,
    named,
    parse_bytes,
    plan,
    request_of,
    shape_of,
)

__all__ = [
    "KERNELS",
    "Plan",
    "RelativeBias",
    "assert_plan",
    "attend",
    "measure",
    "merge",
    "parse_bytes",
    "plan",
]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    *,
    scale: float | None = None,
    bias: Bias = None,
    kernel: str = "auto",
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact softmax attention of the pairs that a pattern allows.

    Args:
        q: queries `(batch, *query_grid, heads, head_dim)`; under a border 'valid' also those of the
            whole key grid, of which the inner ones are taken.
        k: keys `(batch, *key_grid, key_heads, head_dim)`; `key_heads` divides `heads`, query head `j`
            uses key head `j // (heads / key_heads)`.
        v: values `(batch, *key_grid, key_heads, value_dim)`.
        pattern: who sees whom; everything, if left out.
        scale: factor on the logits, `head_dim ** -0.5` if left out.
        bias: added to the scaled logits: broadcastable to `(batch, heads, queries, keys)`, or a
            `RelativeBias`, which the kernel 'windows' takes without holding all pairs.
        kernel: 'auto', or one of 'reference', 'sdpa', 'blocks', 'windows', 'flex'.
        additional_keys: keys that every query sees besides, `(batch, extra, key_heads, head_dim)`.
        additional_values: their values, `(batch, extra, key_heads, value_dim)`.
        return_lse: whether to return the log-sum-exp of the logits too.

    Returns:
        Output `(batch, *query_grid, heads, value_dim)`, zero where a query sees nothing; with
        `return_lse` also the natural log-sum-exp `(batch, *query_grid, heads)`, there -inf.

    Raises:
        InputError: if shapes, dtypes, devices or the pattern do not fit, or the kernel cannot run.
    """
    pattern = Everything() if pattern is None else pattern
    q = crop(q, k, pattern)
    extra = additional_keys is not None or additional_values is not None
    request = request_of(q, k, v, pattern, bias, return_lse or extra, None)
    scale = request.head_dim**-0.5 if scale is None else float(scale)
    if extra:
        return _with_additional(
            q, k, v, pattern, scale, bias, kernel, (additional_keys, additional_values), return_lse
        )
    if isinstance(pattern, PerHead | PerSample) and kernel in ("auto", "windows", "blocks") and bias is None:
        return _by_member(q, k, v, pattern, scale, kernel, return_lse)
    able, refusals = able_of(request)
    chosen = fastest_of(request, able)[0] if kernel == "auto" else named(kernel, refusals)
    out, lse = KERNELS[chosen].run(q, k, v, request, scale, bias_of(chosen, bias, request))
    return (out, lse) if return_lse and lse is not None else out


def _by_member(
    q: Tensor, k: Tensor, v: Tensor, pattern: PerHead | PerSample, scale: float, kernel: str, lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Heads or samples of one pattern together, then put back in order."""
    heads = isinstance(pattern, PerHead)
    groups = q.shape[-2] // k.shape[-2]
    outs, norms, order = [], [], []
    for member in dict.fromkeys(pattern.patterns):
        index = [number for number, other in enumerate(pattern.patterns) if other == member]
        order += index
        picked = torch.tensor(index, device=q.device)
        if heads:
            mine, keys, values = (
                x.index_select(-2, at)
                for x, at in ((q, picked), (k, picked // groups), (v, picked // groups))
            )
        else:
            mine, keys, values = (x.index_select(0, picked) for x in (q, k, v))
        found = attend(mine, keys, values, member, scale=scale, kernel=kernel, return_lse=lse)
        outs.append(found[0] if isinstance(found, tuple) else found)
        if isinstance(found, tuple):
            norms.append(found[1])
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=q.device)
    out = torch.cat(outs, -2 if heads else 0).index_select(-2 if heads else 0, back)
    if not lse:
        return out
    return out, torch.cat(norms, -1 if heads else 0).index_select(-1 if heads else 0, back)


def _with_additional(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    scale: float,
    bias: Bias,
    kernel: str,
    additional: tuple[Tensor | None, Tensor | None],
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over the pattern and over keys that everyone sees, merged."""
    keys, values = additional
    if keys is None or values is None:
        raise InputError("additional_keys and additional_values are given together")
    for name, x, like in (("additional_keys", keys, k), ("additional_values", values, v)):
        wanted = (like.shape[0], "extra", *like.shape[-2:])
        if x.ndim != 4 or x.shape[0] != like.shape[0] or x.shape[-2:] != like.shape[-2:]:
            raise InputError(f"{name} has the shape {wanted}, got {shape_of(x)}")
    grid: Grid = tuple(q.shape[1:-2])
    first = attend(q, k, v, pattern, scale=scale, bias=bias, kernel=kernel, return_lse=True)
    flat = q.flatten(1, -3)
    second = attend(flat, keys, values, Everything(), scale=scale, return_lse=True)
    same = [x.reshape(x.shape[0], *grid, *x.shape[2:]) for x in second]
    out, lse = merge([first[0], same[0]], [first[1], same[1]])
    return (out, lse) if return_lse else out


def merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join attentions of the same queries over disjoint sets of keys.

    Hassani et al., 2025, arXiv 2504.16922: `o <- o - sigmoid(l_i - l) (o - o_i)` and
    `l <- l - logsigmoid(l - l_i)`, with the old `l` in both; equal to softmax over the union.

    Args:
        outputs: each `(..., value_dim)`.
        lses: the log-sum-exp of each, `(...)`; -inf where a query sees nothing.

    Returns:
        Output in the dtype of the first, and its log-sum-exp.

    Raises:
        InputError: if there is nothing to merge, or shapes differ.
    """
    if not outputs or len(outputs) != len(lses):
        raise InputError(
            f"merge takes as many outputs as lses, at least one; got {len(outputs)} and {len(lses)}"
        )
    for out, lse in zip(outputs, lses, strict=True):
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise InputError(
                f"outputs have one shape and lses that without its last axis; "
                f"got {shape_of(out)} and {shape_of(lse)}"
            )
    dtype = compute_dtype(outputs[0].dtype)
    out, lse = outputs[0].to(dtype), lses[0].to(dtype)
    for other, other_lse in zip(outputs[1:], lses[1:], strict=True):
        other_lse = other_lse.to(dtype)
        neither = (lse == -math.inf) & (other_lse == -math.inf)
        # differences of infinities are undefined: where neither part sees a key nothing changes
        gap = (other_lse.masked_fill(neither, 0.0)) - lse.masked_fill(neither, 0.0)
        out = out - torch.sigmoid(gap)[..., None] * (out - other.to(dtype))
        lse = torch.where(gap == math.inf, other_lse, lse - logsigmoid(-gap))
    return out.to(outputs[0].dtype), lse
