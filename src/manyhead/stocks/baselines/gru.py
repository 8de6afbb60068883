"""Gated recurrent units over each stock's window.

Cho and others, 'Learning phrase representations using RNN encoder-decoder', 2014, arXiv 1406.1078.
"""

from torch import nn

from manyhead.stocks.baselines.lstm import LSTM, Recurrent
from manyhead.stocks.baselines.sequence import Sequence


class GRU(Sequence):
    """A stack of GRU layers."""

    asked = LSTM.asked
    space = LSTM.space

    def network(self, width: int, days: int) -> nn.Module:
        """Build the network."""
        layer = nn.GRU(width, self.choice["hidden"], self.choice["layers"], batch_first=True)
        return Recurrent(layer, self.choice["dropout"])
