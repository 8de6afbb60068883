"""Neutralisation: what is left of a factor once company size and sector are taken out.

Stockformer (Ma, Xue, Lu and Chen, 2023, arXiv 2401.06139), factor pre-processing: each day, ordinary least
squares of the factor on [ln(market value), one dummy a sector], without a further intercept; the
residual goes on. By the theorem of Frisch, Waugh and Lovell the residual is that of the within-sector
deviations on the within-sector deviations of size: sums over sectors, for all factors at once, each with
its own missing symbols.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
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
        codes = np.zeros(len(values), np.int64) if self.sectors is None else sector_codes(self.sectors)
        return residual(values, size, codes)


def residual(values: Floats, size: Floats | None, sectors: NDArray[np.integer]) -> Floats:
    """Residual of each column on [size, sector dummies], missing rows left out.

    Args:
        values: (symbols, factors).
        size: (symbols,), or None.
        sectors: (symbols,) codes from 0.

    Returns:
        (symbols, factors); NaN where the value or the symbol's size is missing.
    """
    present = np.isfinite(values)
    if size is not None:
        present &= np.isfinite(size)[:, None]
    member = (sectors == np.arange(sectors.max(initial=0) + 1)[:, None]).astype(
        np.float64
    )  # (sectors, symbols)
    weight = present.astype(np.float64)
    count = np.maximum(member @ weight, 1)  # (sectors, factors)

    def within(column: Floats) -> Floats:
        """Deviations from the sector's mean over the present symbols; 0 where missing."""
        kept = np.where(present, column, 0.0)
        deviation: Floats = (kept - ((member @ kept) / count)[sectors]) * weight
        return deviation

    left = within(values)
    if size is not None:
        extent = within(np.broadcast_to(size[:, None], values.shape))
        square = (extent * extent).sum(axis=0)
        slope = (extent * left).sum(axis=0) / np.where(square > 0, square, 1)
        left = left - slope * extent
    return np.where(present, left, np.nan)


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
