"""What a trade costs: proportional fees, a minimum, market impact, borrowing, and changes by date.

The proportional fee with a minimum and the quadratic impact follow Qlib's exchange (Microsoft, MIT
license, `qlib/backtest/exchange.py`): fee = max(value * rate, minimum), with
rate = side's rate + impact * (value / value traded by everyone that day)^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Dates

Change = tuple[date | str, float, float]


@dataclass(frozen=True)
class Costs:
    """Fees of one market.

    Args:
        open: share of a purchase's value.
        close: share of a sale's value.
        minimum: least fee of an order that is executed, in the currency of the account.
        impact: coefficient of the quadratic market impact; 0 needs no volumes.
        borrow: yearly share of the market value of what is sold short, charged by calendar days.
        schedule: changes of the two rates, `(from this date on, open, close)`; before the first of
            them `open` and `close` hold. China halved its stamp duty on 2023-08-28, for example.

    Raises:
        InputError: if a number is negative or not finite, a rate is 1 or more, or the dates of the
            schedule are not increasing.
    """

    open: float = 0.0005
    close: float = 0.0015
    minimum: float = 5.0
    impact: float = 0.0
    borrow: float = 0.0
    schedule: Sequence[Change] = field(default=())

    def __post_init__(self) -> None:
        for name in ("open", "close", "minimum", "impact", "borrow"):
            amount = getattr(self, name)
            if not isfinite(amount) or amount < 0:
                raise InputError(f"the cost {name!r} must be a finite number of at least 0, got {amount}")
        changes = [(_day(when), opening, closing) for when, opening, closing in self.schedule]
        for when, opening, closing in [("always", self.open, self.close), *changes]:
            for rate in (opening, closing):
                if not 0 <= rate < 1:
                    raise InputError(f"a cost rate must be at least 0 and below 1, got {rate} ({when})")
        for (before, *_), (after, *_) in pairwise(changes):
            if after <= before:
                raise InputError(f"the cost schedule must have increasing dates, got {before} before {after}")

    def rates(self, dates: Dates) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the rates of purchases and of sales on each date, two arrays of shape (days,)."""
        opening = np.full(len(dates), self.open)
        closing = np.full(len(dates), self.close)
        for when, bought, sold in self.schedule:
            opening[dates >= _day(when)] = bought
            closing[dates >= _day(when)] = sold
        return opening, closing


def _day(when: Any) -> np.datetime64:
    try:
        return np.datetime64(when, "D")
    except ValueError:
        raise InputError(f"a cost schedule's date must be like 2023-08-28, got {when!r}") from None
