"""Tables that are already in memory: polars and pandas, long, or wide with one column a symbol."""

from typing import Any

import polars as pl

from manyhead.errors import InputError
from manyhead.stocks.readers.cells import Origin
from manyhead.stocks.readers.rows import Rows


def is_frame(source: object) -> bool:
    """Tell whether an object is a polars or pandas table."""
    return isinstance(source, pl.DataFrame | pl.LazyFrame) or _is_pandas(source)


def read_frame(source: Any) -> tuple[pl.DataFrame, Origin]:
    """Turn a table in memory into polars columns; a named pandas index becomes columns.

    Raises:
        InputError: if a column holds what no table can, or a column's name occurs twice.
    """
    origin = Origin("the data frame", "row", 0)
    if isinstance(source, pl.LazyFrame):
        return source.collect(), origin
    if isinstance(source, pl.DataFrame):
        return source, origin
    frame = source
    if any(name is not None for name in frame.index.names) or frame.index.dtype.kind == "M":
        frame = frame.reset_index(names=frame.index.names if frame.index.names[0] is not None else ["date"])
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"{origin.name}: the column {name!r} is there twice")
    return pl.DataFrame([_column(str(name), frame[name]) for name in frame.columns]), origin


def _is_pandas(source: object) -> bool:
    return type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns")


def _column(name: str, column: Any) -> pl.Series:
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iuf":
        return pl.Series(name, column.to_numpy())
    if kind == "M" and getattr(column.dt, "tz", None) is None:
        return pl.Series(name, column.to_numpy().astype("datetime64[us]"))
    if kind == "M":  # the wall clock of its zone says which day is meant
        wall = column.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
        return pl.Series(name, wall).dt.replace_time_zone("UTC")
    cells = [None if cell is None or cell != cell else cell for cell in column.tolist()]
    try:
        return pl.Series(name, cells, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(name, [None if cell is None else str(cell) for cell in cells])


def closing_prices(wide: Any, name: str) -> Rows:
    """Read a table of closing prices, one row a day (the index) and one column a symbol."""
    days = pl.Series("date", wide.index.to_numpy().astype("datetime64[D]"))
    table = pl.DataFrame([days, *(_column(str(symbol), wide[symbol]) for symbol in wide.columns)])
    frame = table.unpivot(index="date", variable_name="symbol", value_name="close")
    warning = (
        f"close-only: {name} holds closing prices and nothing else; factors of other fields are left out"
    )
    survivors = f"survivorship: {name} is of companies that lasted to its end"
    return Rows(frame.with_columns(pl.col("close").cast(pl.Float64)), (warning, survivors))
