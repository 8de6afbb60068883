"""The high frequencies' view of time: a convolution over today and yesterday.

Ma et al., 'Stockformer', 2024, arXiv 2401.06139, section 3.2; released code's reading (a convolutional
network of one level, without residual).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from manyhead.stocks.network.layers import affine, affine_backward, cast


def kept(like: Tensor, share: int) -> Tensor:
    """Ones, and zeros with probability share / 65536, shaped like `like`: from 16 random bits each."""
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    bits = bits.view(torch.int16)[: like.numel()].view(like.shape)
    return torch.ge(bits, share - 2**15, out=torch.empty_like(like))


class _Convolution(torch.autograd.Function):
    """relu of the two-day convolution of `(batch, days, stocks, dim)`, zeroed with probability share / 65536.

    A zeroed entry and one that the ReLU stops look the same, and have the same gradient: none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor, now: Tensor, bias: Tensor, share: int) -> Tensor:
        batch, _, stocks, dim = x.shape
        y = affine(x.reshape(-1, dim), now, bias).view(x.shape)
        late, early = y.view(batch, -1, dim)[:, stocks:], x.reshape(batch, -1, dim)[:, :-stocks]
        if early.numel():
            torch.baddbmm(late, early, before.t().expand(batch, -1, -1), out=late)
        y.relu_()
        if share:
            y.mul_(kept(y, share))
        ctx.save_for_backward(x, y, before, now)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, before, now = ctx.saved_tensors
        batch, _, stocks, dim = x.shape
        flow = torch.ops.aten.threshold_backward(grad.contiguous(), y, 0)
        grad_now, grad_bias = affine_backward(flow.view(-1, dim), x.reshape(-1, dim))
        grad_x = (flow.view(-1, dim) @ now).view(batch, -1, dim)
        early, late = x.reshape(batch, -1, dim)[:, :-stocks], flow.view(batch, -1, dim)[:, stocks:]
        target = grad_x[:, :-stocks]
        if late.numel():
            torch.baddbmm(target, late, before.expand(batch, -1, -1), out=target)
        grad_before = torch.bmm(late.mT, early).sum(0)
        return grad_x.view(x.shape), grad_before, grad_now, grad_bias, None


class CausalConvolution(nn.Module):
    """`relu(W_0 x[t-1] + W_1 x[t] + b)` per stock with x[-1] = 0, then dropout: the model's only dropout.

    Args:
        dim: width D.
        dropout: probability, rounded to a multiple of 1/65536.

    Shape:
        input and output `(batch, days, stocks, dim)`.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        taps = nn.Conv1d(dim, dim, 2)  # draws the initial weights as the released Conv2d does
        assert taps.bias is not None
        self.weight = nn.Parameter(taps.weight.detach().permute(2, 0, 1).contiguous())  # (tap, out, in)
        self.bias = nn.Parameter(taps.bias.detach().clone())
        self.share = min(round(dropout * 2**16), 2**16 - 1)

    def forward(self, x: Tensor) -> Tensor:
        share = self.share if self.training else 0
        # What is kept is scaled up by 1 / (1 - p): through the weights, as relu(s z) = s relu(z).
        scale = 2**16 / (2**16 - share)
        before, now = cast(self.weight * scale, x)
        bias = cast(self.bias * scale, x)
        y: Tensor = _Convolution.apply(x, before, now, bias, share)  # type: ignore[no-untyped-call]
        return y
