"""The back-test: one pass over the days, the same for every strategy.

What is known, decided, traded and earned is explicit. With the default `lag=1` the scores of day d
(computed after its close) are traded on day d+1 at the exchange's deal price, and earn from there:
with closing prices that is the return close[d+2]/close[d+1] - 1 for which Qlib's and Stockformer's
scores are trained.

The daily report has Qlib's columns and definitions (Microsoft, MIT license, `qlib/backtest/account.py`):
`return` adds the costs back, so that return - cost is what an investor kept; turnover and cost are
shares of the previous day's account value.
"""

import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.files import atomic
from manyhead.stocks.panel import Dates, Panel
from manyhead.stocks.portfolio.account import Account
from manyhead.stocks.portfolio.benchmark import Benchmark, benchmark_returns
from manyhead.stocks.portfolio.exchange import Exchange, Market, Matrix
from manyhead.stocks.portfolio.exchange import exchange as preset
from manyhead.stocks.portfolio.risk import performance, risk_analysis
from manyhead.stocks.portfolio.scores import Unknown, align
from manyhead.stocks.portfolio.strategy import Strategy
from manyhead.stocks.portfolio.topk_dropout import TopkDropout


@dataclass(frozen=True)
class Backtest:
    """Result of a back-test, the same for every strategy.

    Attributes:
        report: one row a day: date, account, return (costs added back), total_turnover, turnover,
            total_cost, cost, value (holdings), cash, bench, net_return (= return - cost), borrow
            (share of the previous account value, contained in cost) and gross (exposure).
        dates: (days,) of the back-test.
        symbols: names of the columns.
        amounts: (days, symbols) shares at the end of each day.
        prices: (days, symbols) price at which each is valued, NaN before the first.
        orders: one row an order: date, symbol, side, wanted, amount, price, value, cost, and reason,
            which is empty unless something stood against filling it as wanted.
        warnings: what a reader must know, in sentences.
        seconds: time that the days took.
    """

    report: pl.DataFrame
    dates: Dates
    symbols: tuple[str, ...]
    amounts: Matrix = field(repr=False)
    prices: Matrix = field(repr=False)
    orders: pl.DataFrame = field(repr=False)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def weights(self) -> Matrix:
        """(days, symbols) end-of-day value of each holding as a share of the account."""
        account = self.report["account"].to_numpy()[:, None]
        return np.asarray(np.where(self.amounts != 0, self.amounts * self.prices, 0.0) / account)

    @property
    def positions(self) -> pl.DataFrame:
        """End-of-day holdings, one row each: date, symbol, amount, price, value, weight."""
        day, column = np.nonzero(self.amounts)
        amount, price = self.amounts[day, column], self.prices[day, column]
        return pl.DataFrame(
            {
                "date": self.dates[day],
                "symbol": pl.Series(self.symbols, dtype=pl.String).gather(pl.Series(column, dtype=pl.UInt32)),
                "amount": amount,
                "price": price,
                "value": amount * price,
                "weight": amount * price / self.report["account"].to_numpy()[day],
            }
        )

    @property
    def net_returns(self) -> NDArray[np.float64]:
        """(days,) returns after costs."""
        return self.report["net_return"].to_numpy()

    @property
    def metrics(self) -> dict[str, float]:
        """Performance after costs against the benchmark, plus what trading took."""
        report = self.report
        filled = self.orders.filter(pl.col("amount") > 0)
        net, turnover = self.net_returns, report["turnover"].to_numpy()
        measures = performance(net, report["bench"].to_numpy())
        return measures | {
            "gross_annual_return": performance(report["return"].to_numpy())["annual_return"],
            "annual_cost": float(report["cost"].mean() or 0.0) * 252,  # type: ignore[arg-type]
            "daily_turnover": float(turnover.mean()),
            "orders": float(filled.height),
            "orders_blocked": float(self.orders.height - filled.height),
            "days": float(report.height),
            "mean_names": float(np.count_nonzero(self.amounts, axis=1).mean()),
        }

    def risk(self, mode: str = "sum") -> dict[str, dict[str, float]]:
        """Qlib's three analyses: excess without cost, excess with cost, absolute with cost."""
        value, cost, bench = (self.report[name].to_numpy() for name in ("return", "cost", "bench"))
        return {
            "excess_without_cost": risk_analysis(value - bench, mode),
            "excess_with_cost": risk_analysis(value - bench - cost, mode),
            "absolute_with_cost": risk_analysis(value - cost, mode),
        }

    def save(self, folder: str | Path) -> None:
        """Write report.parquet, positions.parquet and orders.parquet, each atomically."""
        tables = {"report": self.report, "positions": self.positions, "orders": self.orders}
        for name, table in tables.items():
            with atomic(Path(folder) / f"{name}.parquet") as stream:
                table.write_parquet(stream)


def backtest(
    panel: Panel,
    scores: Any,
    strategy: Strategy | None = None,
    exchange: Exchange | str = "us",
    *,
    account: float = 1e8,
    benchmark: Benchmark = "equal",
    start: date | str | None = None,
    end: date | str | None = None,
    lag: int = 1,
    unknown: Unknown = "warn",
) -> Backtest:
    """Trade scores through a panel of prices.

    Args:
        panel: prices; needs the exchange's deal price, and `factor` (or raw prices) for lots.
        scores: a table date, symbol, score or an array (days, symbols), see `align`; None for
            strategies that need none: every name with a price then has the same score.
        strategy: `TopkDropout` by default, or one of `manyhead.stocks.portfolio`'s books.
        exchange: an `Exchange` or the name of a preset: 'us', 'cn', 'free'.
        account: money at the start.
        benchmark: 'equal' (all names, rebalanced daily), 'hold' (bought once), 'none', an array of
            (days,) returns on the panel's calendar, or a table date, return.
        start: first day that may trade; by default the first for which scores are known.
        end: last day; by default the day on which the last scores have earned, `lag + 1` after theirs.
        lag: days from a score to its trade; 0 trades at the close that the score was computed from.
        unknown: what to do with symbols and dates that the prices do not have, 'warn' or 'error'.

    Raises:
        InputError: if an argument cannot be used or no day is left to trade.
    """
    strategy, rules = checked(strategy, exchange)
    if not np.isfinite(account) or account <= 0:
        raise InputError(f"account must be a positive amount of money, got {account}")
    if lag < 0:
        raise InputError(f"lag must be at least 0 days, got {lag}")
    if scores is None:
        scores = np.where(np.isnan(panel["close"]), np.nan, 0.0)
    values, warnings = align(panel, scores, unknown)
    first, last = _span(panel, values, start, end, lag)
    market = rules.open(panel)
    bench = benchmark_returns(panel, benchmark, (market.mark, market.gap))[first : last + 1]
    if lag == 0:
        warnings.append("lag=0: each score is traded on the day whose prices it was computed from")
    began = time.perf_counter()
    result = _run(market, values, strategy, account, first, last, lag)
    seconds = time.perf_counter() - began
    days = market.dates[first : last + 1]
    report, amounts, book = _report(days, result, bench, account)
    ruined = np.flatnonzero(report["account"].to_numpy() <= 0)
    if len(ruined):
        warnings.append(f"the account was worth nothing on {days[ruined[0]]}; trading ended there")
    stale = np.flatnonzero((amounts[-1] != 0) & (market.gap[last] >= 20))
    if len(stale):
        names = ", ".join(market.symbols[column] for column in stale[:3])
        warnings.append(
            f"{len(stale)} names are held at a price 20 or more days old ({names}); "
            "the exchange's delist_after pays them out"
        )
    return Backtest(
        report,
        days,
        market.symbols,
        amounts,
        market.mark[first : last + 1],
        book.log.table(market),
        (*panel.warnings, *market.warnings, *warnings),
        seconds,
    )


Figures = tuple[NDArray[np.float64], Matrix, Account]
COLUMNS = ("account", "value", "cash", "turnover", "cost", "borrow", "gross")


def _run(
    market: Market, scores: Matrix, strategy: Strategy, cash: float, first: int, last: int, lag: int
) -> Figures:
    """Trade every day from `first` to `last`; return the daily figures, amounts and the account."""
    trade = strategy.trader(scores, market)
    scored = np.asarray(~np.isnan(scores).all(axis=1))
    book = Account(market, cash)
    days = last - first + 1
    amounts, figures = np.zeros((days, len(market.symbols))), np.zeros((days, len(COLUMNS)))
    for row, day in enumerate(range(first, last + 1)):
        book.turnover = book.cost = book.borrow = 0.0
        if day >= lag and scored[day - lag]:
            trade(day, day - lag, book)
        book.close_day(day)
        value = book.stock_value
        if book.cash + value <= 0:  # nothing is left: everything is closed, and no day trades any more
            book.cash, value, scored = book.cash + value, 0.0, np.zeros(len(scores), bool)
            book.amount[:] = 0.0
        amounts[row] = book.amount
        gross = float(np.abs(book.amount) @ book.price)
        figures[row] = (book.cash + value, value, book.cash, book.turnover, book.cost, book.borrow, gross)
    return figures, amounts, book


def _report(
    dates: Dates, result: Figures, bench: NDArray[np.float64], cash: float
) -> tuple[pl.DataFrame, Matrix, Account]:
    figures, amounts, book = result
    account, value, left, turnover, cost, borrow, gross = figures.T
    before = np.concatenate(([cash], account[:-1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = {
            "date": dates,
            "account": account,
            "return": (account - before + cost) / before,
            "total_turnover": np.cumsum(turnover),
            "turnover": turnover / before,
            "total_cost": np.cumsum(cost),
            "cost": cost / before,
            "value": value,
            "cash": left,
            "bench": bench,
            "net_return": (account - before) / before,
            "borrow": borrow / before,
            "gross": gross / account,
        }
    return pl.DataFrame(columns), amounts, book


def checked(strategy: Strategy | None, exchange: Exchange | str) -> tuple[Strategy, Exchange]:
    """Return a strategy and an exchange from what a user gave for them.

    Raises:
        InputError: if they are neither.
    """
    strategy = TopkDropout() if strategy is None else strategy
    if not callable(getattr(strategy, "trader", None)):
        hint = "; wrap a book in Rebalance(...)" if hasattr(strategy, "weights") else ""
        raise InputError(f"strategy must have a method 'trader', got {strategy!r}{hint}")
    rules = preset(exchange) if isinstance(exchange, str) else exchange
    if not isinstance(rules, Exchange):
        raise InputError(f"exchange must be an Exchange or the name of a preset, got {exchange!r}")
    return strategy, rules


def _span(
    panel: Panel, scores: Matrix, start: date | str | None, end: date | str | None, lag: int
) -> tuple[int, int]:
    known = np.flatnonzero(~np.isnan(scores).all(axis=1))
    if len(known) == 0:
        raise InputError("no day has a score")
    first = int(known[0]) + lag
    last = min(int(known[-1]) + lag + 1, panel.days - 1)
    if start is not None:
        first = int(np.searchsorted(panel.dates, _day("start", start)))
    if end is not None:
        last = int(np.searchsorted(panel.dates, _day("end", end), side="right")) - 1
    if first > last:
        raise InputError(
            f"no day is left to trade: scores cover {panel.dates[known[0]]} to {panel.dates[known[-1]]}, "
            f"prices {panel.dates[0]} to {panel.dates[-1]}, start={start}, end={end}, lag={lag}"
        )
    return first, last


def _day(name: str, when: date | str) -> np.datetime64:
    try:
        return np.datetime64(when, "D")
    except ValueError:
        raise InputError(f"{name} must be a date like 2023-08-28, got {when!r}") from None
