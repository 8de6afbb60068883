"""What the networks over 20-day windows share: each stock's window is one sequence.

A causal network has an answer after every day of a window. It is trained on the answers of the window's last
`asked` days at once, on windows that lie as many days apart: each decision is still learnt from once an
epoch, from at most `asked` - 1 days less of history, at 1/`asked` of the cost. Scores always come from whole
windows.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, Table, mean_ic
from manyhead.stocks.dataset import Batch, Windows
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

    def forward(self, batch: Batch, asked: int = 1) -> Tensor:
        """Score every stock of every window after its last `asked` days: (batch, asked, stocks)."""
        own = torch.stack([batch.returns / self.scale, batch.trend], dim=-1)
        days = torch.cat([batch.factors, own.to(batch.factors.dtype)], dim=-1)  # (batch, days, stocks, width)
        count, stocks = days.shape[0], days.shape[2]
        sequences = days.transpose(1, 2).flatten(0, 1)  # (batch * stocks, days, width)
        scores: Tensor = self.network(sequences, asked)
        return scores.view(count, stocks, asked).transpose(1, 2)


class Question(NamedTuple):
    """Windows, and the standardised returns of the decisions on their last days, NaN where unknown."""

    batch: Batch
    targets: Tensor  # (batch, asked, stocks)


@dataclass(frozen=True)
class Questions:
    """A map-style data set over windows, for `fit`.

    Args:
        windows: the windows of the split.
        ends: (samples,) decision rows of the windows.
        targets: (days, stocks) standardised returns of training decisions, NaN elsewhere.
        asked: how many of a window's last days are asked.
    """

    windows: Windows
    ends: Rows
    targets: Tensor
    asked: int

    def __len__(self) -> int:
        return len(self.ends)

    def batch(self, indices: Tensor) -> Question:
        """Gather samples by their position in `ends`."""
        rows = self.ends[indices.numpy()]
        answered = torch.from_numpy(rows)[:, None] + torch.arange(1 - self.asked, 1)
        return Question(self.windows.batch(rows), self.targets[answered])


def squared_error(model: Unit, question: Question) -> dict[str, Tensor]:
    """Return the mean squared error against returns standardised across the stocks of each day."""
    batch, targets = question
    known = torch.isfinite(targets)
    error = (model(batch, targets.shape[1]) - torch.where(known, targets, 0.0)).square()
    return {"return": torch.where(known, error, 0.0).sum() / known.sum().clamp(min=1)}


class Sequence(Baseline):
    """A network over windows, trained by Adam; the epoch of best validation IC is kept."""

    random = True
    epochs: ClassVar[int] = 10
    patience: ClassVar[int] = 3
    asked: ClassVar[int] = 1  # more only where a day does not see later ones

    @abstractmethod
    def network(self, width: int, days: int) -> nn.Module:
        """Build a network called with (sequences, days, width) and `asked`; gives (sequences, asked)."""

    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Train on training rows; choose the epoch on validation rows."""
        alignment = inputs.windows.alignment
        with seeded(self.seed):
            network = self.network(inputs.width, alignment.input_days)
        self.model = Unit(network, inputs.scale(train), alignment.step)
        returns = inputs.returns(validation)
        asked = min(self.asked, alignment.input_days, len(train))
        targets = torch.full(inputs.windows.flow.shape, torch.nan)
        targets[torch.from_numpy(train)] = torch.from_numpy(inputs.targets(train))
        fit(
            self.model,
            Questions(inputs.windows, train[::-1][::asked][::-1].copy(), targets, asked),
            losses=squared_error,
            batch_size=max(1, batch_days(inputs.stocks) // asked),
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
                result[begin : begin + piece] = self.model(batch)[:, 0].float().numpy()
        return result
