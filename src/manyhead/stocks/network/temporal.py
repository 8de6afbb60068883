"""The two views of time: causal attention for the low frequencies, a two-day convolution for the high ones.

Ma et al., 'Stockformer', 2024, arXiv 2401.06139, section 3.2; released code's reading.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyhead.stocks.network.layers import FeedForward, cast, linear, normalize

WEEK, HORIZON = 5, 50  # lengths of the two one-hot codes of a day's temporal index
MASKED = -(2.0**15) + 1  # score of a day that must not be seen


def attend_causally(
    query: Tensor, key: Tensor, value: Tensor, scale: float, masked: float = MASKED
) -> Tensor:
    """Every stock's days attend to that stock's earlier days and their own.

    Args:
        query, key, value: `(batch, days, stocks, dim)`, any strides.
        scale: multiplies the scores.
        masked: score given to later days.

    Returns:
        `(batch, days, stocks, dim)`.
    """
    days = query.shape[1]
    scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * scale  # (batch, stocks, days, days)
    later = torch.ones(days, days, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(later, masked).softmax(-1)
    return (weights @ value.transpose(1, 2)).transpose(1, 2)


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
        x = x + te
        query, key, value = linear(x, self.qkv).chunk(3, -1)
        mixed = attend_causally(query, key, value, self.scale)
        u: Tensor = self.feed(normalize(linear(mixed, self.out).add_(x)))
        return u


class CausalConvolution(nn.Module):
    """`relu(W_0 x[t-1] + W_1 x[t] + b)` per stock with x[-1] = 0, then dropout: the model's only dropout.

    Shape:
        input and output `(batch, days, stocks, dim)`.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        taps = nn.Conv1d(dim, dim, 2)  # draws the initial weights as the released Conv2d does
        self.weight = nn.Parameter(taps.weight.detach().permute(2, 0, 1).contiguous())  # (tap, out, in)
        self.bias = nn.Parameter(taps.bias.detach().clone()) if taps.bias is not None else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        before, now = cast(self.weight, x)
        y = F.linear(x, now, None if self.bias is None else cast(self.bias, x))
        y = torch.cat([y[:, :1], y[:, 1:] + F.linear(x[:, :-1], before)], 1)
        return F.dropout(torch.relu_(y), self.dropout, self.training)
