"""Cells of a source as dates, symbols and numbers; a cell that is none of them is named by its row."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime

import polars as pl

from manyhead.errors import InputError

# texts that stand for 'no value' in a column of numbers
MISSING = ("", "na", "n/a", "nan", "null", "none", "-", "--", "nat", "#n/a")
YEARS = range(1900, 2101)
ACCEPTED_DATES = "2020-01-31, 2020/01/31, 20200131, 31-Jan-2020 or 31.01.2020 (a time of day may follow)"

_TIME = r"(?:[T ]+\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?)?"
_KINDS = {
    "year-month-day": re.compile(r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})" + _TIME),
    "yyyymmdd": re.compile(r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})" + _TIME),
    "a/b/year": re.compile(r"(?P<a>\d{1,2})[-/](?P<b>\d{1,2})[-/](?P<y>\d{4})" + _TIME),
    "day.month.year": re.compile(r"(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})" + _TIME),
    "day-Mon-year": re.compile(r"(?P<d>\d{1,2})[- ](?P<name>[A-Za-z]{3})[a-z]*[- ](?P<y>\d{4})" + _TIME),
    "Mon day, year": re.compile(r"(?P<name>[A-Za-z]{3})[a-z]* +(?P<d>\d{1,2}),? +(?P<y>\d{4})" + _TIME),
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True)
class Origin:
    """Where rows come from, so that a message can point at one."""

    name: str
    unit: str = "row"
    offset: int = 1  # number of the first data row in the source's own counting

    def at(self, index: int, column: str) -> str:
        """Return 'FILE, line N, column C' for data row `index`, counted from 0."""
        return f"{self.name}, {self.unit} {index + self.offset}, column {column!r}"


def shown(cell: object) -> str:
    """Return a cell for a message, cut to a readable length."""
    text = repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."


def first(mask: pl.Series) -> int:
    """Return the index of the first true entry."""
    return int(mask.arg_true()[0])


def numbers(column: pl.Series, rows: pl.Series, origin: Origin) -> pl.Series:
    """Read a column as float64; missing cells and NaN become null, infinities stay for the checks.

    Args:
        column: text, integers, floats or decimals.
        rows: index of each cell's row in the source.
        origin: the source.

    Raises:
        InputError: naming the first cell that is no number.
    """
    kind = column.dtype
    if kind.is_numeric() or kind == pl.Null:
        return column.cast(pl.Float64).fill_nan(None)
    if kind != pl.String:
        raise InputError(f"{origin.name}, column {column.name!r}: holds {kind}, numbers are accepted")
    values = column.cast(pl.Float64, strict=False)
    odd = values.is_null() & column.is_not_null()
    if odd.any():
        text = column.str.strip_chars()
        text = text.set(text.str.to_lowercase().is_in(MISSING), None)
        values = text.cast(pl.Float64, strict=False)
        odd = values.is_null() & text.is_not_null()
        if odd.any():
            index = first(odd)
            raise InputError(
                f"{origin.at(int(rows[index]), column.name)}: got {shown(column[index])}; a number such as"
                " 1234.5 is accepted (no thousands separators or currency signs), or nothing where missing"
            )
    return values.fill_nan(None)


def symbols(column: pl.Series, rows: pl.Series, origin: Origin) -> pl.Series:
    """Read a column as symbols, surrounding spaces dropped.

    Raises:
        InputError: naming the first empty cell, or if the column cannot be text.
    """
    kind = column.dtype
    if not (kind == pl.String or kind.is_integer() or kind in (pl.Categorical, pl.Enum, pl.Null)):
        raise InputError(f"{origin.name}, column {column.name!r}: holds {kind}; symbols are text or integers")
    text = column.cast(pl.String).str.strip_chars()
    empty = text.is_null() | (text == "")
    if empty.any():
        index = first(empty)
        raise InputError(
            f"{origin.at(int(rows[index]), column.name)}: the symbol is empty; every row needs one"
        )
    return text


def dates(
    column: pl.Series, rows: pl.Series, origin: Origin, date_format: str | None = None
) -> tuple[pl.Series, list[str]]:
    """Read a column as calendar dates, one format for the whole column.

    A time of day is dropped; where the cells carry a time zone, the date as written there is taken.

    Args:
        column: dates, datetimes, text, or integers such as 20200131.
        rows: index of each cell's row in the source.
        origin: the source.
        date_format: strptime format of the text, where the cells do not tell.

    Returns:
        The dates and the warnings.

    Raises:
        InputError: naming the first cell that is missing, no date, of another format than the rest, or
            outside 1900 to 2100.
    """
    if column.is_null().any():
        raise InputError(f"{origin.at(int(rows[first(column.is_null())]), column.name)}: the date is missing")
    kind, warnings = column.dtype, []
    if kind == pl.Date:
        parsed = column
    elif isinstance(kind, pl.Datetime):
        parsed = column.dt.date()
        if kind.time_zone:
            warnings.append(_zone_warning(origin, column.name, kind.time_zone))
    else:
        if kind.is_float() and (column.is_finite() & (column == column.floor())).all():
            column = column.cast(pl.Int64, strict=False).alias(column.name)
        if not (column.dtype == pl.String or column.dtype.is_integer() or kind == pl.Categorical):
            raise InputError(
                f"{origin.name}, column {column.name!r}: holds {kind}; accepted: {ACCEPTED_DATES}"
            )
        text = column.cast(pl.String).str.strip_chars()
        distinct = text.unique(maintain_order=True)
        read, zoned = _read_texts(distinct.to_list(), _refusal(text, rows, origin, column.name), date_format)
        parsed = text.replace_strict(distinct, pl.Series(read, dtype=pl.Date), return_dtype=pl.Date)
        if zoned:
            warnings.append(_zone_warning(origin, column.name, zoned))
    outside = (parsed.dt.year() < YEARS[0]) | (parsed.dt.year() > YEARS[-1])
    if outside.any():
        index = first(outside)
        cell = column.slice(index, 1).cast(pl.String)[0]  # Python's own dates end with the year 9999
        raise InputError(
            f"{origin.at(int(rows[index]), column.name)}: got {shown(cell)};"
            f" dates from {YEARS[0]} to {YEARS[-1]} are accepted"
        )
    return parsed.alias("date"), warnings


def _zone_warning(origin: Origin, column: str, zone: str) -> str:
    return (
        f"timezone: {origin.name}, column {column!r} carries a time zone ({zone}); the date as written there"
        " is taken as the trading day"
    )


def _refusal(text: pl.Series, rows: pl.Series, origin: Origin, name: str) -> Callable[[str, str], InputError]:
    def refuse(cell: str, why: str) -> InputError:
        return InputError(f"{origin.at(int(rows[first(text == cell)]), name)}: got {shown(cell)}; {why}")

    return refuse


def _read_texts(
    cells: list[str], refuse: Callable[[str, str], InputError], date_format: str | None
) -> tuple[list[date], str]:
    """Read distinct date texts; also return the first time zone met, or ''."""
    if date_format is not None:
        return [_by_format(cell, date_format, refuse) for cell in cells], ""
    matches: list[tuple[str, re.Match[str]]] = []
    zone = ""
    for cell in cells:
        hit = next(((kind, m) for kind, regex in _KINDS.items() if (m := regex.fullmatch(cell))), None)
        if hit is None:
            raise refuse(cell, f"dates such as {ACCEPTED_DATES} are accepted")
        if matches and hit[0] != matches[0][0]:
            raise refuse(
                cell, f"rows before it are written as {matches[0][0]!r}; one date format a file is accepted"
            )
        matches.append(hit)
        zone = zone or hit[1]["zone"] or ""
    month_first = _month_first(cells, matches, refuse)
    return [
        _calendar_date(cell, match, month_first, refuse)
        for cell, (_, match) in zip(cells, matches, strict=True)
    ], zone


def _by_format(cell: str, date_format: str, refuse: Callable[[str, str], InputError]) -> date:
    try:
        return datetime.strptime(cell, date_format).date()
    except ValueError:
        raise refuse(cell, f"date_format {date_format!r} does not fit it") from None


def _month_first(
    cells: list[str], matches: list[tuple[str, re.Match[str]]], refuse: Callable[[str, str], InputError]
) -> bool:
    """Tell 1/2/2020's order from the cells whose day is above 12."""
    if not matches or matches[0][0] != "a/b/year":
        return False
    day_first = next((cell for cell, (_, m) in zip(cells, matches, strict=True) if int(m["a"]) > 12), None)
    month_first = next((cell for cell, (_, m) in zip(cells, matches, strict=True) if int(m["b"]) > 12), None)
    if day_first is not None and month_first is not None:
        raise refuse(
            month_first, f"{day_first!r} has the day first, this one the month; one order a file is accepted"
        )
    if day_first is None and month_first is None:
        raise refuse(
            cells[0],
            "day or month first? no row tells: give date_format, '%d/%m/%Y' or '%m/%d/%Y' for example",
        )
    return month_first is not None


def _calendar_date(
    cell: str, match: re.Match[str], month_first: bool, refuse: Callable[[str, str], InputError]
) -> date:
    part = match.groupdict()
    if "a" in part:
        month, day = (part["a"], part["b"]) if month_first else (part["b"], part["a"])
    elif "name" in part:
        name = part["name"].lower()
        if name not in _MONTHS:
            raise refuse(cell, f"{part['name']!r} is no month")
        month, day = str(_MONTHS.index(name) + 1), part["d"]
    else:
        month, day = part["m"], part["d"]
    try:
        return date(int(part["y"]), int(month), int(day))
    except ValueError:
        raise refuse(cell, "the calendar has no such day") from None
