"""Orders that lead from what is held to what a strategy wants, for the day after the last prices.

The strategy is asked as in a back-test, on one day more than the prices have. What that day will
bring is unknown: its prices are estimated by the last closes, names without a price today are taken
to stay suspended, and daily limits cannot be known. Shares and prices are unadjusted: with adjusted
prices and their `factor`, shares = adjusted amount * factor.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyhead.errors import InputError
from manyhead.files import atomic
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio.account import Account
from manyhead.stocks.portfolio.backtest import checked
from manyhead.stocks.portfolio.exchange import Exchange, Matrix
from manyhead.stocks.portfolio.scores import Unknown, align
from manyhead.stocks.portfolio.strategy import Strategy


@dataclass(frozen=True)
class Orders:
    """Result of `next_orders`.

    Attributes:
        table: one row an order: symbol, side, shares, price (estimate), value, cost, reason (empty, or
            what stands against it; such orders have 0 shares or fewer than wanted).
        book: what is held if all are filled: symbol, shares, price, value, weight.
        cash_before, cash: before and after the orders.
        cost: fees of all orders.
        decided: date of the scores and prices used.
        warnings: what a reader must know.
    """

    table: pl.DataFrame
    book: pl.DataFrame
    cash_before: float
    cash: float
    cost: float
    decided: np.datetime64
    warnings: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Write the orders as CSV, atomically."""
        with atomic(path) as stream:
            self.table.write_csv(stream)


@dataclass(frozen=True)
class Holdings:
    """Shares by symbol, cash, and day ends since the purchase by symbol where they are known."""

    shares: dict[str, float]
    cash: float
    days: dict[str, int]


def read_holdings(source: str | Path | pl.DataFrame, cash: float | None = None) -> Holdings:
    """Read holdings: columns symbol and amount (shares); optionally cash and days.

    Cash stands in a column `cash` (filled in one row, or the same in all), in a row whose symbol is
    'CASH', or in the argument.

    Raises:
        InputError: with file, row and column of what cannot be used, or if no cash is given.
    """
    name = "the holdings" if isinstance(source, pl.DataFrame) else f"the holdings file {source}"
    table = source if isinstance(source, pl.DataFrame) else _read(Path(source))
    absent = [column for column in ("symbol", "amount") if column not in table.columns]
    if absent:
        have = ", ".join(table.columns) or "none"
        raise InputError(f"{name} need the columns symbol and amount; {absent[0]!r} is missing of {have}")
    shares: dict[str, float] = {}
    days: dict[str, int] = {}
    found: dict[str, float] = {}
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        symbol = str(row["symbol"] or "").strip()
        stated = row.get("cash")
        if stated is not None and str(stated).strip():
            found[f"row {number}, column 'cash'"] = _amount(name, number, "cash", stated)
        if not symbol:
            if row["amount"] is None and stated is not None:
                continue  # a row for the cash alone
            raise InputError(f"{name} have no symbol in row {number}")
        amount = _amount(name, number, "amount", row["amount"])
        if symbol.upper() == "CASH":
            found[f"row {number}"] = amount
        elif symbol in shares:
            raise InputError(f"{name} have {symbol!r} twice, the second time in row {number}")
        else:
            shares[symbol] = amount
            if row.get("days") is not None:
                days[symbol] = int(_amount(name, number, "days", row["days"]))
    if cash is not None:
        found["the argument cash"] = float(cash)
    if not found:
        raise InputError(f"{name} say nothing of cash: add a row CASH, a column cash, or give cash")
    if len(set(found.values())) > 1:
        stated_twice = ", ".join(f"{amount:g} ({where})" for where, amount in found.items())
        raise InputError(f"{name} give more than one amount of cash: {stated_twice}")
    return Holdings(shares, next(iter(found.values())), days)


def next_orders(
    holdings: Holdings | str | Path | pl.DataFrame,
    panel: Panel,
    scores: Any,
    strategy: Strategy | None = None,
    exchange: Exchange | str = "us",
    *,
    cash: float | None = None,
    unknown: Unknown = "warn",
) -> Orders:
    """Return the orders for the day after the panel's last.

    A strategy that waits between rebalancings is taken to be due.

    Args:
        holdings: a CSV file or table (see `read_holdings`), or what that returns.
        panel: prices up to the day of the decision.
        scores: as in `backtest`; those of the panel's last day are used.
        strategy: as in `backtest`.
        exchange: as in `backtest`.
        cash: money in the account, where the holdings do not say.
        unknown: what to do with symbols of the scores that the prices do not have.

    Raises:
        InputError: if a holding has no price at all, the last day has no scores, or an argument
            cannot be used.
    """
    strategy, rules = checked(strategy, exchange)
    held = holdings if isinstance(holdings, Holdings) else read_holdings(holdings, cash)
    values, warnings = align(panel, scores, unknown)
    last = panel.days - 1
    if np.isnan(values[last]).all():
        raise InputError(
            f"no score is of the last day of the prices, {panel.dates[last]}; orders need scores of that day"
        )
    if "factor" not in panel:
        # prices adjusted backwards are what is paid on their last day
        rules = replace(rules, raw_prices=True)
    market = rules.open(_tomorrow(panel))
    factor = _last_factor(panel)
    account = Account(market, held.cash)
    _place(account, held, panel, market.mark[-1], factor)
    cash_before = account.cash
    if cash_before < 0:
        warnings.append(f"cash is {cash_before:,.2f}: nothing can be bought before something is sold")
    extended = np.vstack([values, np.full((1, len(panel.symbols)), np.nan)])
    strategy.trader(extended, market)(panel.days, last, account)
    stale = [s for s in held.shares if np.isnan(panel["close"][last, panel.symbols.index(s)])]
    if stale:
        warnings.append(
            f"held without a price on {panel.dates[last]}, valued at the last: {', '.join(stale)}"
        )
    table = account.log.table(market)
    scale = pl.Series(factor[account.log.columns["column"][: account.log.size]])
    shown = table.select(
        pl.col("symbol").cast(pl.String),
        pl.col("side").cast(pl.String),
        (pl.col("amount") * scale).alias("shares"),
        (pl.col("price") / scale).alias("price"),
        pl.col("value").fill_nan(0.0),
        "cost",
        pl.col("reason").cast(pl.String),
        (pl.col("wanted") * scale).alias("wanted"),
    )
    return Orders(
        shown,
        _book(account, panel, factor),
        cash_before,
        account.cash,
        account.cost,
        panel.dates[last],
        (*panel.warnings, *market.warnings, *warnings),
    )


def _tomorrow(panel: Panel) -> Panel:
    """Append a day whose prices are the last ones; nothing has changed yet, so no limit is hit."""
    day = np.busday_offset(panel.dates[-1], 1, roll="forward")
    close = panel["close"][-1:]
    fields = {}
    for name, values in panel.fields.items():
        guess = values[-1:]
        if name in ("open", "high", "low", "vwap"):
            guess = close
        elif name == "change":
            guess = np.where(np.isnan(close), np.nan, 0.0)
        elif name == "factor":  # a suspended name keeps its factor
            guess = _last_factor(panel)[None]
        fields[name] = np.vstack([values, guess])
    return Panel(np.append(panel.dates, day), panel.symbols, fields, panel.warnings)


def _last_factor(panel: Panel) -> Matrix:
    if "factor" not in panel:
        return np.ones(len(panel.symbols))
    factor = panel["factor"].astype(np.float64)
    known = ~np.isnan(factor)
    row = factor.shape[0] - 1 - np.argmax(known[::-1], axis=0)
    latest = factor[row, np.arange(factor.shape[1])]
    return np.asarray(np.where(np.isnan(latest), 1.0, latest))


def _place(account: Account, held: Holdings, panel: Panel, mark: Matrix, factor: Matrix) -> None:
    """Put the holdings into an account, in adjusted shares at the last price known."""
    column = {symbol: index for index, symbol in enumerate(panel.symbols)}
    unknown = [symbol for symbol in held.shares if symbol not in column]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(
            f"holdings without prices: {', '.join(unknown[:5])}{more}; add their prices or take them out"
        )
    for symbol, shares in held.shares.items():
        at = column[symbol]
        if np.isnan(mark[at]):
            raise InputError(f"the holding {symbol!r} has no price on any day of the prices")
        if shares < 0 and not account.market.rules.short:
            raise InputError(
                f"the holding {symbol!r} is short ({shares:g}); give an exchange with short=True"
            )
        # a name whose days are unknown has been held long enough
        account.place(at, shares / factor[at], float(mark[at]), held.days.get(symbol, 10**6))


def _book(account: Account, panel: Panel, factor: Matrix) -> pl.DataFrame:
    columns = np.flatnonzero(account.amount)
    value = account.amount[columns] * account.price[columns]
    return pl.DataFrame(
        {
            "symbol": [panel.symbols[column] for column in columns],
            "shares": account.amount[columns] * factor[columns],
            "price": account.price[columns] / factor[columns],
            "value": value,
            "weight": value / account.value,
        },
        schema_overrides={"symbol": pl.String},
    ).sort("weight", descending=True)


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise InputError(f"there is no holdings file {path}")
    try:
        return pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as broken:
        raise InputError(
            f"the holdings file {path} cannot be read: {str(broken).splitlines()[0]}"
        ) from broken


def _amount(name: str, row: int, column: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{name} must have a number in row {row}, column {column!r}, got {value!r}")
    return number
