"""Score tables that a user brings, checked and laid over the calendar and symbols of a panel."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio.exchange import Matrix

# other names that score tables use for the three columns
ALIASES = {
    "date": ("datetime", "day", "trade_date", "timestamp"),
    "symbol": ("instrument", "ticker", "asset", "code"),
    "score": ("prediction", "pred", "alpha", "signal", "value"),
}
Unknown = Literal["warn", "error"]


def read_scores(path: str | Path) -> pl.DataFrame:
    """Read a score table from .parquet or .csv.

    Raises:
        InputError: if the file is absent, empty, of another kind or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no score file {path}")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".csv":
            # symbols such as 000001 and NA are text
            kinds = dict.fromkeys(("symbol", *ALIASES["symbol"]), pl.String)
            return pl.read_csv(path, schema_overrides=kinds, infer_schema_length=None, null_values=[""])
    except (pl.exceptions.PolarsError, OSError) as broken:
        raise InputError(f"the score file {path} cannot be read: {str(broken).splitlines()[0]}") from broken
    raise InputError(f"a score file must end in .parquet or .csv, got {path.name}")


def align(panel: Panel, scores: Any, unknown: Unknown = "warn") -> tuple[Matrix, list[str]]:
    """Lay scores over a panel.

    Args:
        panel: prices of shape (days, symbols).
        scores: a table with the columns date, symbol, score (polars, or anything with `columns` and
            items such as pandas), one row a score; or an array of shape (days, symbols) in the
            panel's order. NaN and null mean 'no score'.
        unknown: what to do with symbols and dates that the prices do not have: 'warn' leaves them
            out and says so, 'error' refuses.

    Returns:
        (days, symbols) scores in float64, NaN where there is none, and warnings in sentences.

    Raises:
        InputError: if the scores cannot be used; the message names the column, the row or the value.
    """
    if unknown not in ("warn", "error"):
        raise InputError(f"unknown must be 'warn' or 'error', got {unknown!r}")
    if hasattr(scores, "columns"):
        return _from_table(panel, scores, unknown)
    try:
        values = np.asarray(scores)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"dtype {values.dtype}")
    except (TypeError, ValueError) as wrong:
        raise InputError(
            f"scores must be a table with columns date, symbol, score, or an array of numbers; "
            f"got {type(scores).__name__} ({wrong})"
        ) from None
    shape = (panel.days, len(panel.symbols))
    if values.shape != shape:
        raise InputError(f"scores as an array must have the panel's shape {shape}, got {values.shape}")
    values = values.astype(np.float64)
    _refuse_infinite(panel, values)
    _require_some(values)
    return values, []


def _from_table(panel: Panel, table: Any, unknown: Unknown) -> tuple[Matrix, list[str]]:
    frame = _three_columns(table)
    date, symbol, score = frame["date"], frame["symbol"], frame["score"]
    if frame.height == 0:
        raise InputError("the score table has no rows")
    for name, column in {"date": date, "symbol": symbol}.items():
        if column.null_count():
            row = int(column.is_null().arg_max() or 0)
            raise InputError(f"column {name!r} of the scores is empty in row {row + 1}")
    days = date.to_numpy().astype("datetime64[D]")
    values = score.fill_null(np.nan).to_numpy()
    row_of = np.searchsorted(panel.dates, days)
    inside = row_of < panel.days
    on_calendar = inside.copy()
    on_calendar[inside] = panel.dates[row_of[inside]] == days[inside]
    place = {name: index for index, name in enumerate(panel.symbols)}
    names = symbol.unique(maintain_order=True)
    column_of = symbol.replace_strict(
        names, [place.get(name, -1) for name in names], return_dtype=pl.Int64
    ).to_numpy()
    known = column_of >= 0
    warnings = []
    if not known.any():
        raise InputError(
            f"no symbol of the scores is among the prices: scores have {_some(names.to_list())}, "
            f"prices have {_some(list(panel.symbols))}"
        )
    if not on_calendar.any():
        raise InputError(
            f"no date of the scores is among the prices: scores cover {days.min()} to {days.max()}, "
            f"prices {panel.dates[0]} to {panel.dates[-1]}"
        )
    if not known.all():
        absent = [name for name in names if name not in place]
        warnings.append(
            f"{len(absent)} of {len(names)} symbols of the scores are not among the prices and are left out: "
            f"{_some(absent)}"
        )
    if not on_calendar.all():
        absent = [str(day) for day in np.unique(days[~on_calendar])]
        warnings.append(
            f"{len(absent)} dates of the scores are not among the prices ({panel.dates[0]} to "
            f"{panel.dates[-1]}) and are left out: {_some(absent)}"
        )
    if warnings and unknown == "error":
        raise InputError("; ".join(warnings).replace(" and are left out", ""))
    keep = known & on_calendar
    if not keep.any():
        raise InputError("no row of the scores has both a symbol and a date that the prices have")
    rows, columns, values = row_of[keep], column_of[keep], values[keep]
    _refuse_duplicates(panel, rows, columns)
    laid = np.full((panel.days, len(panel.symbols)), np.nan)
    laid[rows, columns] = values
    _refuse_infinite(panel, laid)
    _require_some(laid)
    return laid, warnings


def _three_columns(table: Any) -> pl.DataFrame:
    """Find date, symbol and score, under those or common other names, with their types made one."""
    present = [str(name) for name in table.columns]
    chosen = {}
    for name, others in ALIASES.items():
        found = [candidate for candidate in (name, *others) if candidate in present]
        if not found:
            raise InputError(
                f"the scores have no column {name!r}; they need date, symbol and score, and have "
                f"{', '.join(present) or 'none'}"
            )
        column = table[found[0]]
        if isinstance(column, pl.Series):
            chosen[name] = column
        else:
            items = np.asarray(column)
            if items.dtype.kind == "M":
                items = items.astype("datetime64[us]")
            chosen[name] = pl.Series(name, items.tolist() if items.dtype == object else items, strict=False)
    return pl.DataFrame(
        {
            "date": _dates(chosen["date"]),
            "symbol": chosen["symbol"].cast(pl.String),
            "score": _numbers(chosen["score"]),
        }
    )


def _dates(column: pl.Series) -> pl.Series:
    if column.dtype == pl.Date:
        return column
    if column.dtype == pl.Datetime:
        zone = getattr(column.dtype, "time_zone", None)
        if zone is not None:
            raise InputError(f"column 'date' of the scores has the time zone {zone}; give plain dates")
        if (column.dt.truncate("1d") != column).any():
            raise InputError("column 'date' of the scores has times of day; give one date a row")
        return column.cast(pl.Date)
    if column.dtype == pl.String:
        parsed = column.str.strip_chars().str.to_date("%Y-%m-%d", strict=False)
        wrong = parsed.is_null() & column.is_not_null()
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise InputError(
                "column 'date' of the scores must hold dates like 2023-08-28; "
                f"row {row + 1} has {column[row]!r}"
            )
        return parsed
    raise InputError(f"column 'date' of the scores must hold dates, got {column.dtype}")


def _numbers(column: pl.Series) -> pl.Series:
    if column.dtype.is_numeric() or column.dtype == pl.Null:
        return column.cast(pl.Float64)
    if column.dtype == pl.String:
        wrong = column.str.strip_chars().cast(pl.Float64, strict=False).is_null() & column.is_not_null()
        row = int(wrong.arg_max() or 0)
        raise InputError(
            f"column 'score' of the scores must hold numbers, got text; row {row + 1} has {column[row]!r}"
        )
    raise InputError(f"column 'score' of the scores must hold numbers, got {column.dtype}")


def _refuse_duplicates(panel: Panel, rows: NDArray[np.intp], columns: NDArray[np.int64]) -> None:
    cell = rows * len(panel.symbols) + columns
    order = np.argsort(cell, kind="stable")
    twice = np.flatnonzero(np.diff(cell[order]) == 0)
    if len(twice):
        at = order[twice[0]]
        raise InputError(
            f"the scores have {len(twice)} rows for a date and symbol that came before; the first is "
            f"{panel.symbols[columns[at]]} on {panel.dates[rows[at]]}"
        )


def _refuse_infinite(panel: Panel, values: Matrix) -> None:
    where = np.argwhere(np.isinf(values))
    if len(where):
        row, column = where[0]
        raise InputError(
            f"{len(where)} scores are infinite; the first is {panel.symbols[column]} on {panel.dates[row]}"
        )


def _require_some(values: Matrix) -> None:
    if np.isnan(values).all():
        raise InputError("every score is missing (NaN)")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
