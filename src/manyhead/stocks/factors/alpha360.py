"""Alpha360: the last sixty days of six series, each divided by today's value.

Yang et al., 'Qlib', 2020, arXiv 2009.11189; formulas of Qlib's Alpha360 handler. With f one of close,
open, high, low and vwap, factor F_i is f[t-i] / close[t]; VOLUME_i is volume[t-i] / (volume[t] + 1e-12). A
lag counts rows of the calendar, so a day without trade is a missing value, not a skipped one.

The 360 columns are lags of six series: `LaggedAlpha360` keeps the six and divides when asked, about a
thousand million values a second, which is faster than reading 360 stored columns from memory.
"""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from manyhead.errors import InputError
from manyhead.stocks.factors.names import LAGS, SERIES, Order, chosen_lags, factor_names
from manyhead.stocks.factors.source import Factors, Rows, in_blocks
from manyhead.stocks.panel import Panel

TINY = np.float32(1e-12)
_REACH = LAGS[-1]


class LaggedAlpha360:
    """Alpha360 on demand, from six float32 series.

    Args:
        panel: prices; fields that it lacks shrink the set.
        lags: which of the lags 0..59; empty means all.
        order: of the columns, 'qlib' (per series, oldest first) or 'alphabetical'.

    Raises:
        InputError: if a lag or the order is not one of the above.
    """

    def __init__(self, panel: Panel, lags: Sequence[int] = (), order: Order = "qlib") -> None:
        self.names = factor_names("alpha360", tuple(panel.fields), lags=lags, order=order)
        self.days = panel.days
        self._lags = sorted(chosen_lags(lags), reverse=True)
        in_order = factor_names("alpha360", tuple(panel.fields), lags=lags)
        place = {name: index for index, name in enumerate(in_order)}
        self._columns = None if order == "qlib" else np.array([place[name] for name in self.names])
        # symbol-major with `_REACH` missing days in front: every window is contiguous
        self._series: dict[str, Rows] = {}
        for name in SERIES:
            if name in panel:
                padded = np.full((len(panel.symbols), _REACH + panel.days), np.nan, np.float32)
                padded[:, _REACH:] = panel[name].T
                self._series[name] = padded

    def rows(self, start: int, stop: int) -> Rows:
        """Compute some rows.

        Returns:
            (stop - start, symbols, factors) float32.

        Raises:
            InputError: if the rows are not rows of the panel.
        """
        if not 0 <= start <= stop <= self.days:
            raise InputError(f"rows {start}..{stop} do not lie in 0..{self.days}")
        values = np.empty((stop - start, len(self._series["close"]), len(self.names)), np.float32)
        self.fill(values, start, stop)
        return values

    def fill(self, values: Rows, start: int, stop: int) -> None:
        """Write the rows into `values`, (stop - start, symbols, factors)."""
        lags = len(self._lags)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for index, (name, series) in enumerate(self._series.items()):
                today = (series if name == "volume" else self._series["close"])[
                    :, start + _REACH : stop + _REACH
                ]
                by = (today + TINY if name == "volume" else today).T
                block = values[..., index * lags : (index + 1) * lags]
                if lags == len(LAGS):
                    np.divide(_windows(series, start, stop), by[..., None], out=block)
                    continue
                for column, lag in enumerate(self._lags):
                    past = series[:, start + _REACH - lag : stop + _REACH - lag]
                    np.divide(past.T, by, out=block[..., column])
        if self._columns is not None:
            values[...] = values[..., self._columns]


def alpha360(
    panel: Panel, lags: Sequence[int] = (), order: Order = "qlib", threads: int | None = None
) -> Factors:
    """Compute Alpha360 for every day of a panel and hold it (Qlib, arXiv 2009.11189).

    Args:
        panel: prices; fields that it lacks shrink the set.
        lags: which of the lags 0..59; empty means all.
        order: of the columns, 'qlib' or 'alphabetical'.
        threads: None takes PyTorch's number.

    Returns:
        (days, symbols, up to 360) float32, NaN where a price is missing.

    Raises:
        InputError: if a lag or the order is not one of the above.
    """
    source = LaggedAlpha360(panel, lags, order)
    values = np.empty((panel.days, len(panel.symbols), len(source.names)), np.float32)
    in_blocks(panel.days, lambda start, stop: source.fill(values[start:stop], start, stop), threads)
    return Factors(source.names, values)


def _windows(series: Rows, start: int, stop: int) -> Rows:
    """View the sixty days that end at each row: (stop - start, symbols, 60), oldest first."""
    symbol, day = series.strides
    return as_strided(
        series[:, start:],
        shape=(stop - start, len(series), len(LAGS)),
        strides=(day, symbol, day),
        writeable=False,
    )
