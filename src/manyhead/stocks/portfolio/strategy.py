"""What a strategy is: a value that turns scores into a function that trades one day."""

from collections.abc import Callable
from typing import Protocol

from manyhead.stocks.portfolio.account import Account
from manyhead.stocks.portfolio.exchange import Market, Matrix

# (row of the day that is traded, row of the scores known by then, account) -> None
Trader = Callable[[int, int, Account], None]


class Strategy(Protocol):
    """A rule that holds scores in a portfolio.

    `trader` receives all scores at once so that a strategy can lay out its arrays, but the function
    it returns must use the scores and prices of no row later than the two it is given: a test
    alters everything after each day and finds the trades up to it unchanged.
    """

    def trader(self, scores: Matrix, market: Market) -> Trader:
        """Return the function that trades one day."""
        ...
