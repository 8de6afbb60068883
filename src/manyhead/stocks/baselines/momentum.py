"""Momentum: what rose over the past year, the last month left out, is expected to rise on.

Jegadeesh and Titman, 'Returns to buying winners and selling losers', 1993, in the usual 12-1 form.
"""

from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, Table
from manyhead.stocks.baselines.reversal import past_return

YEAR, MONTH = 252, 21


class Momentum(Baseline):
    """The return from 252 to 21 days before the decision."""

    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Nothing is learned."""

    def score(self, inputs: Inputs, rows: Rows) -> Table:
        """Return the past return."""
        return past_return(inputs.close, rows, YEAR, MONTH)
