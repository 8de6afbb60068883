"""How well each factor alone ranks the next returns: the table by which factors are kept or dropped.

Stockformer (arXiv 2401.06139), factor analysis: per factor the mean and deviation of its daily information
coefficient, the share of days on which it is positive, and on which it exceeds 0.02 in magnitude; factors
whose mean RankIC stays below 0.02 are dropped. Use training rows only: a choice made on other rows leaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.factors.source import FactorSource
from manyhead.stocks.metrics import correlation_by_day, ranks

if TYPE_CHECKING:
    import polars as pl

NOTABLE = 0.02  # the paper's bound for a coefficient that matters


def factor_skill(source: FactorSource, flow: NDArray[np.floating], rows: range) -> pl.DataFrame:
    """Correlate every factor with the next returns, day by day.

    Args:
        source: factors, raw or pre-processed.
        flow: (days, symbols) next returns of the same days, NaN where unknown.
        rows: training rows whose returns are known.

    Returns:
        one row a factor: factor, days (with a coefficient), ic, ic_std, ic_positive, ic_notable (shares
        of days), rank_ic.

    Raises:
        InputError: if there are no rows, or the returns are of other days or symbols.
    """
    import polars as pl

    if len(rows) == 0:
        raise InputError("factor_skill needs at least one row, got none")
    symbols = source.rows(rows.start, rows.start).shape[1]
    if flow.shape != (source.days, symbols):
        raise InputError(
            f"flow must be (days, symbols) = {(source.days, symbols)} like the factors, got {flow.shape}"
        )
    linear, ranked = [], []
    for row in rows:
        values = source.rows(row, row + 1)[0].T.astype(np.float64)  # (factors, symbols)
        returns = np.broadcast_to(flow[row].astype(np.float64), values.shape)
        both = np.isfinite(values) & np.isfinite(returns)
        values, returns = np.where(both, values, np.nan), np.where(both, returns, np.nan)
        linear.append(correlation_by_day(values, returns))
        ranked.append(correlation_by_day(ranks(values), ranks(returns)))
    ic, rank_ic = np.stack(linear), np.stack(ranked)  # (days, factors)
    known = np.isfinite(ic)
    days = known.sum(axis=0)

    def share(which: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.where(days > 0, (which & known).sum(axis=0) / np.maximum(days, 1), np.nan)

    mean = _mean(ic)
    return pl.DataFrame(
        {
            "factor": list(source.names),
            "days": days,
            "ic": mean,
            "ic_std": np.sqrt(_mean((ic - mean) ** 2)),
            "ic_positive": share(ic > 0),
            "ic_notable": share(np.abs(ic) > NOTABLE),
            "rank_ic": _mean(rank_ic),
        }
    )


def notable_factors(skill: pl.DataFrame, least: float = NOTABLE) -> tuple[str, ...]:
    """Name the factors whose mean RankIC is at least so large in magnitude, for `Chosen`.

    The paper's rule, but for the magnitude: a factor that ranks stocks upside down is as good.

    Raises:
        InputError: if none is.
    """
    import polars as pl

    kept = skill.filter(pl.col("rank_ic").is_not_nan() & (pl.col("rank_ic").abs() >= least))["factor"]
    if kept.is_empty():
        raise InputError(f"no factor has a mean RankIC of {least:g} or more in magnitude; lower `least`")
    return tuple(kept)


def _mean(daily: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over days, NaN days left out; NaN for a factor without any."""
    known = np.isfinite(daily)
    days = known.sum(axis=0)
    total: NDArray[np.float64] = np.where(known, daily, 0).sum(axis=0)
    return total / np.where(days > 0, days, np.nan)
