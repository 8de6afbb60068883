"""What every baseline shares: its inputs, its target, the unit of its scores.

A baseline reads the windows that Stockformer reads, row by row: the same factors, the same returns known at
the decision, for the same decision rows. Only reversal and momentum look at prices, up to the close of
the decision day. Learned baselines are trained, as Qlib's are, on returns standardised across the stocks
of each day; scores are then put in units of returns by a line fitted on validation rows, which changes
no ranking and lets the sign of a score mean a direction.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.dataset import Windows
from manyhead.stocks.metrics import daily_ic
from manyhead.stocks.preprocess.daily import standardised

Rows = NDArray[np.int64]
Table = NDArray[np.float32]
Choice = Mapping[str, Any]  # settings by name
Space = Mapping[str, tuple[Any, ...]]  # values to try by name; the first is the default


@dataclass(frozen=True)
class Inputs:
    """What a baseline may read.

    Args:
        windows: the windows of the split, as Stockformer reads them.
        close: (days, stocks) closing prices on the same calendar, NaN where missing.
    """

    windows: Windows
    close: NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.close.shape != self.windows.flow.shape:
            raise InputError(
                f"close has shape {self.close.shape}, the returns have {self.windows.flow.shape}"
            )

    @property
    def stocks(self) -> int:
        """Number of columns."""
        return int(self.windows.flow.shape[1])

    @property
    def width(self) -> int:
        """Inputs of a stock and day: its factors, its latest known return, its trend."""
        return len(self.windows.factors.names) + 2

    def returns(self, rows: Rows) -> Table:
        """Return what decisions on these rows earned, NaN where unknown: (rows, stocks)."""
        return np.asarray(self.windows.targets[rows], np.float32)

    def targets(self, rows: Rows) -> Table:
        """Return these returns standardised across the stocks of each day; NaN where unknown."""
        return standardised(self.returns(rows).astype(np.float64)).astype(np.float32)

    def scale(self, rows: Rows) -> float:
        """Return the spread of the returns of some rows, by which known returns are divided."""
        spread = float(np.nanstd(self.returns(rows))) if len(rows) else 0.0
        return spread if np.isfinite(spread) and spread > 0 else 1.0

    def latest(self, rows: Rows, scale: float) -> Iterator[tuple[slice, Table]]:
        """Go through the newest day of each window in pieces: places in `rows`, (piece, stocks, width)."""
        sample = self.windows.alignment.window(0)
        back, series = sample.decision - sample.factors[-1], sample.decision - sample.series[-1]
        piece = max(1, 2_000_000 // (self.stocks * self.width))
        for begin in range(0, len(rows), piece):
            part = rows[begin : begin + piece]
            known = np.nan_to_num(self.windows.flow[part - series], nan=0.0)
            own = np.stack([known / scale, known > 0], axis=-1)
            factors = np.concatenate([self.windows.factors.rows(row - back, row - back + 1) for row in part])
            yield slice(begin, begin + len(part)), np.concatenate([factors, own], axis=-1, dtype=np.float32)


def mean_ic(scores: Table, returns: Table) -> float:
    """Return the mean daily IC, NaN where no day has one."""
    daily = daily_ic(scores, returns)
    known = daily[np.isfinite(daily)]
    return float(known.mean()) if len(known) else float("nan")


class Baseline(ABC):
    """A model that scores stocks.

    Args:
        choice: settings by name; those left out take the first value of `space`.
        seed: of everything random.

    Raises:
        InputError: if a setting is unknown.
    """

    random: ClassVar[bool] = False  # whether the seed matters
    space: ClassVar[Space] = {}

    def __init__(self, choice: Choice | None = None, seed: int = 0) -> None:
        unknown = sorted(set(choice or {}) - set(self.space))
        if unknown:
            accepted = ", ".join(self.space) or "none"
            raise InputError(f"{type(self).__name__} has no setting {unknown[0]!r}; it has {accepted}")
        self.choice = {name: values[0] for name, values in self.space.items()} | dict(choice or {})
        self.seed = seed
        self.level, self.slope = 0.0, 1.0

    @classmethod
    def choices(cls, trials: int, seed: int = 0) -> list[dict[str, Any]]:
        """List the settings to try: the defaults, then different random ones, at most `trials`."""
        default = dict.fromkeys(cls.space, 0)
        size = int(np.prod([len(values) for values in cls.space.values()]))
        random = np.random.default_rng(seed)
        drawn = [default]
        while len(drawn) < min(trials, size):
            places = {name: int(random.integers(len(values))) for name, values in cls.space.items()}
            if places not in drawn:
                drawn.append(places)
        return [{name: cls.space[name][place] for name, place in places.items()} for places in drawn]

    def fit(self, inputs: Inputs, train: Rows, validation: Rows) -> "Baseline":
        """Learn from training rows; validation rows may decide when to stop, and set the unit.

        Args:
            inputs: nothing is read of rows after the last validation target is known.
            train: decision rows whose returns are known within the training span.
            validation: likewise of the validation span.
        """
        self.level, self.slope = 0.0, 1.0
        self.learn(inputs, train, validation)
        scores, returns = self.score(inputs, validation), inputs.returns(validation)
        both = np.isfinite(scores) & np.isfinite(returns)
        if both.sum() > 1:
            x, y = scores[both].astype(np.float64), returns[both].astype(np.float64)
            spread = x.std()
            if spread > 0:
                fitted = ((x - x.mean()) @ (y - y.mean())) / len(x) / spread**2
                # never 0 or negative: the unit must not change the ranking
                self.slope = float(max(fitted, 1e-3 * y.std() / spread)) or 1.0
                self.level = float(y.mean() - self.slope * x.mean())
        return self

    def predict(self, inputs: Inputs, rows: Rows) -> Table:
        """Return the forecast return of every decision row and stock, NaN where there is none."""
        return (self.level + self.slope * self.score(inputs, rows)).astype(np.float32)

    @abstractmethod
    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Learn from training rows, see `fit`."""

    @abstractmethod
    def score(self, inputs: Inputs, rows: Rows) -> Table:
        """Return (rows, stocks) scores in the baseline's own unit."""
