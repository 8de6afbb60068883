"""Steps that learn one pair of numbers a factor from the training rows: z-score and winsorising."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.factors.source import BLOCK, FactorSource, Rows, in_blocks
from manyhead.stocks.preprocess.pipeline import Derived, State

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrainingZScore:
    """Subtract the training mean of each factor and divide by its training deviation.

    Qlib's ZScoreNorm (arXiv 2009.11189): mean and population standard deviation over all stock-days of
    the training rows, missing values left out; a factor whose deviation is exactly 0 is left untouched.
    As in Qlib's float32 arithmetic, a sum of squares above the float32 range gives an infinite deviation,
    and every value of that factor becomes 0: `dead_inputs` finds such factors.
    """

    def fit(self, source: FactorSource, rows: range) -> State:
        """Learn mean and standard deviation."""
        spans = range(0, len(rows), BLOCK)
        parts: list[tuple[Floats, Floats, Floats]] = [(np.empty(0),) * 3] * len(spans)

        def moments(start: int, stop: int) -> None:
            values = source.rows(rows.start + start, rows.start + stop).astype(np.float64)
            present = ~np.isnan(values)
            count = present.sum(axis=(0, 1)).astype(np.float64)
            mean = np.where(present, values, 0).sum(axis=(0, 1)) / np.maximum(count, 1)
            squares = (np.where(present, values - mean, 0) ** 2).sum(axis=(0, 1))
            parts[start // BLOCK] = count, mean, squares

        in_blocks(len(rows), moments)
        count, mean, squares = parts[0]
        for more, other, others in parts[1:]:  # Chan, Golub and LeVeque, 1979
            whole = np.maximum(count + more, 1)
            apart = other - mean
            squares = squares + others + apart * apart * count * more / whole
            mean = mean + apart * more / whole
            count = count + more
        squares = np.where(squares > np.finfo(np.float32).max, np.inf, squares)
        return {
            "mean": mean.astype(np.float32),
            "std": np.sqrt(squares / np.maximum(count, 1)).astype(np.float32),
        }

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
