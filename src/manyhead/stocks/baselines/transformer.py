"""A plain Transformer encoder over each stock's window; stocks do not see each other.

Vaswani and others, 'Attention is all you need', 2017, arXiv 1706.03762, with the norms placed first.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from manyhead.stocks.baselines.base import Space
from manyhead.stocks.baselines.sequence import Sequence


class Encoder(nn.Module):
    """Projection, learned positions, encoder layers, and a head on the newest day."""

    def __init__(self, width: int, days: int, dim: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.position = nn.Parameter(0.02 * torch.randn(days, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, 1)

    def forward(self, days: Tensor, asked: int = 1) -> Tensor:
        """Score sequences: (sequences, days, width) to (sequences, asked); a day sees the whole window."""
        states = self.encoder(self.project(days) + self.position)
        scores: Tensor = self.head(states[:, -asked:])
        return scores.squeeze(-1)


class Transformer(Sequence):
    """A Transformer encoder."""

    space: ClassVar[Space] = {
        "dim": (32, 16, 64),
        "heads": (4, 2),
        "layers": (1, 2),
        "dropout": (0.1, 0.3),
        "learning_rate": (1e-3, 3e-4, 3e-3),
    }

    def network(self, width: int, days: int) -> nn.Module:
        """Build the network."""
        size = self.choice
        return Encoder(width, days, size["dim"], size["heads"], size["layers"], size["dropout"])
