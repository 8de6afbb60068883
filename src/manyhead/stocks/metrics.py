"""Daily skill of a score table: information coefficients, accuracy, errors, returns by score group.

Stockformer (arXiv 2401.06139), section 4.3. Every day is one observation: coefficients are computed across
stocks within a day, and means, ratios and standard errors over days. A cell counts where both the score
and the return exist; a day without at least two such cells, or on which either is constant, has no
coefficient (NaN).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.intervals import standard_error

Floats = NDArray[np.floating]
Series = NDArray[np.float64]


def ranks(values: Floats) -> Series:
    """Rank along the last axis from 1, ties sharing their average rank, NaN staying NaN."""
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(values, axis=-1, kind="stable")  # NaN last
    ordered = np.take_along_axis(values, order, axis=-1)
    place = np.arange(values.shape[-1])
    opens = np.ones(values.shape, dtype=bool)
    opens[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    closes = np.ones(values.shape, dtype=bool)
    closes[..., :-1] = opens[..., 1:]
    first = np.maximum.accumulate(np.where(opens, place, 0), axis=-1)
    last = np.flip(
        np.minimum.accumulate(np.flip(np.where(closes, place, values.shape[-1]), axis=-1), axis=-1), axis=-1
    )
    shared = np.where(np.isnan(ordered), np.nan, (first + last) / 2 + 1)
    result = np.empty(values.shape)
    np.put_along_axis(result, order, shared, axis=-1)
    return result


def paired(scores: Floats, returns: Floats) -> tuple[Series, Series]:
    """Return both tables in float64 with NaN wherever either has none.

    Raises:
        InputError: if their shapes differ.
    """
    scores, returns = np.asarray(scores, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if scores.shape != returns.shape or scores.ndim != 2:
        raise InputError(
            f"scores and returns must both be (days, symbols), got {scores.shape} and {returns.shape}"
        )
    both = np.isfinite(scores) & np.isfinite(returns)
    return np.where(both, scores, np.nan), np.where(both, returns, np.nan)


def correlation_by_day(left: Series, right: Series) -> Series:
    """Return the Pearson correlation of each row, over cells where neither is NaN: (days,)."""
    both = ~(np.isnan(left) | np.isnan(right))
    count = both.sum(axis=1)
    divisor = np.maximum(count, 1)[:, None]
    spread = []
    for table in (left, right):
        kept = np.where(both, table, 0.0)
        centred = np.where(both, kept - kept.sum(axis=1, keepdims=True) / divisor, 0.0)
        scale = np.abs(kept).max(axis=1, initial=0.0, keepdims=True)
        # what rounding leaves of a constant row is no variation
        centred[(np.abs(centred) <= 1e-14 * scale).all(axis=1)] = 0.0
        norm = np.sqrt((centred**2).sum(axis=1, keepdims=True))
        spread.append(np.divide(centred, norm, out=np.full_like(centred, np.nan), where=norm > 0))
    product = (spread[0] * spread[1]).sum(axis=1)
    return np.where(count >= 2, np.clip(product, -1.0, 1.0), np.nan)


def daily_ic(scores: Floats, returns: Floats) -> Series:
    """Return the information coefficient of each day: Pearson's correlation of scores and returns.

    Args:
        scores: (days, symbols), NaN where there is no score.
        returns: (days, symbols), what a decision of that day earned, NaN where unknown.

    Returns:
        (days,), NaN on days without two cells or without variation.

    Raises:
        InputError: if the shapes differ.
    """
    return correlation_by_day(*paired(scores, returns))


def daily_rank_ic(scores: Floats, returns: Floats) -> Series:
    """Return Spearman's correlation of each day, ties at their average rank; see `daily_ic`."""
    scores, returns = paired(scores, returns)
    return correlation_by_day(ranks(scores), ranks(returns))


def information_ratio(daily: Floats) -> float:
    """Return mean over standard deviation (population) of a daily series, NaN days left out."""
    known = daily[np.isfinite(daily)]
    spread = float(known.std()) if len(known) else 0.0
    return float(known.mean()) / spread if spread > 0 else float("nan")


def direction_accuracy(predicted: NDArray[np.integer], returns: Floats) -> float:
    """Return the share of known returns whose direction (up: above 0) was predicted.

    Args:
        predicted: (days, symbols), 1 for up and 0 for down, such as the argmax of class logits, or
            `(scores > 0)` for a model without classes; negative where there is no prediction.
        returns: (days, symbols), NaN where unknown.
    """
    known = np.isfinite(returns) & (np.asarray(predicted) >= 0)
    return float((predicted[known] == (returns[known] > 0)).mean()) if known.any() else float("nan")


def majority_rate(returns: Floats) -> float:
    """Return the accuracy of always naming the direction that is more frequent in these returns."""
    known = returns[np.isfinite(returns)]
    up = float((known > 0).mean()) if len(known) else float("nan")
    return max(up, 1 - up)


@dataclass(frozen=True)
class Errors:
    """Mean absolute, root mean squared and mean absolute percentage error of returns."""

    mae: float
    rmse: float
    mape: float


def errors(predicted: Floats, returns: Floats) -> Errors:
    """Measure predicted returns where a return is known.

    The percentage error divides by |return| and leaves out returns of exactly 0, where it has no value.
    """
    predicted, returns = paired(predicted, returns)
    known = ~np.isnan(returns)
    if not known.any():
        return Errors(float("nan"), float("nan"), float("nan"))
    error = np.abs(predicted - returns)[known]
    size = np.abs(returns)[known]
    moved = size > 0
    mape = float((error[moved] / size[moved]).mean()) if moved.any() else float("nan")
    return Errors(float(error.mean()), float(np.sqrt((error**2).mean())), mape)


def official_errors(
    predicted: Floats, returns: Floats, logits: Floats, classes: NDArray[np.integer]
) -> tuple[float, float, float, float]:
    """Return accuracy, MAE, RMSE and MAPE as the released code computes them, for comparison.

    Accuracy counts every cell. The errors leave out returns equal to 0, and the percentage error keeps
    the sign of the return, so that it can be negative.

    Args:
        predicted: any shape, predicted returns.
        returns: same shape, missing returns as 0.
        logits: same shape with a last axis of 2.
        classes: same shape, 0 or 1.
    """
    accuracy = float((np.argmax(logits, axis=-1) == classes).mean())
    moved = returns != 0
    if not moved.any():
        return accuracy, 0.0, 0.0, 0.0
    error = np.abs(predicted - returns).astype(np.float32)[moved]
    mape = (error / returns[moved]).mean()
    return accuracy, float(error.mean()), float(np.sqrt(np.square(error).mean())), float(mape)


def group_returns(scores: Floats, returns: Floats, groups: int = 10) -> Series:
    """Return the equal-weight mean return of each score group and day, lowest scores first.

    Stocks are placed by their rank among the day's scored stocks; equal scores share a group.

    Args:
        scores: (days, symbols).
        returns: (days, symbols).
        groups: number of groups, 10 for deciles.

    Returns:
        (days, groups); NaN where a group is empty.

    Raises:
        InputError: if the shapes differ or there are fewer than 2 groups.
    """
    if groups < 2:
        raise InputError(f"groups must be at least 2, got {groups}")
    scores, returns = paired(scores, returns)
    place = ranks(scores)
    count = (~np.isnan(scores)).sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        position = np.floor((place - 0.5) / count * groups)
    result = np.full((len(scores), groups), np.nan)
    for group in range(groups):
        members = position == group
        held = members.sum(axis=1)
        total = np.where(members, returns, 0.0).sum(axis=1)
        np.divide(total, held, out=result[:, group], where=held > 0)
    return result


@dataclass(frozen=True)
class Skill:
    """Summary of a score table over its days; `_se` are standard errors over days."""

    days: int
    ic: float
    ic_se: float
    icir: float
    rank_ic: float
    rank_ic_se: float
    rank_icir: float
    accuracy: float
    majority: float


def skill(
    scores: Floats,
    returns: Floats,
    predicted: NDArray[np.integer] | None = None,
    lags: int | None = 0,
) -> Skill:
    """Summarise scores against what their decisions earned.

    Args:
        scores: (days, symbols), NaN where there is no score.
        returns: (days, symbols), NaN where unknown.
        predicted: (days, symbols) classes; None takes the sign of the score.
        lags: for the standard errors, see `intervals.standard_error`.

    Raises:
        InputError: if the shapes differ.
    """
    pearson, spearman = daily_ic(scores, returns), daily_rank_ic(scores, returns)
    if predicted is None:
        predicted = np.where(np.isfinite(scores), np.asarray(scores) > 0, -1).astype(np.int64)
    scored = np.where(np.isfinite(scores), returns, np.nan)
    known = np.isfinite(pearson)
    return Skill(
        days=int(known.sum()),
        ic=float(pearson[known].mean()) if known.any() else float("nan"),
        ic_se=standard_error(pearson, lags),
        icir=information_ratio(pearson),
        rank_ic=float(np.nanmean(spearman)) if np.isfinite(spearman).any() else float("nan"),
        rank_ic_se=standard_error(spearman, lags),
        rank_icir=information_ratio(spearman),
        accuracy=direction_accuracy(predicted, scored),
        majority=majority_rate(scored),
    )
