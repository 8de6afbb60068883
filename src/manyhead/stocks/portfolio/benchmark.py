"""What a portfolio is compared with: all names in equal shares, or a series that the user brings."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio.exchange import carry_forward

# 'equal', 'hold', 'none', returns (days,) on the panel's calendar, or a table date, return
Benchmark = Any


# closes carried over gaps, and days since the last one, where they are at hand
Marks = tuple[NDArray[np.float64], NDArray[np.int32]]


def equal_weight_returns(
    panel: Panel, rebalanced: bool = True, marks: Marks | None = None
) -> NDArray[np.float64]:
    """Return the daily returns of holding every name in equal shares, free of cost.

    Args:
        panel: prices of shape (days, symbols).
        rebalanced: back to equal shares at each close, over the names that have a price on it;
            otherwise bought once, at the close of the first day, and left to drift.
        marks: what `carry_forward` returns for the closes, to save its time.

    Returns:
        (days,) close-to-close returns, 0 on the first day. Names without a price return 0 until
        they have one again.
    """
    close = panel["close"].astype(np.float64, copy=False)
    mark, gap = carry_forward(close) if marks is None else marks
    returns = np.zeros(panel.days)
    if rebalanced:
        with np.errstate(invalid="ignore", divide="ignore"):
            daily = mark[1:] / mark[:-1]
        daily -= 1
        left_out = np.isnan(daily)
        left_out |= gap[:-1] > 0
        daily[left_out] = 0.0
        count = daily.shape[1] - np.count_nonzero(left_out, axis=1)
        returns[1:] = daily.sum(axis=1) / np.maximum(count, 1)
    else:
        bought = ~np.isnan(close[0])
        if not bought.any():
            raise InputError(f"no name has a price on the first day, {panel.dates[0]}")
        value = (mark[:, bought] / mark[0, bought]).mean(axis=1)
        returns[1:] = value[1:] / value[:-1] - 1
    return returns


def benchmark_returns(panel: Panel, benchmark: Benchmark, marks: Marks | None = None) -> NDArray[np.float64]:
    """Return the benchmark's returns on the panel's calendar, shape (days,).

    Raises:
        InputError: if the benchmark is none of the kinds named above, or lacks a day.
    """
    if isinstance(benchmark, str):
        if benchmark in ("equal", "hold"):
            return equal_weight_returns(panel, benchmark == "equal", marks)
        if benchmark == "none":
            return np.zeros(panel.days)
        raise InputError(f"benchmark must be 'equal', 'hold', 'none', an array or a table, got {benchmark!r}")
    if isinstance(benchmark, pl.DataFrame):
        if not {"date", "return"} <= set(benchmark.columns):
            raise InputError(f"a benchmark table needs the columns date, return; it has {benchmark.columns}")
        days = benchmark["date"].cast(pl.Date).to_numpy().astype("datetime64[D]")
        known = dict(zip(days.tolist(), benchmark["return"].to_list(), strict=True))
        series = np.array([known.get(day, np.nan) for day in panel.dates.tolist()], np.float64)
        if np.isnan(series).all():
            raise InputError("the benchmark has no date in common with the prices")
        return series
    try:
        series = np.asarray(benchmark, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"benchmark must be an array of returns, got {type(benchmark).__name__}") from None
    if series.shape != (panel.days,):
        raise InputError(
            f"benchmark as an array must have one return a day, ({panel.days},), got {series.shape}"
        )
    return series
