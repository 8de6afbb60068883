"""Softmax averages over every prefix of a sequence at once, in O(N) work.

Feng et al., 'Attention as an RNN', 2024, arXiv 2405.13956, section 3.2: the triple (m, u, w) of a running
maximum, a sum of exponentials and a weighted sum of values, joined by an associative operator. The scan
here joins blocks of tokens instead of pairs: within a block by a triangular matrix product, between
blocks by the same function on the blocks' totals, so that the depth is log N to the base of a block.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64  # tokens joined by one matrix product; 64 k tokens then take three levels


class PrefixState(NamedTuple):
    """What a stream has seen: running maximum m and sum of exponentials u (...), values w (..., d).

    The average so far is w / u; the state of an empty stream is (-inf, 0, 0).
    """

    m: Tensor
    u: Tensor
    w: Tensor


def combine(left: PrefixState, right: PrefixState) -> PrefixState:
    """The associative operator of the paper: the state of two streams, one after the other."""
    m = torch.maximum(left.m, right.m)
    finite = m.masked_fill(m == -torch.inf, 0.0)  # -inf - -inf would be NaN where both are empty
    to_left, to_right = (left.m - finite).exp(), (right.m - finite).exp()
    return PrefixState(
        m,
        left.u * to_left + right.u * to_right,
        left.w * to_left[..., None] + right.w * to_right[..., None],
    )


def _sums(s: Tensor, x: Tensor, m: Tensor) -> Tensor:
    """X_i = sum over j <= i of exp(s_j - m_i) x_j, for running maxima m: no exponent is above zero."""
    batch, length = s.shape
    if length <= BLOCK:
        return _triangle(s, m) @ x
    spare = -length % BLOCK
    if spare:
        s = torch.nn.functional.pad(s, (0, spare), value=-torch.inf)
        x = torch.nn.functional.pad(x, (0, 0, 0, spare))
        m = torch.cat([m, m[:, -1:].expand(batch, spare)], 1)
    s, x, m = (t.reshape(batch, -1, BLOCK, *t.shape[2:]) for t in (s, x, m))
    within = _triangle(s, m) @ x
    top = m[..., -1]  # of the block and all before it
    before = _sums(top, within[..., -1, :], top)[:, :-1]
    carried = (top[:, :-1, None] - _finite(m[:, 1:])).exp()[..., None] * before[..., None, :]
    within = torch.cat([within[:, :1], within[:, 1:] + carried], 1)
    return within.flatten(1, 2)[:, :length]


def _finite(m: Tensor) -> Tensor:
    return m.masked_fill(m == -torch.inf, 0.0)


def _triangle(s: Tensor, m: Tensor) -> Tensor:
    """exp(s_j - m_i) for j <= i, else 0; (..., i, j)."""
    later = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=s.device).triu(1)
    return (s[..., None, :] - _finite(m)[..., :, None]).masked_fill_(later, -torch.inf).exp_()


class _PrefixSoftmax(torch.autograd.Function):
    """Averages and their log-normalisers; the adjoint is one scan from the right.

    With L_i the log-normaliser, dv_j = sum over i >= j of exp(s_j - L_i) g_i, and ds_j the same sum of
    g_i . (v_j - o_i) + dL_i. As L never falls, -L_j is the maximum of its suffix.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        m = s.cummax(1).values
        sums = _sums(s, torch.cat([v, torch.ones_like(v[..., :1])], -1), m)
        u = sums[..., -1]
        o = sums[..., :-1] / u.masked_fill(u == 0, 1.0)[..., None]
        lse = m + u.log()
        ctx.save_for_backward(s, v, o, lse)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, g_lse: Tensor) -> tuple[Tensor, Tensor]:
        s, v, o, lse = ctx.saved_tensors
        empty = lse == -torch.inf
        last = (g * o).sum(-1) - g_lse.masked_fill(empty, 0.0)
        key = (-lse).masked_fill(empty, -torch.inf).flip(1)
        top = key.cummax(1).values
        sums = _sums(key, torch.cat([g, last[..., None]], -1).flip(1), top).flip(1)
        scale = (s + top.flip(1)).exp()
        scaled = sums * scale[..., None]
        return (v * scaled[..., :-1]).sum(-1) - scaled[..., -1], scaled[..., :-1]


def prefix_softmax(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Average values over every prefix with weights softmax(s_1..s_i).

    Args:
        s: scores, `(..., length)`; -inf marks a token that is not there.
        v: values, `(..., length, d)`.

    Returns:
        The averages `(..., length, d)`, zero where a prefix is empty, and the log of the sums of
        exponentials `(..., length)`. Both are differentiable once.
    """
    length, wide = s.shape[-1], torch.promote_types(v.dtype, torch.float32)
    o, lse = _PrefixSoftmax.apply(  # type: ignore[no-untyped-call]
        s.reshape(-1, length).to(wide), v.reshape(-1, length, v.shape[-1]).to(wide)
    )
    return o.reshape(v.shape).to(v.dtype), lse.reshape(s.shape)


def prefix_states(s: Tensor, v: Tensor) -> PrefixState:
    """The states (m, u, w) after every token, each with the length as its last but one or last axis."""
    o, lse = prefix_softmax(s, v)
    m = s.detach().to(lse.dtype).cummax(-1).values
    u = (lse - _finite(m)).exp()
    return PrefixState(m, u, o * u[..., None])
