"""The account: cash, holdings, and the execution of orders against a market.

Orders of one call are executed in the order given, each with the cash that the ones before it left,
as in Qlib's simulator (Microsoft, MIT license, `qlib/backtest/exchange.py`). Where cash suffices for
all of them the sequence is computed at once by a cumulative sum; from the first order that cash does
not cover, one after another.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.stocks.portfolio.exchange import Market, Matrix

Columns = NDArray[np.intp]

# why an order was not filled as wanted; the empty reason is 'filled'
REASONS = (
    "",
    "suspended",
    "limit up",
    "limit down",
    "held too briefly",
    "cut to the cash",
    "not enough cash",
    "less than one lot",
    "delisted",
    "more than is held",
)
FILLED, SUSPENDED, LIMIT_UP, LIMIT_DOWN, TOO_BRIEF, CUT, NO_CASH, NO_LOT, DELISTED, NOT_HELD = range(10)


class OrderLog:
    """Orders in growing columns, 34 bytes an order."""

    FIELDS = (
        ("day", np.int32),
        ("column", np.int32),
        ("buy", np.bool_),
        ("wanted", np.float64),
        ("amount", np.float64),
        ("price", np.float64),
        ("cost", np.float64),
        ("reason", np.int8),
    )

    def __init__(self) -> None:
        self.size = 0
        self.columns: dict[str, NDArray[Any]] = {name: np.empty(1024, kind) for name, kind in self.FIELDS}

    def add(self, count: int, **values: Any) -> None:
        """Append `count` orders; each value is one array of that length or a scalar."""
        stop = self.size + count
        if stop > len(self.columns["day"]):
            room = max(stop, 3 * len(self.columns["day"]) // 2)
            for name, column in self.columns.items():
                larger = np.empty(room, column.dtype)
                larger[: self.size] = column[: self.size]
                self.columns[name] = larger
        for name, value in values.items():
            self.columns[name][self.size : stop] = value
        self.size = stop

    def table(self, market: Market) -> pl.DataFrame:
        """Return date, symbol, side, wanted, amount, price, value, cost and reason of every order."""
        column = {name: values[: self.size] for name, values in self.columns.items()}
        symbols = pl.Series("symbol", market.symbols, pl.String)
        return pl.DataFrame(
            {
                "date": market.dates[column["day"]].astype("datetime64[D]"),
                "symbol": symbols.cast(pl.Categorical).gather(pl.Series(column["column"], dtype=pl.UInt32)),
                "side": pl.Series(column["buy"]).replace_strict(
                    {True: "buy", False: "sell"}, return_dtype=pl.Categorical
                ),
                "wanted": column["wanted"],
                "amount": column["amount"],
                "price": column["price"],
                "value": column["amount"] * column["price"],
                "cost": column["cost"],
                "reason": pl.Series(column["reason"]).replace_strict(
                    dict(enumerate(REASONS)), return_dtype=pl.Categorical
                ),
            }
        )


class Account:
    """Cash and holdings while a back-test runs.

    Attributes:
        cash: money not invested.
        amount: (symbols,) shares held, negative where sold short.
        price: (symbols,) price at which each holding is valued.
        days: (symbols,) day ends since the position was opened.
        turnover, cost: value traded and fees paid so far today.
    """

    def __init__(self, market: Market, cash: float) -> None:
        width = len(market.symbols)
        self.market, self.cash = market, float(cash)
        self.amount, self.price = np.zeros(width), np.zeros(width)
        self.days = np.zeros(width, np.int64)
        self.turnover = self.cost = self.borrow = 0.0
        self.log = OrderLog()
        self._opened, self._openings = np.zeros(width, np.int64), 0

    @property
    def value(self) -> float:
        """Cash and holdings together."""
        return self.cash + self.stock_value

    @property
    def stock_value(self) -> float:
        """Market value of the holdings, shorts negative."""
        return float(self.amount @ self.price)

    def held(self) -> Columns:
        """Return the columns held, in the order in which they were opened."""
        columns = np.flatnonzero(self.amount)
        return columns[np.argsort(self._opened[columns])]

    def place(self, column: int, amount: float, price: float, days: int = 0) -> None:
        """Put a position into the account that was there before the first day."""
        self.amount[column], self.price[column], self.days[column] = amount, price, days
        self._opened[column] = self._openings
        self._openings += 1

    def sell(self, day: int, columns: Columns, amounts: Matrix) -> None:
        """Sell shares at the day's price; more than is held only where the exchange lets one go short."""
        market = self.market
        columns, amounts = self._tradable(day, columns, amounts, buying=False)
        if not len(columns):
            return
        wanted, have, price = amounts, self.amount[columns], market.sell_price[day, columns]
        whole = np.abs(amounts - have) <= 1e-8 + 1e-5 * np.abs(have)  # a whole position needs no rounding
        if not market.rules.short:
            amounts = np.minimum(amounts, np.maximum(have, 0.0))
        if not whole.all():
            amounts = np.where(whole, amounts, market.lots(day, columns, amounts))
            if not market.rules.short:
                amounts = np.minimum(amounts, have)  # rounding to lots adds a tenth of a share
        values = amounts * price
        costs = market.fees(day, columns, values, price, buying=False)
        cash = self.cash + np.cumsum(values - costs)
        if (cash < 0).any():  # proceeds do not cover a minimum fee
            cash = self._sell_one_by_one(amounts, values, costs)
        reason = np.where(amounts < wanted, np.where(values > 1e-5, NOT_HELD, NO_LOT), FILLED)
        self._fill(day, columns, wanted, amounts, price, costs, reason, float(cash[-1]), buying=False)

    def _sell_one_by_one(self, amounts: Matrix, values: Matrix, costs: Matrix) -> Matrix:
        cash, after = self.cash, np.empty(len(values))
        for i in range(len(values)):
            if cash + values[i] < costs[i]:
                amounts[i] = values[i] = costs[i] = 0.0
            cash += values[i] - costs[i]
            after[i] = cash
        return after

    def buy(self, day: int, columns: Columns, amounts: Matrix) -> None:
        """Buy shares at the day's price, each order as far as the cash that is left allows."""
        market = self.market
        columns, wanted = self._tradable(day, columns, np.maximum(amounts, 0.0), buying=True)
        if not len(columns):
            return
        price = market.buy_price[day, columns]
        asked = wanted * price
        rate = market.rate(day, columns, asked, price, buying=True)
        need = asked + np.maximum(asked * rate, market.rules.costs.minimum)
        amounts = market.lots(day, columns, wanted)
        values = amounts * price
        costs = np.where(values > 1e-5, np.maximum(values * rate, market.rules.costs.minimum), 0.0)
        spent = np.cumsum(values + costs)
        before = self.cash - np.concatenate(([0.0], spent[:-1]))
        short = before < need
        reason = np.where(values > 1e-5, FILLED, NO_LOT)
        cash = self.cash - float(spent[-1])
        if short.any():
            first = int(np.argmax(short))
            cash = self._buy_one_by_one(
                day, first, float(before[first]), columns, wanted, price, rate, amounts, costs, reason
            )
        self._fill(day, columns, wanted, amounts, price, costs, reason, cash, buying=True)

    def _buy_one_by_one(
        self,
        day: int,
        first: int,
        cash: float,
        columns: Columns,
        wanted: Matrix,
        price: Matrix,
        rates: Matrix | float,
        amounts: Matrix,
        costs: Matrix,
        reason: NDArray[np.int64],
    ) -> float:
        """Execute the orders from `first` on with the cash that there is; return what is left."""
        least = self.market.rules.costs.minimum
        rates = np.broadcast_to(np.asarray(rates, np.float64), price.shape)
        for i in range(first, len(columns)):
            rate, asked = float(rates[i]), float(wanted[i] * price[i])
            fee = max(asked * rate, least)
            if cash < fee:
                amounts[i], costs[i], reason[i] = 0.0, 0.0, NO_CASH
                continue
            if cash < asked + fee:
                affordable = affordable_amount(cash, float(price[i]), rate, least)
                one = columns[i : i + 1]
                amounts[i] = self.market.lots(day, one, np.array([min(affordable, float(wanted[i]))]))[0]
                reason[i] = CUT if amounts[i] * price[i] > 1e-5 else NO_CASH
            value = float(amounts[i] * price[i])
            costs[i] = max(value * rate, least) if value > 1e-5 else 0.0
            cash -= value + costs[i] if value > 1e-5 else 0.0
        return cash

    def block(self, day: int, columns: Columns, wanted: Matrix, reason: int, buying: bool) -> None:
        """Record orders that a strategy would have placed, had a rule not held them back."""
        nothing = {"amount": 0.0, "price": np.nan, "cost": 0.0}
        self.log.add(
            len(columns), day=day, column=columns, buy=buying, wanted=wanted, reason=reason, **nothing
        )

    def block_untradable(self, day: int, columns: Columns, wanted: Matrix, buying: bool) -> None:
        """Record orders for names that are suspended or at a price limit; `wanted` by column."""
        nothing = {"amount": 0.0, "price": np.nan, "cost": 0.0, "reason": self.why_not(day, columns)}
        self.log.add(len(columns), day=day, column=columns, buy=buying, wanted=wanted[columns], **nothing)

    def why_not(self, day: int, columns: Columns) -> NDArray[np.int64]:
        """Return the reason for which each column cannot be traded (0 where nothing stands against it)."""
        market = self.market
        limit = np.where(
            market.rise[day, columns], LIMIT_UP, np.where(market.fall[day, columns], LIMIT_DOWN, 0)
        )
        return np.where(market.suspended[day, columns], SUSPENDED, limit)

    def _tradable(self, day: int, columns: Columns, amounts: Matrix, buying: bool) -> tuple[Columns, Matrix]:
        can = (self.market.can_buy if buying else self.market.can_sell)[day, columns]
        if can.all():
            return columns, amounts
        stopped = columns[~can]
        nothing = {"amount": 0.0, "price": np.nan, "cost": 0.0, "reason": self.why_not(day, stopped)}
        self.log.add(len(stopped), day=day, column=stopped, buy=buying, wanted=amounts[~can], **nothing)
        return columns[can], amounts[can]

    def _fill(
        self,
        day: int,
        columns: Columns,
        wanted: Matrix,
        amounts: Matrix,
        price: Matrix,
        costs: Matrix,
        reason: NDArray[np.int64],
        cash: float,
        buying: bool,
    ) -> None:
        values = amounts * price
        filled = values > 1e-5
        if not filled.all():
            amounts, values = np.where(filled, amounts, 0.0), np.where(filled, values, 0.0)
        before = self.amount[columns]
        after = before + amounts if buying else before - amounts
        # what is left of a position that was sold whole is rounding, not a holding
        after[np.abs(after) <= 1e-8 + 1e-5 * amounts] = 0.0
        opened = columns[(after != 0) & (before * after <= 0)]
        if len(opened):
            self._opened[opened] = np.arange(self._openings, self._openings + len(opened))
            self._openings += len(opened)
            self.days[opened] = 0
        self.amount[columns] = after
        self.price[columns] = np.where(filled, price, self.price[columns])
        self.turnover += float(values.sum())
        self.cost += float(costs.sum())
        self.cash = cash
        side = {"buy": buying, "wanted": wanted, "reason": reason}
        self.log.add(len(columns), day=day, column=columns, amount=amounts, price=price, cost=costs, **side)

    def close_day(self, day: int) -> None:
        """Value the holdings at the close, charge for what is borrowed, pay out what is delisted."""
        market, rules = self.market, self.market.rules
        held = self.amount != 0
        priced = held & ~market.suspended[day]
        self.price[priced] = market.close[day, priced]
        if rules.short and rules.costs.borrow > 0 and day > 0:
            elapsed = int((market.dates[day] - market.dates[day - 1]) / np.timedelta64(1, "D"))
            owed = -float(np.minimum(self.amount, 0.0) @ self.price)
            self.borrow = owed * rules.costs.borrow * elapsed / 365
            self.cash -= self.borrow
            self.cost += self.borrow
        if rules.delist_after is not None:
            gone = np.flatnonzero(held & (market.gap[day] >= rules.delist_after))
            if len(gone):
                price = self.price[gone] * (1 + rules.delisting_return)
                amount = self.amount[gone]
                self.cash += float(amount @ price)
                self.amount[gone] = 0.0
                self.log.add(
                    len(gone), day=day, column=gone, buy=amount < 0, wanted=np.abs(amount),
                    amount=np.abs(amount), price=price, cost=0.0, reason=DELISTED,
                )  # fmt: skip
        self.days[self.amount != 0] += 1


def affordable_amount(cash: float, price: float, rate: float, minimum: float) -> float:
    """Return how many shares `cash` buys, fees included (Qlib, `_get_buy_amount_by_cash_limit`)."""
    if cash < minimum:
        return 0.0
    # below this value of a trade the minimum is the larger fee
    if rate > 0 and cash / (1 + rate) * rate >= minimum:
        return cash / (1 + rate) / price
    if rate == 0 and minimum == 0:
        return cash / price
    return (cash - minimum) / price
