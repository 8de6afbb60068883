"""Short-term reversal: what fell over the last 20 days is expected to rise.

Jegadeesh, 'Evidence of predictable behavior of security returns', 1990; Lehmann, 'Fads, martingales,
and market efficiency', 1990.
"""

import numpy as np
from numpy.typing import NDArray

from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, Table

DAYS = 20


def past_return(close: NDArray[np.floating], rows: Rows, start: int, end: int = 0) -> Table:
    """Return the return from `start` to `end` days before each row, on the last price known at each.

    Args:
        close: (days, stocks), NaN where missing.
        rows: decision rows.
        start: days back of the first price.
        end: days back of the last price.

    Returns:
        (rows, stocks); NaN where there is no earlier price, or no price on the decision day.
    """
    place = np.where(np.isfinite(close), np.arange(len(close))[:, None], -1)
    last = np.maximum.accumulate(place, axis=0)  # row of the last known price

    def known(back: int) -> NDArray[np.float64]:
        at = last[np.maximum(rows - back, 0)]
        price = np.take_along_axis(close.astype(np.float64), np.maximum(at, 0), axis=0)
        return np.where((at >= 0) & (rows[:, None] >= back), price, np.nan)

    result = known(end) / known(start) - 1
    return np.where(np.isfinite(close[rows]), result, np.nan).astype(np.float32)


class Reversal(Baseline):
    """Minus the return of the last 20 days."""

    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Nothing is learned."""

    def score(self, inputs: Inputs, rows: Rows) -> Table:
        """Return minus the past return."""
        return -past_return(inputs.close, rows, DAYS)
