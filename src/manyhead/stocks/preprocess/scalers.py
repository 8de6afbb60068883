"""Steps that learn one pair of numbers a factor from the training rows: z-score and winsorising."""

from dataclasses import dataclass

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.factors.source import FactorSource, Rows
from manyhead.stocks.preprocess.columns import columns
from manyhead.stocks.preprocess.pipeline import Derived, State


@dataclass(frozen=True)
class TrainingZScore:
    """Subtract the training mean of each factor and divide by its training deviation.

    Qlib's ZScoreNorm (arXiv 2009.11189): mean and population standard deviation over all stock-days of
    the training rows, missing values (and infinities) left out; a factor whose deviation is exactly 0 is
    left untouched.
    As in Qlib's float32 arithmetic, a sum of squares above the float32 range gives an infinite deviation,
    and every value of that factor becomes 0: `dead_inputs` finds such factors.
    """

    def fit(self, source: FactorSource, rows: range) -> State:
        """Learn mean and standard deviation."""
        seen = columns(source, rows)
        squares = np.where(seen.squares > np.finfo(np.float32).max, np.inf, seen.squares)
        std = np.sqrt(squares / np.maximum(seen.count, 1))
        return {"mean": seen.mean.astype(np.float32), "std": std.astype(np.float32)}

    def apply(self, source: FactorSource, state: State) -> FactorSource:
        """Return the scaled source."""
        moving = state["std"] != 0
        mean = np.where(moving, state["mean"], 0).astype(np.float32)
        std = np.where(moving, state["std"], 1).astype(np.float32)

        def change(values: Rows, first: int) -> Rows:
            scaled = values - mean
            scaled /= std
            return scaled

        return Derived(source, change)


@dataclass(frozen=True)
class Winsorise:
    """Clip each factor to two of its training quantiles.

    Args:
        tail: share of values beyond each bound, below one half.
        sample: about how many values a factor the quantiles are taken from, on evenly spaced days.

    Raises:
        InputError: if the tail is not in (0, 0.5) or the sample is empty.
    """

    tail: float = 0.001
    sample: int = 65536

    def __post_init__(self) -> None:
        if not 0 < self.tail < 0.5:
            raise InputError(f"tail must lie between 0 and 0.5, got {self.tail}")
        if self.sample < 1:
            raise InputError(f"sample must be at least 1, got {self.sample}")

    def fit(self, source: FactorSource, rows: range) -> State:
        """Learn the two bounds."""
        symbols = source.rows(rows.start, rows.start).shape[1]
        step = max(1, len(rows) // max(1, self.sample // max(symbols, 1)))
        days = [source.rows(row, row + 1)[0] for row in rows[::step]]
        ordered = np.sort(np.concatenate(days).T, axis=-1)  # (factors, values), NaN last
        count = ordered.shape[-1] - np.isnan(ordered).sum(axis=-1, keepdims=True)
        beyond = np.floor(self.tail * np.maximum(count - 1, 0)).astype(np.int64)
        lower = np.take_along_axis(ordered, beyond, axis=-1)[:, 0]
        upper = np.take_along_axis(ordered, np.maximum(count - 1, 0) - beyond, axis=-1)[:, 0]
        return {"lower": lower, "upper": upper}

    def apply(self, source: FactorSource, state: State) -> FactorSource:
        """Return the clipped source."""
        # a factor never seen in training has no bounds
        lower = np.where(np.isnan(state["lower"]), -np.inf, state["lower"]).astype(np.float32)
        upper = np.where(np.isnan(state["upper"]), np.inf, state["upper"]).astype(np.float32)
        return Derived(source, lambda values, first: np.clip(values, lower, upper))
