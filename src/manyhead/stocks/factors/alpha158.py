"""Alpha158: bar shapes, and 29 statistics of price and volume over five windows.

Yang et al., 'Qlib', 2020, arXiv 2009.11189; formulas of Qlib's Alpha158 handler, quoted beside each factor.
c, o, h, l, v are close, open, high, low, volume; Ref(x, d) is x of d calendar rows before. Rolling statistics
leave missing days out and need one value; arithmetic between series is in float32 and statistics
are in float64, as in Qlib.
"""

from collections.abc import Sequence

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.factors.formulas158 import Formulas
from manyhead.stocks.factors.names import WINDOWS, Order, chosen_windows, factor_names
from manyhead.stocks.factors.source import BLOCK, Factors, Rows, in_blocks
from manyhead.stocks.panel import Panel

# a tile of days x symbols whose arrays stay in the second-level cache
DAYS = 1024
SYMBOLS = 32


class RollingAlpha158:
    """Alpha158 on demand, from the price series.

    A request computes the longest window's days before its first row as well, so that few long requests
    are cheaper than many short ones; `alpha158` stores everything.

    Args:
        panel: prices; fields that it lacks shrink the set.
        windows: lengths in days.
        order: of the columns, 'qlib' or 'alphabetical'.

    Raises:
        InputError: if a window or the order cannot be used.
    """

    def __init__(self, panel: Panel, windows: Sequence[int] = WINDOWS, order: Order = "qlib") -> None:
        self._windows = chosen_windows(windows)
        self.names = factor_names("alpha158", tuple(panel.fields), windows=windows, order=order)
        self.days = panel.days
        used = ("open", "high", "low", "close", "vwap", "volume")
        self._fields = {name: panel[name].astype(np.float32) for name in used if name in panel}
        listed = np.logical_or.accumulate(
            np.logical_or.reduce([~np.isnan(values) for values in self._fields.values()]), axis=0
        )
        self._since = np.cumsum(listed, axis=0, dtype=np.int32)  # rows since the first price, from 1

    def rows(self, start: int, stop: int) -> Rows:
        """Compute some rows: (stop - start, symbols, factors) float32.

        Raises:
            InputError: if the rows are not rows of the panel.
        """
        if not 0 <= start <= stop <= self.days:
            raise InputError(f"rows {start}..{stop} do not lie in 0..{self.days}")
        values = np.empty((stop - start, self._since.shape[1], len(self.names)), np.float32)
        if start < stop:
            self.fill(values, start, stop, slice(None))
        return values

    def fill(self, values: Rows, start: int, stop: int, symbols: slice) -> None:
        """Write the rows of some symbols into `values`, (stop - start, those symbols, factors)."""
        first = max(0, start - max(self._windows))
        cut = {name: np.ascontiguousarray(field[first:stop, symbols]) for name, field in self._fields.items()}
        since = np.ascontiguousarray(self._since[first:stop, symbols])
        found = np.empty((len(self.names), stop - start, since.shape[1]), np.float32)
        column = {name: index for index, name in enumerate(self.names)}
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for name, factor in Formulas(cut, since, self._windows).factors():
                if name in column:
                    found[column[name]] = factor[start - first :]
        for row in range(0, stop - start, BLOCK):  # factors go last; a strip at a time stays in the cache
            values[row : row + BLOCK] = found[:, row : row + BLOCK].transpose(1, 2, 0)


def alpha158(
    panel: Panel,
    windows: Sequence[int] = WINDOWS,
    order: Order = "qlib",
    threads: int | None = None,
) -> Factors:
    """Compute Alpha158 for every day of a panel and hold it (Qlib, arXiv 2009.11189).

    Args:
        panel: prices; fields that it lacks shrink the set.
        windows: lengths in days.
        order: of the columns, 'qlib' or 'alphabetical'.
        threads: None takes PyTorch's number.

    Returns:
        (days, symbols, up to 158) float32, NaN where undefined.

    Raises:
        InputError: if a window or the order cannot be used.
    """
    source = RollingAlpha158(panel, windows, order)
    values = np.empty((panel.days, len(panel.symbols), len(source.names)), np.float32)

    tiles = [
        (slice(row, min(row + DAYS, panel.days)), slice(symbol, symbol + SYMBOLS))
        for symbol in range(0, len(panel.symbols), SYMBOLS)
        for row in range(0, panel.days, DAYS)
    ]

    def fill(first: int, last: int) -> None:
        for rows, symbols in tiles[first:last]:
            source.fill(values[rows, symbols], rows.start, rows.stop, symbols)

    in_blocks(len(tiles), fill, threads, block=1)
    return Factors(source.names, values)
