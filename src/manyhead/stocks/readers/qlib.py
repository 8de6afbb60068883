"""Qlib's binary data folder: a calendar, lists of instruments, and one float32 file a field.

Yang et al., 'Qlib: An AI-oriented Quantitative Investment Platform', 2020, arXiv 2009.11189; the layout
is that of Qlib's `FileFeatureStorage`: `features/<symbol>/<field>.day.bin` holds little-endian float32
numbers, the first of which is the row of the calendar at which the others start.
"""

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from manyhead.errors import InputError
from manyhead.stocks.panel import FIELDS
from manyhead.stocks.readers.rows import Rows


def is_qlib(folder: Path) -> bool:
    """Tell whether a folder is in Qlib's format."""
    return (folder / "calendars" / "day.txt").is_file() and (folder / "features").is_dir()


def read_qlib(folder: Path, market: str = "all") -> Rows:
    """Read the instruments of one list; days outside an instrument's spans in the list are left out.

    Args:
        folder: holds `calendars`, `features` and, optionally, `instruments`.
        market: name of the file in `instruments` (a line: symbol, first day, last day); every folder of
            `features` is read where 'all' is not there.

    Raises:
        InputError: naming the file that is absent or malformed.
    """
    if not is_qlib(folder):
        raise InputError(f"{folder}: no Qlib data: calendars/day.txt and features/ are needed")
    calendar = _calendar(folder / "calendars" / "day.txt")
    members = _members(folder / "instruments" / f"{market}.txt", market)
    if members is None:
        members = {path.name.upper(): [] for path in (folder / "features").iterdir() if path.is_dir()}
    pieces, absent = [], []
    for symbol, spans in sorted(members.items()):
        home = folder / "features" / symbol.lower()
        if not (home / "close.day.bin").is_file():
            absent.append(symbol)
            continue
        pieces.append(_instrument(home, symbol, spans, calendar))
    if not pieces:
        raise InputError(f"{folder}: no instrument of {market!r} has features/<symbol>/close.day.bin")
    warnings = (
        [f"empty-symbol: {', '.join(absent[:5])}: listed, without features; left out"] if absent else []
    )
    return Rows(pl.concat(pieces, how="diagonal"), tuple(warnings))


def _calendar(path: Path) -> np.ndarray:
    lines = _text(path).split()
    try:
        days = np.array([np.datetime64(date.fromisoformat(line)) for line in lines], "datetime64[D]")
    except ValueError as error:
        raise InputError(f"{path}: {error}; one day such as 2020-01-31 a line is accepted") from None
    if not len(days) or (np.diff(days) <= np.timedelta64(0, "D")).any():
        raise InputError(f"{path}: the days must be there and increase")
    return days


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _members(path: Path, market: str) -> dict[str, list[tuple[np.datetime64, np.datetime64]]] | None:
    if not path.is_file():
        if market == "all":
            return None
        there = sorted(other.stem for other in path.parent.glob("*.txt"))
        raise InputError(f"{path}: there is no such list of instruments; there are {', '.join(there)}")
    members: dict[str, list[tuple[np.datetime64, np.datetime64]]] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        try:
            symbol, first, last = cells[:3]
            span = (np.datetime64(date.fromisoformat(first)), np.datetime64(date.fromisoformat(last)))
        except ValueError:
            raise InputError(
                f"{path}, line {number}: got {line[:60]!r}; symbol, first day and last day are accepted"
            ) from None
        members.setdefault(symbol.upper(), []).append(span)
    return members


def _instrument(
    home: Path, symbol: str, spans: list[tuple[np.datetime64, np.datetime64]], calendar: np.ndarray
) -> pl.DataFrame:
    days = len(calendar)
    fields = {}
    for name in FIELDS:
        path = home / f"{name}.day.bin"
        if not path.is_file():
            continue
        content = path.read_bytes()
        if len(content) < 4 or len(content) % 4:
            raise InputError(f"{path}: has {len(content)} bytes; a whole number of float32 is needed")
        numbers = np.frombuffer(content, "<f4")
        start, values = numbers[0], numbers[1:]
        if not (start >= 0 and start == int(start) and start + len(values) <= days):
            raise InputError(
                f"{path}: starts at row {start} with {len(values)} values; the calendar has {days} days"
            )
        fields[name] = np.full(days, np.nan)
        fields[name][int(start) : int(start) + len(values)] = values
    inside = np.zeros(days, bool) if spans else np.ones(days, bool)
    for first, last in spans:
        inside |= (calendar >= first) & (calendar <= last)
    inside &= ~np.isnan(np.stack(list(fields.values()))).all(0)
    columns = {name: values[inside] for name, values in fields.items()}
    return pl.DataFrame(
        {"date": calendar[inside], "symbol": [symbol] * int(inside.sum()), **columns},
        schema_overrides={"symbol": pl.String},
    ).with_columns(pl.col("^(?:open|high|low|close|vwap|volume|money|factor)$").fill_nan(None))
