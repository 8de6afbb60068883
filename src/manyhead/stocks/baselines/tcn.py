"""A temporal convolutional network over each stock's window.

Bai, Kolter and Koltun, 'An empirical evaluation of generic convolutional and recurrent networks for
sequence modeling', 2018, arXiv 1803.01271, section 3: causal convolutions whose dilation doubles from
block to block, residual blocks of two convolutions.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.stocks.baselines.base import Space
from manyhead.stocks.baselines.sequence import Sequence


class Block(nn.Module):
    """Two causal convolutions and a residual connection, (sequences, channels, days)."""

    def __init__(self, width: int, channels: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.first = nn.Conv1d(width, channels, kernel, dilation=dilation)
        self.second = nn.Conv1d(channels, channels, kernel, dilation=dilation)
        self.skip = nn.Conv1d(width, channels, 1) if width != channels else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, days: Tensor) -> Tensor:
        """Convolve; a day sees itself and earlier days."""
        inner = self.dropout(F.relu(self.first(F.pad(days, (self.reach, 0)))))
        inner = self.dropout(F.relu(self.second(F.pad(inner, (self.reach, 0)))))
        return F.relu(inner + self.skip(days))


class Convolutions(nn.Module):
    """Blocks until the newest day sees the whole window, and a head on it."""

    def __init__(self, width: int, days: int, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        seen, dilation = 1, 1
        while seen < days:
            blocks.append(Block(channels if blocks else width, channels, kernel, dilation, dropout))
            seen, dilation = seen + 2 * (kernel - 1) * dilation, 2 * dilation
        if not blocks:
            blocks.append(Block(width, channels, kernel, 1, dropout))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1)

    def forward(self, days: Tensor, asked: int = 1) -> Tensor:
        """Score sequences after their last days: (sequences, days, width) to (sequences, asked)."""
        states = self.blocks(days.transpose(1, 2))
        scores: Tensor = self.head(states[..., -asked:].transpose(1, 2))
        return scores.squeeze(-1)


class TCN(Sequence):
    """A temporal convolutional network."""

    asked = 5
    space: ClassVar[Space] = {
        "channels": (32, 16, 64),
        "kernel": (3, 2),
        "dropout": (0.1, 0.3),
        "learning_rate": (1e-3, 3e-4, 3e-3),
    }

    def network(self, width: int, days: int) -> nn.Module:
        """Build the network."""
        return Convolutions(
            width, days, self.choice["channels"], self.choice["kernel"], self.choice["dropout"]
        )
