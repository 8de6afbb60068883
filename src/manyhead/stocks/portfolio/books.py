"""Books: target weights from scores, by what is known when the decision is taken.

A book is asked for weights of shape (symbols,) as shares of the account; `Rebalance` trades towards
them. Negative weights are sold short. None means: leave the portfolio as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.portfolio.exchange import Market, Mask, Matrix


@dataclass(frozen=True)
class Decision:
    """What a book may look at: scores and prices up to the close of row `known`.

    Attributes:
        market: prices; only rows up to `known` may be used.
        known: row of the scores.
        scores: (symbols,) NaN where there is none.
        weights: (symbols,) shares of the account held before the trade.
    """

    market: Market
    known: int
    scores: Matrix
    weights: Matrix

    @property
    def eligible(self) -> Mask:
        """(symbols,) names that have a score and a price."""
        return np.asarray(~np.isnan(self.scores) & ~self.market.suspended[self.known])

    def returns(self, window: int) -> Matrix:
        """Return the last close-to-close returns known, (up to window, symbols); 0 while suspended."""
        marks = self.market.mark[max(0, self.known - window) : self.known + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(marks[1:] / marks[:-1] - 1)


class Book(Protocol):
    """A rule for target weights."""

    def weights(self, decision: Decision) -> Matrix | None:
        """Return weights of shape (symbols,), or None to leave the portfolio as it is."""
        ...


@dataclass(frozen=True)
class EqualWeight:
    """Every name with a score in equal shares."""

    def weights(self, decision: Decision) -> Matrix | None:
        chosen = decision.eligible
        return chosen / chosen.sum() if chosen.any() else None


@dataclass(frozen=True)
class TopK:
    """The k best names in equal shares, brought back to equal at each rebalancing.

    Args:
        k: names to hold; fewer where fewer have scores.

    Raises:
        InputError: if k is below 1.
    """

    k: int = 50

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k must be at least 1, got {self.k}")

    def weights(self, decision: Decision) -> Matrix | None:
        ranked = _ranked(decision.scores, decision.eligible)[: self.k]
        if not len(ranked):
            return None
        return _spread(len(decision.scores), ranked, 1.0)


@dataclass(frozen=True)
class LongShort:
    """The best names long, the worst short, each side in equal shares.

    Args:
        quantile: share of the scored names on each side, at most a half.
        long: sum of the long weights.
        short: sum of the short weights, as a positive number.

    Raises:
        InputError: if a number is out of its range.
    """

    quantile: float = 0.1
    long: float = 1.0
    short: float = 1.0

    def __post_init__(self) -> None:
        _check_sides(self.quantile, self.long, self.short)

    def weights(self, decision: Decision) -> Matrix | None:
        ranked = _ranked(decision.scores, decision.eligible)
        return _two_sides(len(decision.scores), ranked, self.quantile, self.long, self.short)


@dataclass(frozen=True)
class SectorNeutral:
    """Long the best and short the worst names of every sector; sectors weigh by their number of names.

    Within each sector the two sides have the same ratio, so that with `long == short` no sector has a
    net weight, and with `short=0` every sector weighs as in the equal-weight benchmark.

    Args:
        sectors: symbol -> sector; symbols without one are left out, which the result says.
        quantile: share of a sector's scored names on each side, at least one name.
        long: sum of the long weights.
        short: sum of the short weights, as a positive number; 0 for a long-only book.

    Raises:
        InputError: if a number is out of its range, or no symbol of the prices has a sector.
    """

    sectors: Mapping[str, str]
    quantile: float = 0.2
    long: float = 1.0
    short: float = 1.0

    def __post_init__(self) -> None:
        _check_sides(self.quantile, self.long, self.short)

    def weights(self, decision: Decision) -> Matrix | None:
        symbols = decision.market.symbols
        names = [self.sectors.get(symbol, "") for symbol in symbols]
        absent = [symbol for symbol, name in zip(symbols, names, strict=True) if not name]
        if len(absent) == len(symbols):
            raise InputError(f"no symbol of the prices has a sector; the first symbols are {symbols[:3]}")
        if absent:
            said = f"{len(absent)} symbols have no sector and are left out of the book: {absent[0]} first"
            if said not in decision.market.warnings:
                decision.market.warnings.append(said)
        code = {name: number for number, name in enumerate(sorted({*names} - {""}))}
        sector = np.array([code.get(name, -1) for name in names])
        ranked = _ranked(decision.scores, decision.eligible & (sector >= 0))
        groups = [ranked[sector[ranked] == number] for number in code.values()]
        groups = [group for group in groups if len(group) >= (2 if self.short > 0 else 1)]
        if not groups:
            return None
        count = sum(len(group) for group in groups)
        total = np.zeros(len(symbols))
        for group in groups:
            share = len(group) / count
            sides = _two_sides(len(symbols), group, self.quantile, self.long * share, self.short * share)
            total += 0.0 if sides is None else sides
        return total


def _check_sides(quantile: float, long: float, short: float) -> None:
    if not 0 < quantile <= 0.5:
        raise InputError(f"quantile must be above 0 and at most 0.5, got {quantile}")
    for name, gross in {"long": long, "short": short}.items():
        if not 0 <= gross <= 10:
            raise InputError(f"{name} must be between 0 and 10 times the account, got {gross}")
    if long - short > 1:
        raise InputError(
            f"long - short must be at most 1, because the account borrows no cash, got {long - short:g}"
        )
    if long + short == 0:
        raise InputError("long and short cannot both be 0")


def _ranked(scores: Matrix, eligible: Mask) -> NDArray[np.intp]:
    """Return the eligible columns from best to worst; equal scores by column."""
    columns = np.flatnonzero(eligible)
    return np.asarray(columns[np.argsort(-scores[columns], kind="stable")])


def _two_sides(
    width: int, ranked: NDArray[np.intp], quantile: float, long: float, short: float
) -> Matrix | None:
    if len(ranked) < (2 if short > 0 else 1):
        return None
    count = max(1, int(len(ranked) * quantile))
    worst = _spread(width, ranked[len(ranked) - count :], short)
    return _spread(width, ranked[:count], long) - worst


def _spread(width: int, columns: NDArray[np.intp], total: float) -> Matrix:
    weights = np.zeros(width)
    weights[columns] = total / len(columns)
    return weights
