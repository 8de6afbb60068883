"""Rows of prices in one form: date, symbol and float64 fields, each (date, symbol) once."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from manyhead.errors import InputError
from manyhead.stocks.panel import FIELDS, Panel
from manyhead.stocks.readers import cells, columns
from manyhead.stocks.readers.cells import Origin

# column that carries the index of a row in its source
ROW = "row of the source"


@dataclass(frozen=True)
class Rows:
    """Prices in long form: `frame` has date (Date), symbol (String) and fields (Float64, null = missing)."""

    frame: pl.DataFrame
    warnings: tuple[str, ...] = ()


def interpret(
    raw: pl.DataFrame,
    origin: Origin,
    *,
    chosen: Mapping[str, str] | None = None,
    date_format: str | None = None,
    symbol: str | None = None,
) -> Rows:
    """Give the columns of a source their meaning and type.

    Args:
        raw: the source's columns, of any type.
        origin: the source, for messages.
        chosen: field -> column, where the names do not tell.
        date_format: strptime format of the dates, where the cells do not tell.
        symbol: the symbol of every row, for sources of one symbol without such a column.

    Raises:
        InputError: if a column is missing or a cell cannot be read, or one day of a symbol comes twice
            with different numbers.
    """
    found = columns.assign(raw.columns, chosen, origin.name)
    columns.require(found, ["date"] if symbol else ["date", "symbol"], raw.columns, origin.name)
    columns.require(found, ["close"], raw.columns, origin.name)
    raw = raw.with_row_index(ROW).filter(~pl.all_horizontal(pl.all().exclude(ROW).is_null()))
    if raw.is_empty():
        raise InputError(f"{origin.name}: there are no rows of prices in it")
    at = raw[ROW]
    days, warnings = cells.dates(raw[found["date"]], at, origin, date_format)
    if "symbol" in found and symbol is None:
        names = cells.symbols(raw[found["symbol"]], at, origin)
    else:
        names = pl.Series("symbol", [symbol or ""]).new_from_index(0, len(raw))
    read = {"date": days, "symbol": names.alias("symbol")}
    for field in ("adj_close", *FIELDS):
        if field in found:
            read[field] = cells.numbers(raw[found[field]], at, origin).alias(field)
    frame = pl.DataFrame(list(read.values())).with_columns(at.alias(ROW))
    frame, adjusted = _adjust(frame, origin)
    frame, unordered = _order(frame, origin)
    return Rows(frame, (*warnings, *adjusted, *unordered))


def _adjust(frame: pl.DataFrame, origin: Origin) -> tuple[pl.DataFrame, list[str]]:
    """Where a source has both close and adjusted close, scale the whole bar by their ratio."""
    if "adj_close" not in frame.columns:
        return frame, []
    if "close" not in frame.columns:
        return frame.rename({"adj_close": "close"}), []
    ratio = pl.col("adj_close") / pl.col("close")
    bars = [name for name in ("open", "high", "low", "vwap") if name in frame.columns]
    changed = [(pl.col(name) * ratio).alias(name) for name in bars]
    if "factor" not in frame.columns:
        changed.append(ratio.alias("factor"))
    frame = frame.with_columns(*changed, pl.col("adj_close").alias("close")).drop("adj_close")
    return frame, [
        f"adjusted: {origin.name} has close and adjusted close; open, high, low and close are scaled to the"
        " adjusted close and the ratio is kept as factor"
    ]


def _order(frame: pl.DataFrame, origin: Origin) -> tuple[pl.DataFrame, list[str]]:
    """Sort by symbol and date, drop repeated rows, refuse contradicting ones."""
    same = pl.col("symbol") == pl.col("symbol").shift(1)
    later = same & (pl.col("date") > pl.col("date").shift(1))
    if frame.select((later | (pl.col("symbol") > pl.col("symbol").shift(1))).all()).item():
        return frame.drop(ROW), []  # in order, each pair once; the first row compares to nothing
    warnings = []
    backward = same & (pl.col("date") < pl.col("date").shift(1))
    if frame.select(backward.any()).item():
        index = cells.first(frame.select(backward.fill_null(False)).to_series())
        warnings.append(
            f"unsorted: {origin.at(int(frame[ROW][index]), 'date')} is earlier than the row before it;"
            " the rows were put into order"
        )
    frame = frame.sort("symbol", "date", ROW)
    twice = same & (pl.col("date") == pl.col("date").shift(1))
    repeated = frame.select(twice.fill_null(False)).to_series()
    if repeated.any():
        fields = [name for name in frame.columns if name not in ("date", "symbol", ROW)]
        equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in fields)
        differs = repeated & ~frame.select(equal).to_series()
        if differs.any():
            index = cells.first(differs)
            symbol, day = frame["symbol"][index], frame["date"][index]
            lines = sorted([int(frame[ROW][index - 1]), int(frame[ROW][index])])
            raise InputError(
                f"{origin.at(lines[1], 'date')}: {symbol} on {day} was given before, in {origin.unit}"
                f" {lines[0] + origin.offset}, with other numbers; one row a date and symbol is accepted"
                " (daily prices, not intraday)"
            )
        warnings.append(
            f"duplicate: {origin.name} repeats {int(repeated.sum())} rows, the first in"
            f" {origin.unit} {int(frame[ROW][cells.first(repeated)]) + origin.offset}; each counts once"
        )
        frame = frame.filter(~repeated)
    return frame.drop(ROW), warnings


def to_panel(rows: Rows) -> Panel:
    """Lay rows out as days by symbols; pairs that do not occur stay NaN, symbols are sorted by name."""
    frame = rows.frame
    day = frame["date"].cast(pl.Int32).to_numpy()
    first = int(day.min())
    occurs = np.zeros(int(day.max()) - first + 1, bool)
    occurs[day - first] = True
    row = (occurs.cumsum() - 1)[day - first]
    dates = (np.flatnonzero(occurs) + first).astype("datetime64[D]")
    order = frame["symbol"].unique().sort()
    column = frame["symbol"].cast(pl.Enum(order)).to_physical().to_numpy()
    fields = {}
    for name in FIELDS:
        if name in frame.columns:
            values = np.full((len(dates), len(order)), np.nan)
            values[row, column] = frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
            fields[name] = values
    return Panel(dates, tuple(order.to_list()), fields, rows.warnings)


def combine(frames: list[pl.DataFrame], warnings: list[str], name: str) -> Rows:
    """Put the rows of several files together.

    Raises:
        InputError: if there are none, or two files give one day of a symbol different numbers.
    """
    if not frames:
        raise InputError(f"{name}: there are no rows of prices in it")
    whole = pl.concat(frames, how="diagonal").with_row_index(ROW)
    ordered, repeated = _order(whole.sort("symbol", "date", ROW), Origin(name, "row", 0))
    return Rows(ordered, (*warnings, *repeated))
