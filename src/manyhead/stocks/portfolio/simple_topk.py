"""The back-test of Stockformer's released notebook: the k best names, equal weights, every day anew.

Multitask-Stockformer (arXiv 2401.06139), `Backtest/Backtest.ipynb`: names are bought at the close of
the very day of the score and held to the next close, although the score was trained for the return
from one day later. Kept for comparison; `backtest` with `TopkDropout` is what to trust. The notebook
also runs two score variants and keeps the one with the better test Sharpe: that choice is not offered.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyhead.errors import InputError


@dataclass(frozen=True)
class SimpleTopk:
    """Result of `simple_topk`.

    Attributes:
        nav: (days,) net asset value, 1 on the first day.
        turnover: (days,) sum of absolute changes of weights at each close.
        metrics: total_return, annual_return, sharpe, max_drawdown (negative).
    """

    nav: NDArray[np.float64]
    turnover: NDArray[np.float64]
    metrics: dict[str, float]


def simple_topk(close: ArrayLike, scores: ArrayLike, k: int = 10, fee: float = 0.0) -> SimpleTopk:
    """Hold the k best names of each day from its close to the next.

    NAV[d+1] = NAV[d] * (1 - fee * turnover[d]) * (1 + mean of close[d+1]/close[d] - 1 over the k names),
    turnover[d] = sum |w[d] - w'|, w' = yesterday's weights times their gross returns, not renormalised.

    Args:
        close: (days, symbols) closing prices. A chosen name without a price at either end returns 0.
        scores: (days, symbols) scores, NaN never chosen; ties by column.
        k: names to hold; fewer where fewer have scores.
        fee: share of the value traded.

    Raises:
        InputError: if the shapes differ, k is below 1 or the fee is outside [0, 1).
    """
    price, score = np.asarray(close, np.float64), np.asarray(scores, np.float64)
    if price.ndim != 2 or price.shape != score.shape:
        raise InputError(
            f"close and scores must both be (days, symbols), got {price.shape} and {score.shape}"
        )
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if not 0 <= fee < 1:
        raise InputError(f"fee must be at least 0 and below 1, got {fee}")
    days, width = price.shape
    with np.errstate(invalid="ignore", divide="ignore"):
        gross = np.nan_to_num(price[1:] / price[:-1], nan=1.0, posinf=1.0)
    order = np.argsort(-score, axis=1, kind="stable")
    nav, turnover = np.ones(days), np.zeros(days)
    drifted = np.zeros(width)
    for day in range(days):
        chosen = order[day, : min(k, int(np.count_nonzero(~np.isnan(score[day]))))]
        weights = np.zeros(width)
        if len(chosen):
            weights[chosen] = 1 / len(chosen)
        turnover[day] = np.abs(weights - drifted).sum()
        if day + 1 == days:
            break  # the last scores are bought, and not held any more
        growth = 1 + float((gross[day, chosen] - 1).mean()) if len(chosen) else 1.0
        nav[day + 1] = nav[day] * (1 - fee * turnover[day]) * growth
        drifted = weights * gross[day]
    return SimpleTopk(nav, turnover, _metrics(nav))


def _metrics(nav: NDArray[np.float64]) -> dict[str, float]:
    total = float(nav[-1] - 1)
    daily = nav[1:] / nav[:-1] - 1
    deviation = float(daily.std(ddof=1)) if len(daily) > 1 else 0.0
    return {
        "total_return": total,
        "annual_return": float((1 + total) ** (252 / len(nav)) - 1),
        "sharpe": float(np.sqrt(252) * daily.mean() / deviation) if deviation > 0 else float("nan"),
        "max_drawdown": float((nav / np.maximum.accumulate(nav) - 1).min()),
    }
