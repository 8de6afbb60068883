"""Parts of residual blocks: stochastic depth and the feed-forward layer.

Huang et al., 'Deep Networks with Stochastic Depth', 2016, arXiv 1603.09382.
"""

from typing import Literal

from torch import Tensor, nn

from manyhead.errors import InputError


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training, and scale the others up.

    Args:
        rate: probability that a sample's branch is dropped, 0 to below 1.

    Raises:
        InputError: if `rate` is out of its range.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise InputError(f"rate is at least 0 and below 1, got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * kept / (1.0 - self.rate)


class FeedForward(nn.Module):
    """Two linear maps with a GELU between, on the last axis.

    Args:
        channels: size of the last axis.
        ratio: hidden channels over `channels`.
        gelu: 'exact' or its 'tanh' approximation.
    """

    def __init__(self, channels: int, ratio: float = 4.0, gelu: Literal["exact", "tanh"] = "exact") -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, int(channels * ratio))
        self.act = nn.GELU(approximate="tanh" if gelu == "tanh" else "none")
        self.fc2 = nn.Linear(int(channels * ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out
