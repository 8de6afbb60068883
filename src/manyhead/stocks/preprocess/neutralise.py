"""Neutralisation: what is left of a factor once company size and sector are taken out.

Stockformer (Ma, Xue, Lu and Chen, 2023, arXiv 2401.06139), factor pre-processing: each day, ordinary least
squares of the factor on [ln(market value), one dummy a sector], without a further intercept; the
residual goes on. By the theorem of Frisch, Waugh and Lovell the residual is that of the within-sector
deviations on the within-sector deviations of size: one projection for all factors that miss the same
symbols.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.preprocess.daily import FLAT, by_gaps
from manyhead.stocks.preprocess.pipeline import Daily

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Neutralise(Daily):
    """Replace each factor by its residual on size and sector, day by day.

    Args:
        size: (days, symbols) logarithm of a size, NaN where unknown (that symbol's residual is then
            missing); None leaves size in.
        sectors: one sector a symbol, None for unknown symbols, which form a sector of their own; None
            for no sectors: an intercept takes the dummies' place.

    Raises:
        InputError: if sizes and sectors are not of as many symbols.
    """

    size: NDArray[np.floating] | None = None
    sectors: Sequence[Hashable | None] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.sectors is not None and self.size.shape[1] != len(self.sectors):
            raise InputError(f"{len(self.sectors)} sectors do not fit {self.size.shape[1]} symbols of size")

    def day(self, values: Floats, row: int) -> Floats:
        """Transform one day."""
        size = None if self.size is None else np.asarray(self.size[row], np.float64)
        if size is not None and not np.isfinite(size).any():
            size = None  # no size is known that day
        codes = np.zeros(values.shape[1], np.int64) if self.sectors is None else sector_codes(self.sectors)
        return residual(values, size, codes)


def residual(values: Floats, size: Floats | None, sectors: NDArray[np.integer]) -> Floats:
    """Residual of each factor on [size, sector dummies], missing symbols left out.

    Args:
        values: (factors, symbols).
        size: (symbols,), or None.
        sectors: (symbols,) codes from 0.

    Returns:
        (factors, symbols); NaN where the value or the symbol's size is missing.
    """
    missing = ~np.isfinite(values)
    if size is not None:
        missing |= ~np.isfinite(size)
    left = np.full(values.shape, np.nan)
    for factors, symbols in by_gaps(missing):
        symbols = symbols[np.argsort(sectors[symbols], kind="stable")]  # sector by sector
        if len(symbols) == 0:
            continue
        first = np.flatnonzero(np.diff(sectors[symbols], prepend=-1))  # where each sector begins
        count = np.diff(first, append=len(symbols))
        known = values[np.ix_(factors, symbols)]
        within = _within(known, first, count)
        if size is not None:
            extent = _within(size[symbols][None], first, count)
            square = (extent * extent).sum()
            if square > 0:
                within -= (within * extent).sum(axis=-1, keepdims=True) / square * extent
        # what size and sector explain up to float32 rounding must not be blown up by the next z-score
        noise = np.square(within).sum(axis=-1) <= FLAT**2 * np.square(known).sum(axis=-1)
        within[noise] = 0.0
        left[np.ix_(factors, symbols)] = within
    return left


def _within(values: Floats, first: NDArray[np.int64], count: NDArray[np.int64]) -> Floats:
    """Deviations from the mean of each stretch of the last axis."""
    means = np.add.reduceat(values, first, axis=-1) / count
    return values - np.repeat(means, count, axis=-1)


def sector_codes(sectors: Sequence[Hashable | None]) -> NDArray[np.int64]:
    """Number the sectors from 0, in order of appearance; None counts as a sector."""
    number: dict[Hashable | None, int] = {}
    return np.array([number.setdefault(sector, len(number)) for sector in sectors], np.int64)


def log_dollar_volume(panel: Panel, window: int = 20, least: int = 5) -> Floats | None:
    """Size proxy where market values are not given: ln of the median money traded over `window` days.

    Args:
        panel: prices; 'money' is used where it exists, else close x volume.
        window: days, today included.
        least: days with trade that a value needs.

    Returns:
        (days, symbols), NaN where unknown; None if the panel has neither money nor volume.
    """
    if "money" not in panel and "volume" not in panel:
        return None
    money = panel["money"] if "money" in panel else panel["close"] * panel["volume"]
    positive = np.where(money > 0, money, np.nan).astype(np.float64)
    proxy = np.full(positive.shape, np.nan)
    for row in range(panel.days):
        recent = np.sort(positive[max(0, row - window + 1) : row + 1].T, axis=-1)  # NaN last
        count = np.isfinite(recent).sum(axis=-1, keepdims=True)
        lower = np.take_along_axis(recent, np.maximum(count - 1, 0) // 2, axis=-1)
        upper = np.take_along_axis(recent, np.minimum(count // 2, recent.shape[-1] - 1), axis=-1)
        proxy[row] = np.where(count >= least, np.log((lower + upper) / 2), np.nan)[:, 0]
    return proxy
