"""Ticker changes: a company keeps its history when its symbol becomes another.

A table of old, new, date says that from `date` on the company that was `old` trades as `new`. Its rows before
that day take the new name; rows of `old` on that day and later are another company's, which took the symbol
over. Nothing is guessed: a change that contradicts the prices is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from manyhead.errors import InputError
from manyhead.stocks.readers import cells
from manyhead.stocks.readers.columns import listed, normal
from manyhead.stocks.readers.rows import Rows
from manyhead.stocks.readers.tables import read_table

_NAMES = {
    "old": ("old", "oldsymbol", "oldticker", "from", "fromsymbol"),
    "new": ("new", "newsymbol", "newticker", "to", "tosymbol"),
    "date": ("date", "day", "effectivedate", "changedate"),
}


@dataclass(frozen=True, order=True)
class Rename:
    """One change: on `day` the company that was `old` begins to trade as `new`."""

    day: np.datetime64
    old: str
    new: str


def read_renames(path: str | Path) -> list[Rename]:
    """Read a table of old, new, date; returned by date.

    Raises:
        InputError: with file and line, if a column is missing, a cell cannot be read, a symbol becomes itself
            or the same symbol changes twice on a day.
    """
    raw, origin = read_table(Path(path))
    found = {}
    for field, names in _NAMES.items():
        column = next((name for name in raw.columns if normal(name) in names), None)
        if column is None:
            raise InputError(
                f"{origin.name}: there is no column {field!r}; old, new and date are needed, there are"
                f" {listed(raw.columns)}"
            )
        found[field] = column
    rows = pl.int_range(len(raw), eager=True)
    old, new = (cells.symbols(raw[found[side]], rows, origin).to_list() for side in ("old", "new"))
    days = cells.dates(raw[found["date"]], rows, origin)[0].to_numpy().astype("datetime64[D]")
    seen: set[tuple[str, np.datetime64]] = set()
    for index, (before, after, day) in enumerate(zip(old, new, days, strict=True)):
        if before == after:
            raise InputError(f"{origin.at(index, found['new'])}: {before} becomes itself")
        for symbol in (before, after):
            if (symbol, day) in seen:
                raise InputError(f"{origin.at(index, found['date'])}: {symbol} changes twice on {day}")
        seen |= {(before, day), (after, day)}
    return sorted(Rename(day, before, after) for before, after, day in zip(old, new, days, strict=True))


def renamed_rows(frame: pl.DataFrame, renames: Sequence[Rename]) -> pl.DataFrame:
    """Give rows of (date, symbol, ...) the names that their companies have after all changes."""
    for rename in sorted(renames):
        concerned = (pl.col("symbol") == rename.old) & (pl.col("date") < rename.day.item())
        frame = frame.with_columns(
            pl.when(concerned).then(pl.lit(rename.new)).otherwise(pl.col("symbol")).alias("symbol")
        )
    return frame


def renamed_symbols(symbols: Sequence[str], renames: Sequence[Rename], since: np.datetime64) -> list[str]:
    """Name companies anew that had these symbols on the day `since`."""
    names = list(symbols)
    for rename in sorted(renames):
        if rename.day > since:
            names = [rename.new if name == rename.old else name for name in names]
    return names


def apply_renames(rows: Rows, renames: Sequence[Rename]) -> Rows:
    """Rename the companies of a price table, and say what was done.

    Returns:
        Rows in order of symbol and date, with warnings 'renamed' and 'rename-unseen'.

    Raises:
        InputError: if the new symbol has prices from before the change: another company had it then.
    """
    frame = rows.frame
    done: list[str] = []
    unseen: list[str] = []
    for rename in sorted(renames):
        before = frame.filter(pl.col("date") < rename.day.item())
        said = f"{rename.old} to {rename.new} on {rename.day}"
        others = before.filter(pl.col("symbol") == rename.new)["date"].cast(pl.String)
        if len(others) and (before["symbol"] == rename.old).any():
            raise InputError(
                f"renames: {said}, but {rename.new} has {len(others)} prices from before, the last of"
                f" {max(others)}: another company had the symbol; give that one another name first (a row"
                f" '{rename.new}, {rename.new}.OLD, date after its last price')"
            )
        if not (before["symbol"] == rename.old).any():
            unseen.append(said)
            continue
        frame = renamed_rows(frame, [rename])
        done.append(said)
    found = [
        f"{code}: {len(which)} changes of symbols {what}, such as {', '.join(which[:3])}"
        for code, which, what in (
            ("renamed", done, "were applied"),
            ("rename-unseen", unseen, "found no price before their day"),
        )
        if which
    ]
    return Rows(frame.sort("symbol", "date"), (*rows.warnings, *found))
