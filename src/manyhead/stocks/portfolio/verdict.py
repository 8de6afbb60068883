"""Every count of luck for one back-test, in one table."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from manyhead.stocks.portfolio.backtest import Backtest
from manyhead.stocks.portfolio.luck import (
    break_even_cost,
    deflated_sharpe,
    minimum_backtest_years,
    minimum_track_record,
    probability_of_overfitting,
    smallest_sample,
)

DAYS = 252


@dataclass(frozen=True)
class Verdict:
    """Result of `count_luck`; NaN where something was not given or cannot be counted.

    Attributes:
        days, trials: of the back-test, and evaluated on its data so far.
        sharpe: yearly, of the net returns.
        sharpe_of_luck: yearly, what the best of so many trials without skill reaches.
        deflated_sharpe: probability that the true ratio exceeds that of luck.
        track_record_days: days that a Sharpe ratio like this needs to be told from 0 at 95 %.
        backtest_years: years below which so many trials reach a yearly ratio of 1 by luck.
        overfitting: probability of back-test overfitting over the configurations tried.
        break_even: basis points a side at which no return is left.
        break_even_excess: the same for the excess over the benchmark.
        sample_return: days that would have shown the mean excess return (95 %, power 80 %).
        sample_ic: the same for the mean daily IC.
    """

    days: int
    trials: int
    sharpe: float
    sharpe_of_luck: float
    deflated_sharpe: float
    track_record_days: float
    backtest_years: float
    overfitting: float
    break_even: float
    break_even_excess: float
    sample_return: float
    sample_ic: float


def count_luck(
    result: Backtest,
    trials: int | None = None,
    sharpes: ArrayLike | None = None,
    tried: ArrayLike | None = None,
    daily_ic: ArrayLike | None = None,
) -> Verdict:
    """Count what luck may have contributed to a back-test.

    Args:
        result: the back-test.
        trials: configurations evaluated on these data, from the ledger; at least 1.
        sharpes: daily Sharpe ratio of each trial, from the ledger.
        tried: (days, configurations) daily returns of what was tried, for the overfitting.
        daily_ic: (days,) for the sample that would have shown it.

    Raises:
        InputError: if the returns do not vary, or an argument cannot be used.
    """
    report = result.report
    net, bench = result.net_returns, report["bench"].to_numpy()
    gross, turnover = report["return"].to_numpy(), report["turnover"].to_numpy()
    if trials is None and sharpes is None:
        trials = 1
    deflated = deflated_sharpe(net, trials, sharpes)
    shape = {"skewness": deflated.skewness, "kurtosis": deflated.kurtosis}
    nothing = float("nan")
    return Verdict(
        days=deflated.days,
        trials=deflated.trials,
        sharpe=deflated.sharpe * sqrt(DAYS),
        sharpe_of_luck=deflated.expected_maximum * sqrt(DAYS),
        deflated_sharpe=deflated.probability,
        track_record_days=minimum_track_record(deflated.sharpe, **shape),
        backtest_years=minimum_backtest_years(deflated.trials),
        overfitting=nothing if tried is None else probability_of_overfitting(tried).probability,
        break_even=break_even_cost(gross, turnover),
        break_even_excess=break_even_cost(gross, turnover, bench),
        sample_return=smallest_sample(net - bench, lags=None),
        sample_ic=nothing if daily_ic is None else smallest_sample(np.asarray(daily_ic), lags=None),
    )
