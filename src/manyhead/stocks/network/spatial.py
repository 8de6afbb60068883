"""Attention over the stocks of a day, one per branch and layer: mix, copy, normalise, feed forward.

Ma et al., 'Stockformer', 2024, arXiv 2401.06139, section 3.3; released code's reading. With y = x + position:

    s = FF(LN(Linear(C') + y)),    C' the copied mixtures of y (see copying.py)
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from manyhead.stocks.network.copying import (
    attend,
    copy_backward,
    copy_forward,
    flatten,
    hidden_stocks,
    unflatten,
)
from manyhead.stocks.network.layers import (
    FeedForward,
    affine,
    affine_backward,
    linear,
    norm,
    norm_backward,
    parameters,
    relu_backward_,
)


class _SpatialBlock(torch.autograd.Function):
    """s from x, position and the weights of qkv, out, first and second; see the file's head."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        position: Tensor,
        scale: float,
        hidden: Tensor | None,
        keep: bool,
        *weights: Tensor,
    ) -> Tensor:
        qkv_w, qkv_b, out_w, out_b, first_w, first_b, second_w, second_b = weights
        stocks, dim = x.shape[-2:]
        y = (x + position).view(-1, dim)
        qkv = affine(y, qkv_w, qkv_b)
        mixed, _, copied = copy_forward(qkv.view(-1, stocks, 3 * dim), scale, hidden, keep)
        mixed = mixed.view(-1, dim)
        u, spread = norm(affine(mixed, out_w, out_b).add_(y))
        inner = affine(u, first_w, first_b).relu_()
        ctx.save_for_backward(
            y, qkv, mixed, u, spread, inner, hidden, qkv_w, out_w, first_w, second_w, *flatten(copied)
        )
        ctx.scale, ctx.position = scale, position.shape
        return affine(inner, second_w, second_b).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, qkv, mixed, u, spread, inner, hidden, *rest = ctx.saved_tensors
        qkv_w, out_w, first_w, second_w, *copied = rest
        shape, dim = grad.shape, grad.shape[-1]
        grad = grad.reshape(-1, dim)
        second = affine_backward(grad, inner)
        flow = relu_backward_(grad @ second_w, inner)
        first = affine_backward(flow, u)
        flow = norm_backward(flow @ first_w, u, spread)
        out = affine_backward(flow, mixed)
        stocks = shape[-2]
        grad_qkv = copy_backward(
            (flow @ out_w).view(-1, stocks, dim),
            qkv.view(-1, stocks, 3 * dim),
            unflatten(copied),
            ctx.scale,
            hidden,
        ).view(-1, 3 * dim)
        projections = affine_backward(grad_qkv, y)
        grad_y = flow.addmm_(grad_qkv, qkv_w).view(shape)
        grad_position = grad_y.sum_to_size(ctx.position) if ctx.needs_input_grad[1] else None
        return grad_y, grad_position, None, None, None, *projections, *out, *first, *second


class SpatialAttention(nn.Module):
    """One branch's attention over stocks with the copy step; see the file's head.

    Args:
        dim: width D.
        head_dim: the scores are divided by its root; the released code's `d` (its heads never split D).

    Shape:
        input `(batch, days, stocks, dim)`; position broadcastable to it; output like the input. The caller
        adds the input to the output.
    """

    unused_proj_weight: Tensor
    unused_proj_bias: Tensor

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed = FeedForward(dim, dim, dim)
        proj = nn.Linear(head_dim, 1)  # owned by the released model and never used: kept for its weights
        self.register_buffer("unused_proj_weight", proj.weight.detach())
        self.register_buffer("unused_proj_bias", proj.bias.detach())

    def forward(self, x: Tensor, position: Tensor, available: Tensor | None = None) -> Tensor:
        weights = parameters(self.qkv, self.out, self.feed.first, self.feed.second, like=x)
        hidden = hidden_stocks(None if available is None else available.flatten(0, 1))
        keep = torch.is_grad_enabled()
        s: Tensor = _SpatialBlock.apply(x, position, self.scale, hidden, keep, *weights)  # type: ignore[no-untyped-call]
        return s

    @torch.no_grad()
    def copies(self, x: Tensor, position: Tensor, available: Tensor | None = None) -> Tensor:
        """The row i* whose mixture each stock takes over, `(batch, days, stocks)`, int64."""
        hidden = hidden_stocks(None if available is None else available.flatten(0, 1))
        qkv = linear(x + position, self.qkv).flatten(0, 1)
        return copy_forward(qkv, self.scale, hidden, keep=False)[1].view(x.shape[:-1])

    @torch.no_grad()
    def mean_weights(self, x: Tensor, position: Tensor, available: Tensor | None = None) -> Tensor:
        """Attention averaged over batch and days, `(stocks, stocks)`: row n is what stock n receives.

        Row n of a day is A[i*(n)], the row that stock n copies. Days are visited one at a time.
        """
        hidden = hidden_stocks(None if available is None else available.flatten(0, 1))
        qkv = linear(x + position, self.qkv).flatten(0, 1)
        copied = copy_forward(qkv, self.scale, hidden, keep=False)[1]
        query, key, _ = qkv.chunk(3, -1)
        days, stocks, _ = query.shape
        mean = torch.zeros(stocks, stocks, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for day in range(days):
            asked = query[day, copied[day]].unsqueeze(0)
            unseen = None if hidden is None else hidden[day : day + 1]
            mean += attend(asked, key[day : day + 1], self.scale, unseen)[0]
        return mean / days
