"""The predictor over time and the fusion of the two frequencies.

Ma et al., 'Stockformer', 2024, arXiv 2401.06139, section 3.4; released code's reading, the paper's as option.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyhead.stocks.network.layers import FeedForward, cast, linear, normalize
from manyhead.stocks.network.temporal import MASKED, later_days


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Every output day of a stock attends to that stock's output days up to itself.

    Args:
        query, key, value: `(batch, days, stocks, dim)`.
        scale: multiplies the scores, the masked ones too: the released code masks before it divides.
    """
    scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)  # (batch, stocks, days, days)
    scores = scores.masked_fill(later_days(query.shape[1], query.device), MASKED) * scale
    return (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)


class AdaptiveFusion(nn.Module):
    """Low-frequency queries attend to high-frequency keys and values, causally over the output days.

    Args:
        dim: width D.
        head_dim: the scores are divided by its root.
        fusion_self: add the paper's self-attention of the low frequencies (the released code owns its
            weights, `klfc` and `vlfc`, and leaves it out).

    Shape:
        low and high `(batch, days, stocks, dim)` with the days' embedding already added; output like low.
    """

    low_weight: Tensor
    low_bias: Tensor

    def __init__(self, dim: int, head_dim: int, fusion_self: bool = False) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.fusion_self = fusion_self
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)  # of the high frequencies
        low = nn.Linear(dim, 2 * dim)  # keys and values of the low frequencies
        if fusion_self:
            self.low_weight, self.low_bias = low.weight, low.bias
        else:  # not trained, but kept for the released weights
            self.register_buffer("low_weight", low.weight.detach())
            self.register_buffer("low_bias", low.bias.detach())
        self.out = nn.Linear(dim, dim)
        self.feed = FeedForward(dim, dim, dim, residual=True)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        query = linear(low, self.query)
        key, value = torch.relu_(linear(high, self.key_value)).chunk(2, -1)
        mixed = attend_causally(query, key, value, self.scale)
        if self.fusion_self:
            own = F.linear(low, cast(self.low_weight, low), cast(self.low_bias, low))
            key, value = torch.relu_(own).chunk(2, -1)
            mixed = mixed + attend_causally(query, key, value, self.scale)
        u: Tensor = self.feed(normalize(linear(mixed, self.out) + low))
        return u


class Predictor(nn.Module):
    """A linear map over days: `(batch, T1, stocks, dim)` to `(batch, T2, stocks, dim)`."""

    def __init__(self, input_days: int, output_days: int) -> None:
        super().__init__()
        self.days = nn.Linear(input_days, output_days)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = cast(self.days.weight, x), cast(self.days.bias, x)
        y = torch.bmm(weight.expand(len(x), -1, -1), x.flatten(2))  # (batch, T2, stocks * dim)
        return y.view(len(x), -1, *x.shape[2:]) + bias[:, None, None]
