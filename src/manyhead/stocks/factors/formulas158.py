"""The formulas of Alpha158 over a block of days and symbols."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from manyhead.stocks.factors.names import DAILY
from manyhead.stocks.factors.ranking import quantiles, ranks
from manyhead.stocks.factors.sliding import (
    Moments,
    Tally,
    age_of_highest,
    highest,
    moments,
    products,
    sums,
)

Values = NDArray[np.float32]  # (days, symbols)
Prices = Mapping[str, Values]
Named = Iterator[tuple[str, NDArray[np.floating]]]

TINY = 1e-12
FLAT = 2e-5  # a standard deviation up to here is zero to Qlib's RSQR, CORR and CORD

_DAILY: dict[str, Callable[[Prices], Values]] = {
    "KMID": lambda p: (p["close"] - p["open"]) / p["open"],
    "KLEN": lambda p: (p["high"] - p["low"]) / p["open"],
    "KMID2": lambda p: (p["close"] - p["open"]) / (p["high"] - p["low"] + TINY),
    "KUP": lambda p: (p["high"] - np.maximum(p["open"], p["close"])) / p["open"],
    "KUP2": lambda p: (p["high"] - np.maximum(p["open"], p["close"])) / (p["high"] - p["low"] + TINY),
    "KLOW": lambda p: (np.minimum(p["open"], p["close"]) - p["low"]) / p["open"],
    "KLOW2": lambda p: (np.minimum(p["open"], p["close"]) - p["low"]) / (p["high"] - p["low"] + TINY),
    "KSFT": lambda p: (2 * p["close"] - p["high"] - p["low"]) / p["open"],
    "KSFT2": lambda p: (2 * p["close"] - p["high"] - p["low"]) / (p["high"] - p["low"] + TINY),
    "OPEN0": lambda p: p["open"] / p["close"],
    "HIGH0": lambda p: p["high"] / p["close"],
    "LOW0": lambda p: p["low"] / p["close"],
    "VWAP0": lambda p: p["vwap"] / p["close"],
}


class Formulas:
    """Alpha158 of a block; each group of factors is one method that yields (name, (days, symbols)).

    Args:
        prices: name -> (days, symbols), NaN where missing; 'close' at least.
        since: (days, symbols) days since the symbol's first price, 1 on that day, 0 before it.
        windows: lengths in days.
    """

    def __init__(self, prices: Prices, since: NDArray[np.int32], windows: tuple[int, ...]) -> None:
        self.prices = prices
        self.since = since
        self.windows = windows
        self._tallies: list[Tally] = []

    def factors(self) -> Named:
        """Yield every factor that the prices allow, in no particular order."""
        for name, formula in _DAILY.items():
            if all(field in self.prices for field in DAILY[name]):
                yield name, formula(self.prices)
        close = self.prices["close"]
        yield from self._level(close)
        yield from self._order(close)
        yield from self._extremes(close)
        yield from self._counts(close)
        yield from self._moves(close, "SUM")
        if "volume" in self.prices:
            volume = self.prices["volume"]
            yield from self._moves(volume, "VSUM")
            yield from self._volume(close, volume)
            # Corr(c, ln(v+1)) and Corr(c/Ref(c,1), ln(v/Ref(v,1)+1))
            yield from self._correlation("CORR", close, np.log(volume + 1))
            yield from self._correlation("CORD", close / ref(close, 1), np.log(volume / ref(volume, 1) + 1))

    def _level(self, close: Values) -> Named:
        """ROC Ref(c,d)/c, MA Mean(c)/c, STD Std(c)/c, and the regression of c on time."""
        tally = self._tally(close)
        price, time = moments(close, tally), moments(np.zeros_like(close), tally, aging=True)
        both = products(time, price, tally, aging=True)
        for d in self.windows:
            mean, squares = price[d]
            std = tally.deviation(squares, d)
            slope = both[d] / time[d].squares
            yield f"ROC{d}", ref(close, d) / close
            yield f"MA{d}", mean / close
            yield f"STD{d}", std / close
            yield f"BETA{d}", slope / close
            explained = both[d] * both[d] / (time[d].squares * squares)
            yield f"RSQR{d}", np.where(std <= FLAT, np.nan, explained)
            # today is age 0, so the regression's value today is mean - slope * mean age
            yield f"RESI{d}", (close - (mean - slope * time[d].mean)) / close

    def _order(self, close: Values) -> Named:
        """QTLU, QTLD: 0.8 and 0.2 quantile of c, over c; RANK: average rank of today's c, in 0..1."""
        known = finite(close)
        count = self._tally(close).count
        for d, (upper, lower) in quantiles(known, count, (0.8, 0.2), self.windows).items():
            yield f"QTLU{d}", upper / close
            yield f"QTLD{d}", lower / close
        for d, twice in ranks(known, self.windows).items():
            yield f"RANK{d}", np.where(np.isnan(known), np.nan, (twice + 1) / (2 * count[d]))

    def _extremes(self, close: Values) -> Named:
        """MAX Max(h)/c, MIN Min(l)/c, RSV (c-Min(l))/(Max(h)-Min(l)), and where in the window they lie.

        IMAX is IdxMax(h)/d: the 1-based position, oldest first, in a window that begins with the symbol's
        first price. As in numpy's argmax, the oldest of equals counts, and a missing day beats all.
        """
        tops: dict[int, Values] = {}
        bottoms: dict[int, Values] = {}
        if "high" in self.prices:
            tops = highest(finite(self.prices["high"]), self.windows)
        if "low" in self.prices:
            bottoms = highest(finite(-self.prices["low"]), self.windows)
        peaks = self._positions(self.prices["high"], tops) if tops else {}
        troughs = self._positions(-self.prices["low"], bottoms) if bottoms else {}
        for d in self.windows:
            if tops:
                yield f"MAX{d}", tops[d] / close
                yield f"IMAX{d}", peaks[d] / d
            if bottoms:
                yield f"MIN{d}", -bottoms[d] / close
                yield f"IMIN{d}", troughs[d] / d
            if tops and bottoms:
                yield f"RSV{d}", (close + bottoms[d]) / (tops[d] + bottoms[d] + TINY)
                yield f"IMXD{d}", (peaks[d] - troughs[d]) / d

    def _positions(self, values: Values, extremes: dict[int, Values]) -> dict[int, Values]:
        """1-based position of each window's highest value; NaN where the window has none."""
        keys = np.where(np.isfinite(values), values, np.where(self.since > 0, np.inf, -np.inf))
        days_ago = age_of_highest(keys.astype(np.float32), self.windows)
        return {
            d: np.where(np.isnan(extremes[d]), np.nan, np.minimum(self.since, d) - days_ago[d]).astype(
                np.float32
            )
            for d in self.windows
        }

    def _counts(self, close: Values) -> Named:
        """CNTP, CNTN: share of days with c above, below Ref(c,1); a missing comparison is False."""
        before = ref(close, 1)
        rises = sums((close > before).astype(np.float32), self.windows)
        falls = sums((close < before).astype(np.float32), self.windows)
        for d in self.windows:
            days = np.minimum(self.since, d)
            yield f"CNTP{d}", rises[d] / days
            yield f"CNTN{d}", falls[d] / days
            yield f"CNTD{d}", (rises[d] - falls[d]) / days

    def _moves(self, values: Values, name: str) -> Named:
        """SUMP, SUMN: share of the upward, downward moves in all moves Sum|x-Ref(x,1)|."""
        move = finite(values - ref(values, 1))
        known = ~np.isnan(move)
        any_known = sums(known.astype(np.float32), self.windows)
        up = sums(np.where(known, np.maximum(move, 0), 0).astype(np.float64), self.windows)
        down = sums(np.where(known, np.maximum(-move, 0), 0).astype(np.float64), self.windows)
        for d in self.windows:
            whole = np.where(any_known[d] > 0, up[d] + down[d] + TINY, np.nan)
            yield f"{name}P{d}", up[d] / whole
            yield f"{name}N{d}", down[d] / whole
            yield f"{name}D{d}", (up[d] - down[d]) / whole

    def _volume(self, close: Values, volume: Values) -> Named:
        """VMA Mean(v)/v, VSTD Std(v)/v, WVMA Std(w)/Mean(w) of w = |c/Ref(c,1)-1| v."""
        tally = self._tally(volume)
        traded = moments(volume, tally)
        swing = np.abs(close / ref(close, 1) - 1) * volume
        swing_tally = self._tally(swing)
        swings = moments(swing, swing_tally)
        for d in self.windows:
            yield f"VMA{d}", traded[d].mean / (volume + TINY)
            yield f"VSTD{d}", tally.deviation(traded[d].squares, d) / (volume + TINY)
            yield f"WVMA{d}", swing_tally.deviation(swings[d].squares, d) / (swings[d].mean + TINY)

    def _correlation(self, name: str, x: Values, y: Values) -> Named:
        """Pearson correlation over the days that have both; NaN where either one hardly moves."""
        tally = self._tally(x + y)  # finite where both are
        of_x, of_y = moments(x, tally), moments(y, tally)
        both = products(of_x, of_y, tally)
        still = [self._still(x, tally, of_x), self._still(y, tally, of_y)]
        for d in self.windows:
            scale = np.sqrt(of_x[d].squares * of_y[d].squares)
            yield f"{name}{d}", np.where(still[0][d] | still[1][d], np.nan, both[d] / scale)

    def _still(self, values: Values, tally: Tally, known: dict[int, Moments]) -> dict[int, NDArray[np.bool_]]:
        """Where a series' own deviation, over the days that it has, is zero."""
        own = self._tally(values)
        if own is not tally:
            known = moments(values, own)
        return {d: own.deviation(known[d].squares, d) <= FLAT for d in self.windows}

    def _tally(self, values: Values) -> Tally:
        """Counts of a series; series with the same gaps share them."""
        present = np.isfinite(values)
        for tally in self._tallies:
            if np.array_equal(tally.present, present):
                return tally
        self._tallies.append(Tally.of(present, self.windows))
        return self._tallies[-1]


def ref(values: Values, days: int) -> Values:
    """The value of so many rows before, NaN where there is none."""
    before = np.full_like(values, np.nan)
    before[days:] = values[:-days]
    return before


def finite(values: Values) -> Values:
    """The values, NaN for infinities: rolling statistics leave both out."""
    return np.where(np.isfinite(values), values, np.float32(np.nan))
