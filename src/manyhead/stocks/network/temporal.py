"""The low frequencies' view of time: every stock's days attend to its days so far.

Ma et al., 'Stockformer', 2024, arXiv 2401.06139, section 3.2; released code's reading. With y = x + te:

    A = softmax over days so far of Q K' / sqrt(d),  z = LN(Linear(A V) + y),  output LN(FF(z) + z)
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from manyhead.stocks.network.layers import (
    FeedForward,
    affine,
    affine_backward,
    cast,
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


def causal_forward(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Every day of a stock attends to that stock's days up to itself.

    Args:
        qkv: `(batch, days, stocks, 3 * dim)`.
        scale: multiplies the scores.

    Returns:
        The mixtures `(batch, days, stocks, dim)`, and what `causal_backward` needs: query, key and value by
        stock, `(3, batch * stocks, days, dim)`, and the weights `(batch * stocks, days, days)`.
    """
    batch, days = qkv.shape[:2]
    # One copy, so that the many small products below read contiguous memory.
    parts = rearrange(qkv, "b t n (p d) -> p (b n) t d", p=3).contiguous()
    query, key, value = parts
    # Scores are few: at least float32, in which the functions of so short rows are faster, too.
    weights = torch.bmm(query, key.mT).to(torch.promote_types(qkv.dtype, torch.float32))
    later = later_days(days, qkv.device).to(weights.dtype)
    weights.mul_((1 - later) * scale).add_(later * MASKED)  # much faster than `masked_fill_`
    torch._softmax(weights, -1, False, out=weights)
    mixed = rearrange(torch.bmm(cast(weights, value), value), "(b n) t d -> b t n d", b=batch)
    return mixed.contiguous(), parts, weights


def causal_backward(grad: Tensor, parts: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Gradient of qkv, `(batch, days, stocks, 3 * dim)`, from that of the mixtures."""
    query, key, value = parts
    mixed = rearrange(grad, "b t n d -> (b n) t d").contiguous()
    flow = cast(torch.bmm(mixed, value.mT), weights)
    torch._softmax_backward_data(flow, weights, -1, weights.dtype, grad_input=flow)
    flow = cast(flow.mul_(scale), grad)
    grads = torch.empty_like(parts)
    torch.bmm(flow, key, out=grads[0])
    torch.bmm(flow.mT, query, out=grads[1])
    torch.bmm(cast(weights, grad).mT, mixed, out=grads[2])
    return rearrange(grads, "p (b n) t d -> b t n (p d)", b=len(grad)).contiguous()


class _TemporalBlock(torch.autograd.Function):
    """Low frequencies' step from x, te and the weights of qkv, out, first and second; see the file's head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, te: Tensor, scale: float, *weights: Tensor) -> Tensor:
        qkv_w, qkv_b, out_w, out_b, first_w, first_b, second_w, second_b = weights
        dim = x.shape[-1]
        y = (x + te).view(-1, dim)
        qkv = affine(y, qkv_w, qkv_b).view(*x.shape[:-1], 3 * dim)
        mixed, parts, attention = causal_forward(qkv, scale)
        mixed = mixed.view(-1, dim)
        z, spread = norm(affine(mixed, out_w, out_b).add_(y))
        inner = affine(z, first_w, first_b).relu_()
        out, out_spread = norm(affine(inner, second_w, second_b).add_(z))
        out = out.view(x.shape)
        ctx.save_for_backward(
            y, parts, attention, mixed, z, spread, inner, out, out_spread, qkv_w, out_w, first_w, second_w
        )
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, parts, attention, mixed, z, spread, inner, out, out_spread, *weights = ctx.saved_tensors
        qkv_w, out_w, first_w, second_w = weights
        shape, dim = grad.shape, grad.shape[-1]
        flow = norm_backward(grad.reshape(-1, dim), out.view(-1, dim), out_spread)
        second = affine_backward(flow, inner)
        narrow = relu_backward_(flow @ second_w, inner)
        first = affine_backward(narrow, z)
        flow = norm_backward(flow.addmm_(narrow, first_w), z, spread)
        output = affine_backward(flow, mixed)
        grad_qkv = causal_backward((flow @ out_w).view(shape), parts, attention, ctx.scale).view(-1, 3 * dim)
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
