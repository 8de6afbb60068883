"""Labels, trend indicator, and which rows a window may read: the time line of a decision.

Stockformer (Ma, Xue, Lu and Chen, 2024, arXiv 2401.06139), section 4: a score formed after the close of
day r is bought at the close of r+1 and sold at the close of r+2. Row t of the returns is therefore
`close[t+2] / close[t+1] - 1`, and is *known* only at the close of day t+2. Every function here that
touches rows says when they are known, so that no part of the pipeline has to guess.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError

Floats = NDArray[np.floating]

BUY = 1  # days after the decision at whose close the position is opened
SELL = 2  # days after the decision at whose close it is closed


def next_return(close: Floats, buy: int = BUY, sell: int = SELL) -> Floats:
    """Return what a decision at each row earns: `close[t + sell] / close[t + buy] - 1` (Qlib's LABEL0).

    Args:
        close: (days, symbols) adjusted closing prices, NaN where a symbol did not trade.
        buy: days from the decision to the purchase, at least 0.
        sell: days from the decision to the sale, more than `buy`.

    Returns:
        (days, symbols), same dtype; NaN where either price is missing or lies beyond the last row.

    Raises:
        InputError: if the two delays are not ordered.
    """
    if not 0 <= buy < sell:
        raise InputError(f"buy and sell must satisfy 0 <= buy < sell, got buy={buy}, sell={sell}")
    flow = np.full_like(close, np.nan)
    days = len(close) - sell
    if days > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            flow[:days] = close[sell:] / close[buy : buy + days] - 1
    flow[~np.isfinite(flow)] = np.nan
    return flow


def available(flow: Floats) -> NDArray[np.bool_]:
    """Say where a return exists; losses and metrics count these cells only."""
    return np.isfinite(flow)


def filled(flow: Floats) -> Floats:
    """Return the returns as the network reads them: 0 where they are missing."""
    return np.where(available(flow), flow, np.zeros((), flow.dtype))


def trend(flow: Floats) -> NDArray[np.int64]:
    """Return the up/down class: 1 where the return is above 0, else 0 (missing returns included)."""
    return (filled(flow) > 0).astype(np.int64)


def known_at(row: int, sell: int = SELL) -> int:
    """Return the row at whose close the return of `row` becomes known."""
    return row + sell


def known_within(rows: range, sell: int = SELL) -> range:
    """Return the rows of a span whose returns are known when the span ends.

    The last `sell` rows of a training span have labels made of prices after it. Leaving them out keeps
    a model that scores the very next day free of look-ahead.
    """
    return range(rows.start, max(rows.start, rows.stop - sell))


@dataclass(frozen=True)
class Window:
    """The rows that one sample reads and predicts; each range is half-open.

    Args:
        series: rows of returns and trend that enter.
        factors: rows of factors that enter, as many.
        targets: rows of returns and trend to predict.
        decision: the day at whose close everything that enters is known: the score is usable from here.
        step: which of the targets is the return that a decision on that day earns.
    """

    series: range
    factors: range
    targets: range
    decision: int
    step: int


@dataclass(frozen=True)
class Alignment:
    """How returns, factors and targets are laid against each other in time.

    `official`: returns, trend and factors of the same rows s..s+T1-1 enter, rows s+T1.. are predicted.
    The last return that enters is known `sell` days after its row, so the decision day is s+T1-1+sell,
    the tradable signal is target number `sell`-1 (the last one at the published sizes), and the
    factors that enter are `sell` days old at the decision.

    `information`: returns and trend are shifted by `sell` rows, so that they and the factors all end
    with what is known at the close of the decision day r = s+T1-1; the targets are the returns of
    decisions on r, r+1, ...: the signal is the first.

    Args:
        kind: which of the two.
        input_days: T1, rows that enter.
        output_days: T2, rows that are predicted.
        sell: days until a return is known, see `next_return`.

    Raises:
        InputError: if a size is not positive, or no target of the official alignment is tradable.
    """

    kind: Literal["official", "information"] = "official"
    input_days: int = 20
    output_days: int = 2
    sell: int = SELL

    def __post_init__(self) -> None:
        if self.kind not in ("official", "information"):
            raise InputError(f"align must be 'official' or 'information', got {self.kind!r}")
        for name, size in {
            "input_days": self.input_days,
            "output_days": self.output_days,
            "sell": self.sell,
        }.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if self.kind == "official" and self.output_days < self.sell:
            raise InputError(
                f"the official alignment needs output_days of at least {self.sell}, got {self.output_days}: "
                "with fewer no predicted row is tradable when its inputs are known"
            )

    @property
    def lag(self) -> int:
        """Rows by which returns and trend stand behind the factors."""
        return self.sell if self.kind == "information" else 0

    @property
    def step(self) -> int:
        """Which output row is the tradable signal."""
        return 0 if self.kind == "information" else self.sell - 1

    def window(self, start: int) -> Window:
        """Return the sample whose factors begin at row `start`."""
        stop = start + self.input_days
        first = stop - 1 if self.kind == "information" else stop
        return Window(
            series=range(start - self.lag, stop - self.lag),
            factors=range(start, stop),
            targets=range(first, first + self.output_days),
            decision=first + self.step,
            step=self.step,
        )

    def start(self, decision: int) -> int:
        """Return the first factor row of the sample that decides on day `decision`."""
        return decision - self.window(0).decision

    def starts(self, rows: range, labelled: bool = True) -> range:
        """Return the first factor rows of all samples that lie inside a span.

        Args:
            rows: the span; nothing that a sample reads lies before it.
            labelled: True: the targets, too, are rows of the span (training and validation). False:
                only the decision day must be (scoring, where the targets need not exist).
        """
        sample = self.window(0)
        last = sample.targets.stop - 1 if labelled else sample.decision
        first = rows.start + self.lag
        return range(first, max(first, rows.stop - last))


def delayed(values: Floats, rows: int) -> Floats:
    """Return the series moved `rows` rows later, NaN in front: row r then holds what row r-rows held."""
    if rows < 0:
        raise InputError(f"rows must not be negative, got {rows}: that would read the future")
    moved = np.full_like(values, np.nan)
    moved[rows:] = values[: len(values) - rows]
    return moved
