"""Four tasks, one for each use of attention, on text and on series.

They stand in for the seven of Zhang et al., 'CAB', 2022, arXiv 2210.07661, section 3.2: language modelling
(causal self), masked language modelling (noncausal self), summarisation (causal cross; here the output is
the source backwards, which only precise looking-up can produce) and forecasting (noncausal cross).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from manyhead.cab.budgets import Budget
from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_CROSS, CAUSAL_SELF, NONCAUSAL_CROSS, NONCAUSAL_SELF, Mixer
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.transformer import EncoderDecoder, Stack, Transformer

BYTES = 256
HIDDEN = 0.15  # share of characters to fill in
Make = Callable[[int], Mixer]
Batch = tuple[Tensor, ...]


def read_text(path: str | Path | None) -> Tensor:
    """Bytes of a text file, `(bytes,)`; of the standard library's source where there is no path.

    Raises:
        InputError: if the file cannot be read or is too short to be worth it.
    """
    if path is None:
        from manyhead import data

        content = data.load("python_source").encode()[:2_000_000]
    else:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"--text: {path} cannot be read: {error.strerror}") from None
    if len(content) < 10_000:
        raise InputError(f"--text: {path} has {len(content)} bytes, at least 10,000 are needed")
    return torch.from_numpy(np.frombuffer(content, np.uint8).astype(np.int64))


def read_series(path: str | Path | None) -> Tensor:
    """Numbers `(times, series)` of a CSV or Parquet file; without a path log closes of eight US stocks.

    Raises:
        InputError: if the file cannot be read, has no numbers, gaps, or fewer than 400 rows.
    """
    import polars as pl

    if path is None:
        from manyhead import data

        table = data.load("skfolio_sp500")
        wide = table.pivot(on="symbol", index="date", values="close").sort("date").drop("date")
        return torch.from_numpy(np.log(wide.to_numpy()[:, :8].astype(np.float32)))
    try:
        read = pl.read_parquet if str(path).endswith((".parquet", ".pq")) else pl.read_csv
        frame = read(path).select(pl.selectors.numeric())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"--series: {path} cannot be read as CSV or Parquet: {error}") from None
    values = frame.to_numpy().astype(np.float32)
    if values.shape[1] == 0 or len(values) < 400 or not np.isfinite(values).all():
        raise InputError(
            f"--series: {path} needs columns of numbers without gaps and at least 400 rows; "
            f"it has {values.shape[1]} such columns and {len(values)} rows"
        )
    return torch.from_numpy(values)


def rows_of(data: Tensor, training: bool, rows: int, length: int, random: torch.Generator) -> Tensor:
    """Random windows of the first 85 % of a stream, or of the rest."""
    edge = len(data) * 85 // 100
    part = data[:edge] if training else data[edge:]
    if len(part) <= length:
        raise InputError(f"windows of {length} do not fit into the {len(part)} held-out points of the data")
    starts = torch.randint(len(part) - length, (rows, 1), generator=random)
    return part[starts + torch.arange(length)]


class Task(ABC):
    """A use of attention with data, a network, a loss and metrics.

    Attributes:
        name: as the command line names it.
        use: the use of attention that it asks for.
        metrics: names, the first being the headline, each with 1 where higher is better, else -1.
        wants: 'text' or 'series'.
        pace: steps for each of the budget's, where samples are short.
    """

    name: str
    use: str
    metrics: ClassVar[dict[str, int]]
    wants = "text"
    pace = 1

    @abstractmethod
    def network(self, data: Tensor, budget: Budget, make: Make) -> nn.Module:
        """A network with `make(depth)` where the mixers under test belong."""

    @abstractmethod
    def draw(self, data: Tensor, budget: Budget, training: bool, random: torch.Generator) -> Batch:
        """A batch."""

    @abstractmethod
    def judge(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and its metrics `(metrics,)`."""


def _bits_and_hits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = cross_entropy(logits.flatten(0, -2), target.flatten())
    hits = (logits.argmax(-1) == target).float().mean()
    return loss, torch.stack([loss.detach() / math.log(2), 100 * hits])


class Text(Task):
    """Predict the next character."""

    name, use = "text", CAUSAL_SELF
    metrics: ClassVar = {"bits a character": -1, "right, %": 1}

    def network(self, data: Tensor, budget: Budget, make: Make) -> nn.Module:
        return Transformer(
            BYTES, budget.channels, budget.depth, mixers=make, positions="learned", longest=budget.length
        )

    def draw(self, data: Tensor, budget: Budget, training: bool, random: torch.Generator) -> Batch:
        rows = rows_of(data, training, budget.batch, budget.length + 1, random)
        return rows[:, :-1], rows[:, 1:]

    def judge(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return _bits_and_hits(network(batch[0]), batch[1])


class Masked(Task):
    """Fill in 15 % of the characters."""

    name, use = "masked", NONCAUSAL_SELF
    metrics: ClassVar = {"bits a hidden character": -1, "right, %": 1}

    def network(self, data: Tensor, budget: Budget, make: Make) -> nn.Module:
        return Transformer(
            BYTES + 1, budget.channels, budget.depth, mixers=make, positions="learned", longest=budget.length
        )

    def draw(self, data: Tensor, budget: Budget, training: bool, random: torch.Generator) -> Batch:
        rows = rows_of(data, training, budget.batch, budget.length, random)
        return rows, torch.rand(rows.shape, generator=random) < HIDDEN

    def judge(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, hidden = batch
        return _bits_and_hits(network(rows.masked_fill(hidden, BYTES))[hidden], rows[hidden])


class Reverse(Task):
    """Write a line of the source backwards."""

    name, use = "reverse", CAUSAL_CROSS
    metrics: ClassVar = {"right, %": 1, "bits a character": -1}
    pace = 2

    def network(self, data: Tensor, budget: Budget, make: Make) -> nn.Module:
        line = budget.length // 4
        return EncoderDecoder(
            BYTES, BYTES, budget.channels, 1, budget.heads, cross=make, positions="learned", longest=line
        )

    def draw(self, data: Tensor, budget: Budget, training: bool, random: torch.Generator) -> Batch:
        # lines are short, so that there is room for four times as many
        rows = rows_of(data, training, 4 * budget.batch, budget.length // 4, random)
        return (rows,)

    def judge(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        source, target = batch[0], batch[0].flip(1)
        begun = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
        loss, (bits, hits) = _bits_and_hits(network(source, begun), target)
        return loss, torch.stack([hits, bits])


class Forecaster(nn.Module):
    """Days to come, known by their place only, ask the days before."""

    def __init__(self, series: int, past: int, coming: int, budget: Budget, make: Make) -> None:
        super().__init__()
        channels = budget.channels
        self.enter, self.leave = nn.Linear(series, channels), nn.Linear(channels, series)
        self.past = nn.Parameter(torch.randn(past, channels) * 0.02)
        self.coming = nn.Parameter(torch.randn(coming, channels) * 0.02)
        own = [MultiHeadAttention(channels, budget.heads)]
        self.stack = Stack(channels, own, cross=make)

    def forward(self, past: Tensor) -> Tensor:
        """Standardised values `(batch, days to come, series)` from `(batch, days, series)`."""
        context = self.enter(past) + self.past
        out: Tensor = self.leave(self.stack(self.coming.expand(len(past), -1, -1), context))
        return out


class Forecast(Task):
    """Forecast all series, less their last value, in units of the past's deviation."""

    name, use, wants = "forecast", NONCAUSAL_CROSS, "series"
    metrics: ClassVar = {"squared error": -1, "absolute error": -1}
    pace = 2

    def network(self, data: Tensor, budget: Budget, make: Make) -> nn.Module:
        past = budget.length // 4
        return Forecaster(data.shape[1], past, max(1, past // 4), budget, make)

    def draw(self, data: Tensor, budget: Budget, training: bool, random: torch.Generator) -> Batch:
        past = budget.length // 4
        rows = rows_of(data, training, 4 * budget.batch, past + max(1, past // 4), random)
        before, after = rows[:, :past], rows[:, past:]
        last, spread = before[:, -1:], before.std(1, keepdim=True) + 1e-4
        return (before - last) / spread, (after - last) / spread

    def judge(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        found = network(batch[0])
        loss = mse_loss(found, batch[1])
        return loss, torch.stack([loss.detach(), (found.detach() - batch[1]).abs().mean()])


TASKS: dict[str, Task] = {task.name: task for task in (Text(), Forecast(), Reverse(), Masked())}
