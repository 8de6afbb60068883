"""What the networks over 20-day windows share: each stock's window is one sequence."""

from abc import abstractmethod
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, Table, mean_ic
from manyhead.stocks.dataset import Batch, Samples
from manyhead.training import fit
from manyhead.training.seeds import seeded

SEQUENCES, DAYS = 1024, 16  # stock windows of one batch, about; most decision days of one


def batch_days(stocks: int) -> int:
    """Return how many decision days make a batch."""
    return int(np.clip(SEQUENCES // stocks, 1, DAYS))


class Unit(nn.Module):
    """Feeds a network the factors, the scaled returns and the trend of each stock's days."""

    def __init__(self, network: nn.Module, scale: float, step: int) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.step = step

    def forward(self, batch: Batch) -> Tensor:
        """Score every stock of every window: (batch, stocks)."""
        own = torch.stack([batch.returns / self.scale, batch.trend], dim=-1)
        days = torch.cat([batch.factors, own.to(batch.factors.dtype)], dim=-1)  # (batch, days, stocks, width)
        count, stocks = days.shape[0], days.shape[2]
        sequences = days.transpose(1, 2).flatten(0, 1)  # (batch * stocks, days, width)
        scores: Tensor = self.network(sequences)
        return scores.view(count, stocks)


def squared_error(model: Unit, batch: Batch) -> dict[str, Tensor]:
    """Return the mean squared error against returns standardised across the stocks of each day."""
    known = batch.known[:, model.step]
    flow = torch.where(known, batch.flow[:, model.step], 0.0)
    count = known.sum(dim=1, keepdim=True).clamp(min=1)
    apart = torch.where(known, flow - flow.sum(dim=1, keepdim=True) / count, 0.0)
    spread = (apart.square().sum(dim=1, keepdim=True) / count).sqrt()
    target = torch.where(spread > 1e-12, apart / spread.clamp(min=1e-12), 0.0)
    error = torch.where(known, (model(batch) - target).square(), 0.0)
    return {"return": error.sum() / known.sum().clamp(min=1)}


class Sequence(Baseline):
    """A network over windows, trained by Adam; the epoch of best validation IC is kept."""

    random = True
    epochs: ClassVar[int] = 10
    patience: ClassVar[int] = 3

    @abstractmethod
    def network(self, width: int, days: int) -> nn.Module:
        """Build a network that maps (sequences, days, width) to (sequences,)."""

    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Train on training rows; choose the epoch on validation rows."""
        alignment = inputs.windows.alignment
        with seeded(self.seed):
            network = self.network(inputs.width, alignment.input_days)
        self.model = Unit(network, inputs.scale(train), alignment.step)
        returns = inputs.returns(validation)
        fit(
            self.model,
            Samples(inputs.windows, train),
            losses=squared_error,
            batch_size=batch_days(inputs.stocks),
            epochs=self.epochs,
            validate=lambda _: {
                "ic": float(np.nan_to_num(mean_ic(self.score(inputs, validation), returns), nan=-1))
            },
            monitor="ic",
            mode="max",
            patience=self.patience,
            optimizer=partial(torch.optim.Adam, lr=self.choice["learning_rate"]),
            clip_norm=1.0,
            seed=self.seed,
        )

    def score(self, inputs: Inputs, rows: Rows) -> Table:
        """Run the network over the windows of some rows."""
        result = np.empty((len(rows), inputs.stocks), np.float32)
        piece = batch_days(inputs.stocks)
        self.model.eval()
        with torch.inference_mode():
            for begin in range(0, len(rows), piece):
                batch = inputs.windows.batch(rows[begin : begin + piece])
                result[begin : begin + piece] = self.model(batch).float().numpy()
        return result
