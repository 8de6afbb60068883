"""Daily prices from the forms in which people keep them, as one panel."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.readers.rows import Rows, interpret, to_panel
from manyhead.stocks.readers.tables import read_table


def read_prices(
    source: str | Path | Any,
    *,
    start: date | str | None = None,
    end: date | str | None = None,
    symbols: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    date_format: str | None = None,
) -> Panel:
    """Read daily prices into a panel."""
    rows = _rows(source, columns, date_format)
    panel = to_panel(rows)
    volume = panel.fields.get("volume")
    if volume is not None:
        volume[volume == 0] = np.nan
    if {"high", "low", "close"} <= panel.fields.keys() and "vwap" not in panel:
        panel.fields["vwap"] = (panel["high"] + panel["low"] + panel["close"]) / 3
    panel = panel.between(start, end)
    if not panel.days:
        raise InputError(f"no day of the prices lies between {start} and {end}")
    return panel if symbols is None else panel.select(symbols)


def _rows(source: Any, columns: Mapping[str, str] | None, date_format: str | None) -> Rows:
    raw, origin = read_table(Path(source))
    return interpret(raw, origin, chosen=columns, date_format=date_format)
