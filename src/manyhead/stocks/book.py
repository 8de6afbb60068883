"""Hold a model's scores as the configuration says, and keep the result as one table a day."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.stocks.config import Config
from manyhead.stocks.holding import MAIN, exchange_of, strategy_of
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import Backtest, backtest, performance, simple_topk

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Book:
    """One model's portfolio.

    Attributes:
        model: whose scores.
        report: one row a day: date, account, net_return, bench, cost, turnover; borrow and gross too where
            the book is not the main one.
        orders: one row an order, empty for `simple_topk`.
        warnings: what a reader must know.
        variant: 'chosen on validation', or the variant that was picked on test results (a leak).
        backtest: the whole back-test; None for `simple_topk`.
    """

    model: str
    report: pl.DataFrame
    orders: pl.DataFrame
    warnings: tuple[str, ...] = ()
    variant: str = "chosen on validation"
    backtest: Backtest | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Performance after costs, against the equal-weight benchmark, and what trading took."""
        net, bench = self.report["net_return"].to_numpy(), self.report["bench"].to_numpy()
        return performance(net, bench) | {
            "daily_turnover": float(self.report["turnover"].to_numpy().mean()),
            "annual_cost": float(self.report["cost"].to_numpy().mean()) * 252,
            "days": float(self.report.height),
        }


def hold(
    panel: Panel,
    scores: Matrix,
    config: Config,
    model: str,
    name: str = MAIN,
    sectors: Mapping[str, str] | None = None,
) -> Book:
    """Trade one score table.

    With every leak off, a score of day d is traded at the close of d+1, after costs. The benchmark is the
    equal-weight return of the names that had a score, known at the same time.

    Args:
        panel: prices.
        scores: (days, symbols) on the panel, NaN where there is no score.
        config: settings of the run.
        model: name for the result.
        name: of the book: 'main' is the section [portfolio], others are of `config.books`.
        sectors: symbol -> sector, for sector-neutral books.

    Raises:
        InputError: if there is no such book, or it cannot be held on these prices.
    """
    lag = 0 if config.leaks.one_day_early else 1
    if name == MAIN and config.portfolio.strategy == "simple_topk":
        return _simple(panel, scores, config, model, lag)
    result = backtest(
        panel,
        scores,
        strategy_of(config, len(panel.symbols), name, sectors),
        exchange_of(config, name),
        account=config.portfolio.account,
        benchmark=benchmark(panel, scores, lag),
        lag=lag,
    )
    columns = ["date", "account", "net_return", "bench", "cost", "turnover"]
    report = result.report.select(*columns, *([] if name == MAIN else ["borrow", "gross"]))
    return Book(model, report, result.orders, result.warnings, backtest=result)


def benchmark(panel: Panel, scores: Matrix, lag: int) -> Matrix:
    """Return the equal-weight close-to-close return of the names with a score `lag` + 1 days before."""
    close = panel["close"].astype(np.float64)
    returns = np.zeros(panel.days)
    with np.errstate(invalid="ignore", divide="ignore"):
        daily = close[1:] / close[:-1] - 1
    # held over the day that ends at row t: bought at the close of t-1, from scores of t-1-lag
    scored = np.zeros(close.shape, bool)
    scored[1 + lag :] = np.isfinite(scores[: panel.days - 1 - lag])
    counted = scored[1:] & np.isfinite(daily)
    count = counted.sum(axis=1)
    returns[1:] = np.where(counted, daily, 0.0).sum(axis=1) / np.maximum(count, 1)
    return returns


def _simple(panel: Panel, scores: Matrix, config: Config, model: str, lag: int) -> Book:
    """The released notebook's daily rebalancing, between the first and the last day with scores."""
    wanted = config.portfolio
    fee = 0.0 if config.leaks.zero_fees else wanted.open_cost
    scored = np.flatnonzero(np.isfinite(scores).any(axis=1))
    first, last = int(scored[0]), min(int(scored[-1]) + lag + 1, panel.days - 1)
    traded = np.full_like(scores, np.nan)
    traded[lag:] = scores[: panel.days - lag]
    span = slice(first + lag, last + 1)
    result = simple_topk(panel["close"][span], traded[span], wanted.topk, fee)
    returns = np.diff(result.nav, prepend=1.0) / np.concatenate([[1.0], result.nav[:-1]])
    cost = np.concatenate([[0.0], fee * result.turnover[:-1]])
    report = pl.DataFrame(
        {
            "date": panel.dates[span],
            "account": result.nav * wanted.account,
            "net_return": returns,
            "bench": benchmark(panel, scores, lag)[span],
            "cost": cost,
            "turnover": result.turnover,
        }
    )
    return Book(model, report, pl.DataFrame())
