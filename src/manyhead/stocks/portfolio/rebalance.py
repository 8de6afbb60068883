"""Trading towards a book's target weights: drift, turnover limits, bands and volatility scaling.

Between rebalancings amounts stay and weights drift with prices. At a rebalancing the trade of each
name is its target value less its present value, at the deal price, after setting aside the fees.
"""

from dataclasses import dataclass

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.portfolio.account import Account
from manyhead.stocks.portfolio.books import Book, Decision
from manyhead.stocks.portfolio.exchange import Market, Mask, Matrix
from manyhead.stocks.portfolio.strategy import Trader


@dataclass(frozen=True)
class Rebalance:
    """A strategy that trades towards a book.

    Args:
        book: target weights.
        every: days with scores between rebalancings; None buys once and holds.
        invest: factor on the book's weights.
        max_turnover: largest sum of absolute trades on a day as a share of the account. The smallest
            closings are done whole, up to a fifth of it, so that no crumbs are left; all other trades
            shrink by the same factor.
        band: trades smaller than this share of the account are left out, except those that close.
        volatility: yearly volatility aimed at: weights are scaled by it over the volatility that the
            target weights would have had over the last `window` days.
        window: days for that, and at least as many as make sense of a deviation.
        max_scale: largest such scale. The account borrows no cash: the net weight never exceeds 1.

    Raises:
        InputError: if a number is out of its range.
    """

    book: Book
    every: int | None = 1
    invest: float = 1.0
    max_turnover: float | None = None
    band: float = 0.0
    volatility: float | None = None
    window: int = 60
    max_scale: float = 2.0

    def __post_init__(self) -> None:
        if not callable(getattr(self.book, "weights", None)):
            raise InputError(f"book must have a method 'weights', got {self.book!r}")
        if self.every is not None and self.every < 1:
            raise InputError(f"every must be at least 1 day, or None to buy once, got {self.every}")
        if not 0 < self.invest <= 1:
            raise InputError(f"invest must be above 0 and at most 1, got {self.invest}")
        if self.max_turnover is not None and not self.max_turnover > 0:
            raise InputError(f"max_turnover must be above 0, got {self.max_turnover}")
        if not 0 <= self.band < 1:
            raise InputError(f"band must be at least 0 and below 1, got {self.band}")
        if self.volatility is not None and not self.volatility > 0:
            raise InputError(f"volatility must be a yearly share above 0, such as 0.1, got {self.volatility}")
        if self.window < 5:
            raise InputError(f"window must be at least 5 days, got {self.window}")
        if not self.max_scale > 0:
            raise InputError(f"max_scale must be above 0, got {self.max_scale}")

    def trader(self, scores: Matrix, market: Market) -> Trader:
        """Return the function that trades one day, for scores of shape (days, symbols)."""
        waited, placed = 0, False

        def trade(day: int, known: int, account: Account) -> None:
            nonlocal waited, placed
            waited += 1
            if placed and (self.every is None or waited < self.every):
                return
            price = np.where(np.isnan(market.buy_price[day]), account.price, market.buy_price[day])
            holdings = np.where(account.amount != 0, account.amount * price, 0.0)
            value = account.cash + float(holdings.sum())
            if value <= 0:
                return
            decision = Decision(market, known, scores[known], holdings / value)
            target = self.book.weights(decision)
            if target is None:
                return
            waited, placed = 0, True
            self._towards(day, self._scaled(target, decision), holdings, value, account, market)

        return trade

    def _scaled(self, target: Matrix, decision: Decision) -> Matrix:
        target = target * self.invest
        if self.volatility is not None:
            recent = decision.returns(self.window)
            if len(recent) >= 5:
                daily = float(np.std(np.nan_to_num(recent) @ target, ddof=1))
                scale = self.volatility / (daily * np.sqrt(252)) if daily > 0 else self.max_scale
                target = target * min(scale, self.max_scale)
        net = float(target.sum())
        return target / net if net > 1 + 1e-9 else target

    def _towards(
        self, day: int, target: Matrix, holdings: Matrix, value: float, account: Account, market: Market
    ) -> None:
        if (target < 0).any() and not market.rules.short:
            raise InputError("this book sells short; give it an exchange with short=True")
        trades = _after_fees(day, target, holdings, value, market)
        closing = (target == 0) & (holdings != 0)
        trades[(np.abs(trades) < self.band * value) & ~closing] = 0.0
        # rounding is not worth an order
        trades[np.abs(trades) <= 1e-9 * value] = 0.0
        can = np.where(trades > 0, market.can_buy[day], market.can_sell[day])
        whole = closing
        if self.max_turnover is not None:
            trades, whole = _within(self.max_turnover * value, trades, can, closing)
        self._sell(day, trades, whole, account, market)
        self._buy(day, trades, whole, account, market)

    @staticmethod
    def _sell(day: int, trades: Matrix, whole: Mask, account: Account, market: Market) -> None:
        columns = np.flatnonzero(trades < 0)
        if len(columns):
            price = np.where(market.suspended[day, columns], np.nan, market.sell_price[day, columns])
            amounts = np.where(whole[columns], account.amount[columns], -trades[columns] / price)
            account.sell(day, columns, amounts)

    @staticmethod
    def _buy(day: int, trades: Matrix, whole: Mask, account: Account, market: Market) -> None:
        columns = np.flatnonzero(trades > 0)
        if not len(columns):
            return
        price = market.buy_price[day, columns]
        can = market.can_buy[day, columns]
        values = trades[columns]
        fees = float(market.fees(day, columns[can], values[can], price[can], buying=True).sum())
        need = float(values[can].sum())
        if need + fees > account.cash:  # sales were blocked: every purchase shrinks alike
            values = values * max(0.0, (account.cash - fees) / need) * (1 - 1e-12)
        amounts = np.where(whole[columns], -account.amount[columns], values / price)
        columns, amounts = columns[values > 0], amounts[values > 0]
        if len(columns):
            account.buy(day, columns, amounts)


def _after_fees(day: int, target: Matrix, holdings: Matrix, value: float, market: Market) -> Matrix:
    """Return the trades towards the target weights of what is left after their own fees."""
    trades = target * value - holdings
    for _ in range(3):  # the fees of the difference in fees are negligible after two rounds
        bought, sold = np.flatnonzero(trades > 0), np.flatnonzero(trades < 0)
        fees = market.fees(day, bought, trades[bought], market.buy_price[day, bought], buying=True).sum()
        fees += market.fees(day, sold, -trades[sold], market.sell_price[day, sold], buying=False).sum()
        trades = target * (value - float(np.nan_to_num(fees))) - holdings
    return trades


def _within(allowance: float, trades: Matrix, can: Mask, closing: Mask) -> tuple[Matrix, Mask]:
    """Shrink trades to an allowance; return them and the closings that are still done whole."""
    size = np.where(can, np.abs(trades), 0.0)
    if size.sum() <= allowance:
        return trades, closing
    small = np.flatnonzero(closing & can)
    small = small[np.argsort(size[small], kind="stable")]
    crumbs = small[np.cumsum(size[small]) <= allowance / 5]
    whole = np.zeros(len(trades), bool)
    whole[crumbs] = True
    used = float(size[crumbs].sum())
    scale = (allowance - used) / float(size.sum() - used)
    return np.where(whole, trades, trades * scale), whole
