"""Long short-term memory over each stock's window.

Hochreiter and Schmidhuber, 'Long short-term memory', 1997.
"""

from typing import ClassVar

from torch import Tensor, nn

from manyhead.stocks.baselines.base import Space
from manyhead.stocks.baselines.sequence import Sequence


class Recurrent(nn.Module):
    """A recurrent layer whose states are read off linearly."""

    def __init__(self, layer: nn.LSTM | nn.GRU, dropout: float) -> None:
        super().__init__()
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(layer.hidden_size, 1)

    def forward(self, days: Tensor, asked: int = 1) -> Tensor:
        """Score sequences after their last days: (sequences, days, width) to (sequences, asked)."""
        states, _ = self.layer(days)
        scores: Tensor = self.head(self.dropout(states[:, -asked:]))
        return scores.squeeze(-1)


class LSTM(Sequence):
    """A stack of LSTM layers."""

    asked = 5
    space: ClassVar[Space] = {
        "hidden": (32, 16, 64),
        "layers": (1, 2),
        "dropout": (0.0, 0.3),
        "learning_rate": (1e-3, 3e-4, 3e-3),
    }

    def network(self, width: int, days: int) -> nn.Module:
        """Build the network."""
        layer = nn.LSTM(width, self.choice["hidden"], self.choice["layers"], batch_first=True)
        return Recurrent(layer, self.choice["dropout"])
