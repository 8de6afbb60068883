"""Uncertainty of daily series whose days depend on each other.

Standard errors after Newey and West (1987), 'A simple, positive semi-definite, heteroskedasticity and
autocorrelation consistent covariance matrix'. Bootstrap after Politis and Romano (1994), 'The
stationary bootstrap', or with moving blocks after Kuensch (1989). The block length is chosen from the
data after Politis and White (2004), 'Automatic block-length selection for the dependent bootstrap',
with the correction of Patton, Politis and White (2009).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError

Series = NDArray[np.floating]


def standard_error(daily: Series, lags: int | None = 0) -> float:
    """Return the standard error of the mean of a daily series, NaN days left out.

    Args:
        daily: (days,).
        lags: autocovariances counted with Bartlett weights (Newey-West); 0 treats days as independent,
            None takes floor(4 * (days / 100) ** (2 / 9)).

    Returns:
        NaN with fewer than two days.

    Raises:
        InputError: if `lags` is negative.
    """
    if lags is not None and lags < 0:
        raise InputError(f"lags must be 0 or more, or None, got {lags}")
    known = np.asarray(daily, dtype=np.float64)
    known = known[np.isfinite(known)]
    days = len(known)
    if days < 2:
        return float("nan")
    if lags is None:
        lags = int(4 * (days / 100) ** (2 / 9))
    centred = known - known.mean()
    variance = centred @ centred
    for lag in range(1, min(lags, days - 1) + 1):
        variance += 2 * (1 - lag / (lags + 1)) * (centred[lag:] @ centred[:-lag])
    # days - 1 as of independent days; the Bartlett weights keep the sum from going below 0
    return float(np.sqrt(max(variance, 0.0) / (days - 1) / days))


def block_length(daily: Series, kind: Literal["stationary", "moving"] = "stationary") -> float:
    """Return the block length that minimises the bootstrap's error of the variance of the mean.

    Politis and White's rule: autocorrelations up to the last that differs from 0 enter through a
    flat-top window.

    Args:
        daily: (days,) without NaN.
        kind: the bootstrap that the length is for.

    Returns:
        at least 1, at most min(3 * sqrt(days), days / 3).
    """
    days = len(daily)
    centred = np.asarray(daily, dtype=np.float64) - np.mean(daily)
    if days < 9 or not np.any(np.abs(centred) > 1e-14 * np.abs(daily).max(initial=0.0)):
        return 1.0
    run = max(5, int(np.sqrt(np.log10(days))))  # K_N: so many insignificant lags in a row end the search
    longest = min(int(np.ceil(np.sqrt(days))) + run, days - 1)
    covariance = np.array([centred[lag:] @ centred[: days - lag] for lag in range(longest + 1)]) / days
    significant = np.abs(covariance[1:] / covariance[0]) >= 2 * np.sqrt(np.log10(days) / days)
    cutoff = next(
        (lag for lag in range(longest - run + 1) if not significant[lag : lag + run].any()),
        int(np.flatnonzero(significant)[-1]) + 1 if significant.any() else 0,
    )
    reach = min(2 * max(cutoff, 1), longest)
    lags = np.arange(-reach, reach + 1)
    window = np.clip(2 * (1 - np.abs(lags) / reach), 0.0, 1.0)  # 1 up to half the reach, then falling to 0
    weighted = window * covariance[np.abs(lags)]
    slope, level = float((np.abs(lags) * weighted).sum()), float(weighted.sum())
    spread = 2 * level**2 if kind == "stationary" else 4 / 3 * level**2
    if spread <= 0:
        return 1.0
    best = float((2 * slope**2 / spread) ** (1 / 3) * days ** (1 / 3))
    return float(np.clip(best, 1.0, min(np.ceil(3 * np.sqrt(days)), days / 3)))


@dataclass(frozen=True)
class Interval:
    """A statistic with the ends of its bootstrap interval and the block length used."""

    low: float
    estimate: float
    high: float
    block: float


def resampled_days(
    days: int, resamples: int, block: float, kind: str, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw (resamples, days) row numbers: runs of consecutive days that wrap around the end."""
    starts = generator.integers(days, size=(resamples, days))
    if kind == "stationary":  # run lengths are geometric with mean `block`
        begins = generator.random((resamples, days)) < 1 / block
    else:
        begins = np.zeros((resamples, days), dtype=bool)
        begins[:, :: max(1, round(block))] = True
    begins[:, 0] = True
    place = np.arange(days)
    opening = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    return (np.take_along_axis(starts, opening, axis=1) + place - opening) % days


def mean(samples: Series) -> Series:
    """Return the mean over the last axis."""
    return np.asarray(samples.mean(axis=-1))


def ratio(samples: Series) -> Series:
    """Return mean over standard deviation (population) over the last axis: the IR of a daily IC."""
    spread = samples.std(axis=-1)
    return np.asarray(
        np.divide(samples.mean(axis=-1), spread, out=np.full_like(spread, np.nan), where=spread > 0)
    )


def bootstrap(
    daily: Series,
    statistic: Callable[[Series], Series] = mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    kind: Literal["stationary", "moving"] = "stationary",
    block: float | None = None,
    seed: int = 0,
) -> Interval:
    """Return a percentile interval of a statistic of a daily series by a block bootstrap.

    Args:
        daily: (days,); NaN days are left out.
        statistic: maps (..., days) to (...), such as `mean` or `ratio`.
        level: coverage, between 0 and 1.
        resamples: series drawn.
        kind: 'stationary' draws blocks of geometric length, 'moving' of fixed length; both wrap around.
        block: mean length in days; None chooses it from the data, see `block_length`.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        InputError: if an argument is out of range.
    """
    if kind not in ("stationary", "moving"):
        raise InputError(f"kind must be 'stationary' or 'moving', got {kind!r}")
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1 or (block is not None and block < 1):
        raise InputError(f"resamples and block must be at least 1, got {resamples} and {block}")
    known = np.asarray(daily, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        nothing = float("nan")
        return Interval(nothing, float(known[0]) if len(known) else nothing, nothing, 1.0)
    block = block_length(known, kind) if block is None else block
    generator = np.random.default_rng(seed)
    chosen = resampled_days(len(known), resamples, block, kind, generator)
    drawn = statistic(known[chosen])
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(statistic(known)), float(high), float(block))
