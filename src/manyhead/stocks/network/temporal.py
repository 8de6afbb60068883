"""The low frequencies' view of time: every stock's days attend to its days so far.

Ma et al., 'Stockformer', 2024, arXiv 2401.06139, section 3.2; released code's reading. With y = x + te:

    A = softmax over days so far of Q K' / sqrt(d),  z = LN(Linear(A V) + y),  output LN(FF(z) + z)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from manyhead.stocks.network.layers import (
    FeedForward,
    affine,
    affine_backward,
    norm,
    norm_backward,
    parameters,
    relu_backward_,
)

WEEK, HORIZON = 5, 50  # lengths of the two one-hot codes of a day's temporal index
MASKED = -(2.0**15) + 1  # score of a day that must not be seen


def later_days(days: int, device: torch.device) -> Tensor:
    """`(days, days)` Booleans: the key's day comes after the query's."""
    return torch.ones(days, days, dtype=torch.bool, device=device).triu(1)


def _by_stock(x: Tensor) -> list[Tensor]:
    """`(batch, days, stocks, dim)` as one view `(stocks, days, dim)` per batch element; nothing moves."""
    return list(x.transpose(1, 2).unbind(0))


def causal_forward(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Every day of a stock attends to that stock's days up to itself.

    Args:
        qkv: `(batch, days, stocks, 3 * dim)`.
        scale: multiplies the scores.

    Returns:
        The mixtures `(batch, days, stocks, dim)` and the weights `(batch, stocks, days, days)`.
    """
    batch, days, stocks, width = qkv.shape
    out = qkv.new_empty(batch, days, stocks, width // 3)
    weights = qkv.new_empty(batch, stocks, days, days)
    query, key, value = (_by_stock(part) for part in qkv.chunk(3, -1))
    for q, k, w in zip(query, key, weights, strict=True):
        torch.baddbmm(w, q, k.mT, beta=0, alpha=scale, out=w)
    weights.masked_fill_(later_days(days, qkv.device), MASKED)
    torch._softmax(weights, -1, False, out=weights)
    buffer = qkv.new_empty(stocks, days, width // 3)  # a product into strided memory would run stock by stock
    for w, v, o in zip(weights, value, _by_stock(out), strict=True):
        o.copy_(torch.bmm(w, v, out=buffer))
    return out, weights


def causal_backward(grad: Tensor, qkv: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Gradient of qkv."""
    grad_qkv = torch.empty_like(qkv)
    flow = torch.empty_like(weights)
    query, key, value = (_by_stock(part) for part in qkv.chunk(3, -1))
    grad_query, grad_key, grad_value = (_by_stock(part) for part in grad_qkv.chunk(3, -1))
    buffer = torch.empty_like(grad[0].transpose(0, 1), memory_format=torch.contiguous_format)
    for g, v, w, f, gv in zip(_by_stock(grad), value, weights, flow, grad_value, strict=True):
        torch.bmm(g, v.mT, out=f)
        gv.copy_(torch.bmm(w.mT, g, out=buffer))
    torch._softmax_backward_data(flow, weights, -1, weights.dtype, grad_input=flow)
    flow.mul_(scale)
    for f, q, k, gq, gk in zip(flow, query, key, grad_query, grad_key, strict=True):
        gq.copy_(torch.bmm(f, k, out=buffer))
        gk.copy_(torch.bmm(f.mT, q, out=buffer))
    return grad_qkv


class _TemporalBlock(torch.autograd.Function):
    """Low frequencies' step from x, te and the weights of qkv, out, first and second; see the file's head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, te: Tensor, scale: float, *weights: Tensor) -> Tensor:
        qkv_w, qkv_b, out_w, out_b, first_w, first_b, second_w, second_b = weights
        dim = x.shape[-1]
        y = (x + te).view(-1, dim)
        qkv = affine(y, qkv_w, qkv_b)
        mixed, attention = causal_forward(qkv.view(*x.shape[:-1], 3 * dim), scale)
        mixed = mixed.view(-1, dim)
        z, spread = norm(affine(mixed, out_w, out_b).add_(y))
        inner = affine(z, first_w, first_b).relu_()
        out, out_spread = norm(affine(inner, second_w, second_b).add_(z))
        out = out.view(x.shape)
        ctx.save_for_backward(
            y, qkv, attention, mixed, z, spread, inner, out, out_spread, qkv_w, out_w, first_w, second_w
        )
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, qkv, attention, mixed, z, spread, inner, out, out_spread, *weights = ctx.saved_tensors
        qkv_w, out_w, first_w, second_w = weights
        shape, dim = grad.shape, grad.shape[-1]
        flow = norm_backward(grad.reshape(-1, dim), out.view(-1, dim), out_spread)
        second = affine_backward(flow, inner)
        narrow = relu_backward_(flow @ second_w, inner)
        first = affine_backward(narrow, z)
        flow = norm_backward(flow.addmm_(narrow, first_w), z, spread)
        output = affine_backward(flow, mixed)
        grad_qkv = causal_backward(
            (flow @ out_w).view(shape), qkv.view(*shape[:-1], 3 * dim), attention, ctx.scale
        ).view(-1, 3 * dim)
        projections = affine_backward(grad_qkv, y)
        grad_y = flow.addmm_(grad_qkv, qkv_w).view(shape)
        grad_te = grad_y.sum(2, keepdim=True) if ctx.needs_input_grad[1] else None
        return grad_y, grad_te, None, *projections, *output, *first, *second


class TemporalEmbedding(nn.Module):
    """A vector per day from its temporal index: one-hot(first mod 5) ++ one-hot(second mod 50), then FF.

    Shape:
        input `(batch, days, 2)` integers; output `(batch, days, 1, dim)`, to broadcast over stocks.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.feed = FeedForward(WEEK + HORIZON, dim, dim)

    def forward(self, te: Tensor, dtype: torch.dtype) -> Tensor:
        te = te.long()
        codes = torch.cat([F.one_hot(te[..., 0] % WEEK, WEEK), F.one_hot(te[..., 1] % HORIZON, HORIZON)], -1)
        vectors: Tensor = self.feed(codes.to(dtype))
        return vectors.unsqueeze(2)


class TemporalAttention(nn.Module):
    """Causal self-attention of each stock over its days, then a feed-forward layer, both with residuals.

    Shape:
        input `(batch, days, stocks, dim)`, te `(batch, days, 1, dim)`; output like the input.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed = FeedForward(dim, dim, dim, residual=True)

    def forward(self, x: Tensor, te: Tensor) -> Tensor:
        weights = parameters(self.qkv, self.out, self.feed.first, self.feed.second, like=x)
        out: Tensor = _TemporalBlock.apply(x, te, self.scale, *weights)  # type: ignore[no-untyped-call]
        return out
