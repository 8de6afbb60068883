"""The exchange: at which price, in which sizes and at what cost an order is filled, and when it is not.

The rules are those of Qlib's exchange (Microsoft, MIT license, `qlib/backtest/exchange.py`):

- a name without a close is suspended; the daily price limit blocks purchases of names that rose by
  the threshold or more and sales of names that fell by it, compared in float32 as Qlib's data are;
- a missing deal price falls back to the close;
- amounts are rounded down to the lot in unadjusted shares,
  floor((amount * factor + 0.1) / lot) * lot / factor, and not rounded at all where adjusted prices
  come without their `factor`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio.costs import Costs

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Exchange:
    """Rules of one market.

    Args:
        costs: fees.
        deal_price: field at which orders are filled, or a pair (purchases, sales).
        limit: daily price limit as a share (0.095), or None where there is none.
        lot: shares traded together; None allows fractions of a share.
        raw_prices: whether prices are unadjusted, so that lots apply without a field `factor`.
        short: whether more may be sold than is held.
        delist_after: days without a price after which a holding is paid out; None keeps it at its
            last price for ever.
        delisting_return: return on the last price at that payout, -0.3 for a loss of 30 %.

    Raises:
        InputError: if a number is out of its range.
    """

    costs: Costs = field(default_factory=Costs)
    deal_price: str | tuple[str, str] = "close"
    limit: float | None = None
    lot: float | None = None
    raw_prices: bool = False
    short: bool = False
    delist_after: int | None = None
    delisting_return: float = 0.0

    def __post_init__(self) -> None:
        if self.limit is not None and not 0 < self.limit < 10:
            raise InputError(f"limit must be a share above 0, such as 0.095, got {self.limit}")
        if self.lot is not None and not self.lot > 0:
            raise InputError(f"lot must be above 0, got {self.lot}")
        if self.delist_after is not None and self.delist_after < 1:
            raise InputError(f"delist_after must be at least 1 day, got {self.delist_after}")
        if not -1 <= self.delisting_return < 10:
            raise InputError(f"delisting_return must be at least -1, got {self.delisting_return}")

    def open(self, panel: Panel) -> "Market":
        """Lay these rules over the prices of a panel."""
        return Market(self, panel)


# Qlib's defaults for China; 5 basis points a side and single shares for the United States
PRESETS = {
    "cn": Exchange(Costs(0.0005, 0.0015, 5.0), limit=0.095, lot=100),
    "us": Exchange(Costs(0.0005, 0.0005, 0.0), lot=1),
    "free": Exchange(Costs(0.0, 0.0, 0.0)),
}


def exchange(name: str = "us", **changes: Any) -> Exchange:
    """Return a preset, 'cn', 'us' or 'free', with some of `Exchange`'s arguments replaced.

    The fields of `Costs` may be given here too, as `open_cost`, `close_cost`, `min_cost`, `impact`,
    `borrow` and `schedule`.

    Raises:
        InputError: if there is no such preset or no such argument.
    """
    if name not in PRESETS:
        raise InputError(f"there is no exchange {name!r}; presets are {', '.join(PRESETS)}")
    fees = {"open_cost": "open", "close_cost": "close", "min_cost": "minimum"}
    fees |= {same: same for same in ("impact", "borrow", "schedule")}
    preset = PRESETS[name]
    costs = {fees[key]: value for key, value in changes.items() if key in fees}
    rest = {key: value for key, value in changes.items() if key not in fees}
    accepted = {*Exchange.__dataclass_fields__, *fees}
    for key in rest:
        if key not in accepted:
            raise InputError(f"an exchange has no argument {key!r}; it has {', '.join(sorted(accepted))}")
    if costs:
        rest["costs"] = replace(rest.get("costs", preset.costs), **costs)
    return replace(preset, **rest)


class Market:
    """An exchange's rules over a panel, as arrays of shape (days, symbols).

    Attributes:
        close, mark: closing price with gaps, and the last one known (NaN before the first).
        buy_price, sell_price: where orders are filled.
        suspended, rise, fall: without a price; at the upper limit; at the lower limit.
        can_buy, can_sell: whether an order of that side is filled.
        factor: cumulative adjustment, or None where lots do not apply.
        open_rate, close_rate: (days,) fees by date.
        gap: days since the last price, 0 on a day with one.
    """

    def __init__(self, rules: Exchange, panel: Panel) -> None:
        self.rules, self.dates, self.symbols = rules, panel.dates, panel.symbols
        self.close = panel["close"].astype(np.float64, copy=False)
        self.suspended: Mask = np.isnan(self.close)
        self.mark, self.gap = carry_forward(self.close)
        bought, sold = rules.deal_price if isinstance(rules.deal_price, tuple) else (rules.deal_price,) * 2
        self.buy_price = self._deal(panel, bought)
        self.sell_price = self.buy_price if sold == bought else self._deal(panel, sold)
        self.rise, self.fall = self._limits(panel)
        self.can_buy = ~(self.suspended | self.rise)
        self.can_sell = ~(self.suspended | self.fall)
        self.open_rate, self.close_rate = rules.costs.rates(panel.dates)
        self.warnings: list[str] = []
        self.factor = self._factor(panel)
        self.traded: Matrix | None = None
        if rules.costs.impact > 0:
            self.traded = panel["volume"].astype(
                np.float64, copy=False
            )  # times the price of the order, as Qlib does

    def _deal(self, panel: Panel, name: str) -> Matrix:
        price = panel[name].astype(np.float64, copy=False)
        if name == "close":
            return self.close
        with np.errstate(invalid="ignore"):
            return np.where(np.isnan(price) | (price <= 1e-8), self.close, price)

    def _limits(self, panel: Panel) -> tuple[Mask, Mask]:
        nowhere = np.zeros(self.close.shape, bool)
        if self.rules.limit is None:
            return nowhere, nowhere
        if "change" in panel:
            change = panel["change"].astype(np.float32)
        else:
            before = np.vstack([np.full((1, self.close.shape[1]), np.nan), self.mark[:-1]])
            change = (self.close / before - 1).astype(np.float32)
        threshold = np.float32(self.rules.limit)
        with np.errstate(invalid="ignore"):
            return change >= threshold, change <= -threshold

    def _factor(self, panel: Panel) -> Matrix | None:
        if self.rules.lot is None:
            return None
        if self.rules.raw_prices:
            return np.ones(self.close.shape)
        if "factor" in panel:
            factor = panel["factor"].astype(np.float64, copy=False)
            if not (np.isnan(factor) & ~self.suspended).any():
                return factor
            reason = "the field 'factor' has gaps"
        else:
            reason = "the prices have no field 'factor'"
        self.warnings.append(f"amounts are not rounded to lots of {self.rules.lot:g}: {reason}")
        return None

    def lots(self, day: int, columns: NDArray[np.intp], amounts: Matrix) -> Matrix:
        """Round amounts of adjusted shares down to whole lots."""
        if self.factor is None or self.rules.lot is None:
            return amounts
        factor, lot = self.factor[day, columns], self.rules.lot
        rounded = np.floor((amounts * factor + 0.1) / lot) * lot / factor
        return np.asarray(np.where(np.isnan(factor), 0.0, rounded), np.float64)

    def fees(
        self, day: int, columns: NDArray[np.intp], values: Matrix, price: Matrix, buying: bool
    ) -> Matrix:
        """Return the fee of each order; orders worth nothing cost nothing."""
        rate = self.rate(day, columns, values, price, buying)
        return np.asarray(
            np.where(values > 1e-5, np.maximum(values * rate, self.rules.costs.minimum), 0.0), np.float64
        )

    def rate(
        self, day: int, columns: NDArray[np.intp], values: Matrix, price: Matrix, buying: bool
    ) -> Matrix | float:
        """Return the proportional fee of each order, impact included."""
        base = float(self.open_rate[day] if buying else self.close_rate[day])
        if self.traded is None:
            return base
        everyone = self.traded[day, columns] * price
        impact = self.rules.costs.impact
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(everyone > 0, values / everyone, 1.0)
        return np.asarray(base + impact * share**2, np.float64)


def carry_forward(values: Matrix) -> tuple[Matrix, NDArray[np.int32]]:
    """Fill gaps with the last value known; return also the days since it, (days, symbols) each."""
    missing = np.isnan(values)
    gap = np.zeros(values.shape, np.int32)
    if not missing.any():
        return values, gap
    filled = values.copy()
    for row in np.flatnonzero(missing.any(axis=1)):
        if row > 0:
            np.copyto(filled[row], filled[row - 1], where=missing[row])
            np.copyto(gap[row], gap[row - 1] + 1, where=missing[row])
    return filled, gap
