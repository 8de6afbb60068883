"""Steps over one day's cross-section: infinities, gaps, outliers, z-scores.

Stockformer (Ma, Xue, Lu and Chen, 2023, arXiv 2401.06139), section on factor pre-processing, and the
processors of Qlib (arXiv 2009.11189) that its released inputs went through. All sums are in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.factors.source import FactorSource, Rows
from manyhead.stocks.preprocess.pipeline import Daily, Derived, State

Floats = NDArray[np.float64]

GAUSSIAN = 1.4826  # standard deviation of a normal variable over its median absolute deviation
FLAT = 1e-6  # a column whose spread is below this share of its size is constant up to float32 rounding


@dataclass(frozen=True)
class InfiniteToMean(Daily):
    """Replace infinities by the day's mean of the other values (Qlib's ProcessInf)."""

    def day(self, values: Floats, row: int) -> Floats:
        """Transform one day."""
        infinite = np.isinf(values)
        if not infinite.any():
            return values
        return np.where(infinite, mean(np.where(infinite, np.nan, values)), values)


@dataclass(frozen=True)
class ForwardFill:
    """Fill a symbol's missing factor with its newest value of the days before.

    Args:
        limit: oldest value that may be used, in days; None for any age, at the cost of reading all
            earlier rows with every request.

    Raises:
        InputError: if the limit is below 1.
    """

    limit: int | None = 5

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1 day or None, got {self.limit}")

    def fit(self, source: FactorSource, rows: range) -> State:
        """Learn nothing."""
        return {}

    def apply(self, source: FactorSource, state: State) -> FactorSource:
        """Return the source with gaps filled."""
        return Derived(source, self._change, self.limit)

    def _change(self, values: Rows, first: int) -> Rows:
        filled = values.copy()
        reach = len(values) - 1 if self.limit is None else min(self.limit, len(values) - 1)
        gaps = np.isnan(values)
        for age in range(1, reach + 1):
            open_gaps = gaps[age:]
            if not open_gaps.any():
                break
            filled[age:][open_gaps] = values[:-age][open_gaps]
            gaps = np.isnan(filled)
        return filled


@dataclass(frozen=True)
class ExcludeOutliers(Daily):
    """Make values beyond mean +- `sigmas` standard deviations of the day missing (the paper's rule)."""

    sigmas: float = 3.0

    def day(self, values: Floats, row: int) -> Floats:
        """Transform one day."""
        centred = values - mean(values)
        return np.where(np.abs(centred) > self.sigmas * deviation(centred), np.nan, values)


@dataclass(frozen=True)
class ClipOutliers(Daily):
    """Clip to median +- `width` x 1.4826 x deviation of the day.

    Args:
        width: in robust standard deviations.
        spread: 'median', the median absolute deviation, or 'mean', the mean absolute distance from the
            median, as in the released notebook (whose lower bound was never applied; here it is).

    A column of which more than half the values are equal has no median deviation and is left alone.
    """

    width: float = 3.0
    spread: Literal["median", "mean"] = "median"

    def day(self, values: Floats, row: int) -> Floats:
        """Transform one day."""
        middle = median(values)
        distance = np.abs(values - middle)
        spread = median(distance) if self.spread == "median" else mean(distance)
        reach = np.where(spread > 0, self.width * GAUSSIAN * spread, np.inf)
        return np.clip(values, middle - reach, middle + reach)


@dataclass(frozen=True)
class CrossSectionZScore(Daily):
    """Centre each factor over the day's symbols and divide by its sample standard deviation.

    Infinities become missing first; a factor that is constant over the day becomes 0.
    """

    def day(self, values: Floats, row: int) -> Floats:
        """Transform one day."""
        return standardised(values)


@dataclass(frozen=True)
class FillMissing(Daily):
    """Put a number where a factor is missing (Qlib's Fillna)."""

    value: float = 0.0

    def day(self, values: Floats, row: int) -> Floats:
        """Transform one day."""
        return np.where(np.isnan(values), self.value, values)


def standardised(values: Floats) -> Floats:
    """Z-score each row, (factors or days, symbols): sample deviation 1; a row without spread becomes 0.

    Qlib's CSZScoreNorm; missing values stay missing. See `CrossSectionZScore`.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    middle = mean(finite)
    centred = finite - middle
    spread = deviation(centred)
    # root mean square of the values, from mean and deviation
    size = np.hypot(middle, np.where(np.isnan(spread), 0, spread))
    moving = spread > FLAT * size
    return np.where(moving, centred / np.where(moving, spread, 1.0), 0.0 * finite)


def mean(values: Floats) -> Floats:
    """Mean of each factor, (factors, 1), missing values left out; NaN for one without values."""
    missing = np.isnan(values)
    if not missing.any():
        average: Floats = values.mean(axis=-1, keepdims=True)
        return average
    count = (~missing).sum(axis=-1, keepdims=True)
    total: Floats = np.where(missing, 0.0, values).sum(axis=-1, keepdims=True)
    return total / np.where(count > 0, count, np.nan)


def deviation(centred: Floats) -> Floats:
    """Sample standard deviation of each already centred factor, (factors, 1); NaN below two values."""
    square = centred * centred
    missing = np.isnan(square)
    count = (~missing).sum(axis=-1, keepdims=True)
    square[missing] = 0.0
    total: Floats = square.sum(axis=-1, keepdims=True)
    return np.sqrt(total / np.where(count > 1, count - 1, np.nan))


def median(values: Floats) -> Floats:
    """Median of each factor, (factors, 1), missing values left out; NaN for one without values."""
    middle = np.full((len(values), 1), np.nan)
    for factors, symbols in by_gaps(np.isnan(values)):
        count = len(symbols)
        if count:
            ends = ((count - 1) // 2, count // 2)
            known = np.partition(values[np.ix_(factors, symbols)], ends, axis=-1)
            middle[factors, 0] = (known[:, ends[0]] + known[:, ends[1]]) / 2
    return middle


def by_gaps(missing: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (factors, symbols that they have) for factors with the same missing symbols."""
    groups: dict[bytes, list[int]] = {}
    for factor, gaps in enumerate(np.packbits(missing, axis=-1)):
        groups.setdefault(gaps.tobytes(), []).append(factor)
    for members in groups.values():
        yield np.array(members), np.flatnonzero(~missing[members[0]])
