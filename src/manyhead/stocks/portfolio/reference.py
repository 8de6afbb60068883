"""TopK-Dropout one order at a time, in plain Python: the definition that the arrays must equal.

Slow and meant to be read beside `topk_dropout.py` and `account.py`; tests tie the three together.
"""

from dataclasses import dataclass, field

import numpy as np

from manyhead.stocks.portfolio.exchange import Market, Matrix
from manyhead.stocks.portfolio.topk_dropout import TopkDropout


@dataclass
class Holding:
    """Shares of one name, the price at which they are valued, and the day ends since the purchase."""

    amount: float
    price: float
    days: int = 0


@dataclass
class Day:
    """What one day ends with."""

    account: float
    cash: float
    turnover: float
    cost: float
    amounts: dict[int, float] = field(default_factory=dict)


class Book:
    """One account; every method is one rule."""

    def __init__(self, market: Market, cash: float) -> None:
        self.market, self.cash = market, cash
        self.held: dict[int, Holding] = {}  # in the order of purchase
        self.turnover = self.cost = 0.0

    def round(self, day: int, column: int, amount: float) -> float:
        lot, factor = self.market.rules.lot, self.market.factor
        if lot is None or factor is None:
            return amount
        unit = float(factor[day, column])
        return float((amount * unit + 0.1) // lot * lot / unit)

    def fee(self, value: float, rate: float) -> float:
        return max(value * rate, self.market.rules.costs.minimum) if value > 1e-5 else 0.0

    def sell_all(self, day: int, column: int) -> None:
        price = float(self.market.sell_price[day, column])
        value = self.held[column].amount * price
        fee = self.fee(value, float(self.market.close_rate[day]))
        if self.cash + value < fee or value <= 1e-5:
            return
        del self.held[column]
        self.cash += value - fee
        self.turnover += value
        self.cost += fee

    def buy(self, day: int, column: int, amount: float) -> None:
        price, rate = float(self.market.buy_price[day, column]), float(self.market.open_rate[day])
        least = self.market.rules.costs.minimum
        value = amount * price
        fee = max(value * rate, least)
        if self.cash < fee:
            return
        if self.cash < value + fee:
            # solve value + max(value * rate, least) = cash for the value
            affordable = min(self.cash / (1 + rate), self.cash - least)
            amount = min(affordable / price, amount)
        amount = self.round(day, column, amount)
        value = amount * price
        if value <= 1e-5:
            return
        self.held[column] = Holding(amount, price)
        fee = self.fee(value, rate)
        self.cash -= value + fee
        self.turnover += value
        self.cost += fee


def topk_dropout_days(
    market: Market, scores: Matrix, strategy: TopkDropout, cash: float, first: int, last: int, lag: int = 1
) -> list[Day]:
    """Trade `scores` from row `first` to row `last`, and return how each day ends."""
    book, days = Book(market, cash), []
    for day in range(first, last + 1):
        book.turnover = book.cost = 0.0
        if day >= lag and not np.isnan(scores[day - lag]).all():
            _trade(book, day, [float(score) for score in scores[day - lag]], strategy)
        for column, holding in book.held.items():
            if not market.suspended[day, column]:
                holding.price = float(market.close[day, column])
            holding.days += 1
        value = sum(holding.amount * holding.price for holding in book.held.values())
        amounts = {column: holding.amount for column, holding in book.held.items()}
        days.append(Day(book.cash + value, book.cash, book.turnover, book.cost, amounts))
    return days


def _trade(book: Book, day: int, score: list[float], strategy: TopkDropout) -> None:
    market = book.market

    def can(column: int, buying: bool) -> bool:
        both = strategy.forbid_all_trade_at_limit
        return bool(
            (market.can_buy[day, column] or not (buying or both))
            and (market.can_sell[day, column] or (buying and not both))
        )

    def rank(column: int) -> tuple[bool, float, int]:
        missing = np.isnan(score[column])
        return bool(missing), 0.0 if missing else -score[column], column

    def allowed(column: int) -> bool:
        both_ways = bool(market.can_buy[day, column] and market.can_sell[day, column])
        return both_ways or not strategy.only_tradable

    last = sorted(book.held, key=rank)
    room = strategy.n_drop + strategy.topk - len(last)
    others = sorted((c for c in range(len(score)) if c not in book.held and not np.isnan(score[c])), key=rank)
    others = [column for column in others if allowed(column)]
    today = others[: max(room, 1)] if strategy.only_tradable else others[:room]
    comb = [column for column in sorted([*last, *today], key=rank) if allowed(column)]
    marked = comb[len(comb) - min(strategy.n_drop, len(comb)) :]
    sell = [column for column in last if column in marked]
    buy = today[: len(sell) + strategy.topk - len(last)]
    for column in [column for column in book.held if column in sell]:
        if can(column, buying=False) and book.held[column].days >= strategy.hold_thresh:
            book.sell_all(day, column)
    share = book.cash * strategy.risk_degree / max(len(buy), 1)
    for column in buy:
        if can(column, buying=True):
            price = float(market.buy_price[day, column])
            book.buy(day, column, book.round(day, column, share / price))
