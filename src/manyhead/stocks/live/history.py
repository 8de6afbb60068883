"""The prices of a run that goes on: new rows are appended, what is there already must not change.

The rows that the run was made from stay in its `prices.parquet`. Later rows, and accepted revisions of
earlier ones, are in `live/prices.parquet`, which is written whole: a kill leaves the old or the new one.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl

from manyhead.errors import InputError
from manyhead.files import atomic
from manyhead.stocks.readers.rows import Rows

KEYS = ["date", "symbol"]
PRESENT = "there already"
TOLERANCE = 1e-9  # relative; a number written and read again may differ in its last digits


@dataclass(frozen=True)
class Revision:
    """A cell of the past that a source gives another value; None stands for a missing one."""

    symbol: str
    date: date
    field: str
    old: float | None
    new: float | None

    def __str__(self) -> str:
        return f"{self.symbol} on {self.date}: {self.field} was {_shown(self.old)}, is {_shown(self.new)}"


@dataclass(frozen=True)
class Merged:
    """A history with rows added to it.

    Attributes:
        frame: every row, by date and symbol.
        changed: the rows that are new or were given another value.
        revisions: cells of the past with another value.
        days: new days, in order.
        notes: what was found in the rows, in sentences.
    """

    frame: pl.DataFrame
    changed: pl.DataFrame
    revisions: list[Revision]
    days: list[date]
    notes: list[str]


def merge(history: pl.DataFrame, given: Rows, start: str | None = None) -> Merged:
    """Add rows to a history, and list where they contradict it.

    Args:
        history: date, symbol and fields.
        given: rows of the same form; they may repeat the history or begin after it.
        start: first day of the run's configuration; rows before it are left out silently.

    Raises:
        InputError: if the rows lack a field of the history.
    """
    fields = [name for name in history.columns if name not in KEYS]
    absent = [name for name in fields if name not in given.frame.columns]
    if absent:
        raise InputError(
            f"the new prices have no column {absent[0]!r}; the run's prices have {', '.join(fields)}"
        )
    notes = list(given.warnings)
    extra = [name for name in given.frame.columns if name not in [*KEYS, *fields]]
    if extra:
        notes.append(f"new prices: the run has no column {', '.join(extra)}; not used")
    rows = given.frame.select(*KEYS, *(pl.col(name).cast(pl.Float64).fill_nan(None) for name in fields))
    known = history.select(*KEYS, *(pl.col(name).fill_nan(None) for name in fields))
    every_day: list[date] = known["date"].unique().sort().to_list()
    first, last = every_day[0], every_day[-1]
    older = rows.filter(pl.col("date") < first)
    if older.height:
        rows = rows.filter(pl.col("date") >= first)
        if start is None:
            notes.append(f"new prices: {older.height} rows lie before the run's first day, {first}; not used")
    here = set(known["symbol"].unique())
    strangers = sorted(set(rows["symbol"].unique()) - here)
    if strangers:
        notes.append(
            f"new prices: {len(strangers)} symbols are new, {', '.join(strangers[:5])}; they are kept, and"
            " not scored by models that never saw them"
        )
    marked = known.with_columns(pl.lit(True).alias(PRESENT))
    both = rows.join(marked, on=KEYS, how="left", suffix=" before").with_columns(
        pl.col(PRESENT).fill_null(False)
    )
    revisions: list[Revision] = []
    changed = pl.lit(False)
    for name in fields:
        new, old = pl.col(name), pl.col(f"{name} before")
        apart = (new - old).abs() > TOLERANCE * pl.max_horizontal(new.abs(), old.abs())
        differs = pl.col(PRESENT) & (apart.fill_null(False) | (new.is_null() != old.is_null()))
        found = both.filter(differs)
        revisions += [
            Revision(symbol, day, name, before, after)
            for day, symbol, before, after in found.select(*KEYS, f"{name} before", name).iter_rows()
        ]
        changed = changed | differs
    known_day = pl.col("date").is_in(every_day)
    late = ~pl.col(PRESENT) & (pl.col("date") <= last) & (pl.col("symbol").is_in(list(here)) | ~known_day)
    revisions += [
        Revision(symbol, day, "close", None, value)
        for day, symbol, value in both.filter(late).select(*KEYS, "close").iter_rows()
    ]
    altered = both.filter(~pl.col(PRESENT) | changed).select(*KEYS, *fields)
    frame = pl.concat([known.join(altered, on=KEYS, how="anti"), altered]).sort(KEYS)
    days = sorted(set(altered.filter(pl.col("date") > last)["date"]))
    revisions.sort(key=lambda cell: (cell.date, cell.symbol, cell.field))
    return Merged(frame, altered, revisions, days, notes)


def refuse(revisions: list[Revision]) -> None:
    """Refuse a revised past.

    Raises:
        InputError: naming the first cell that changed, if one did.
    """
    if not revisions:
        return
    symbols, days = {cell.symbol for cell in revisions}, {cell.date for cell in revisions}
    more = (
        f" ({len(revisions)} cells of {len(symbols)} symbols on {len(days)} days differ)"
        if len(revisions) > 1
        else ""
    )
    raise InputError(
        f"the past was revised: {revisions[0]}{more}; scores of earlier days were decided on the prices as"
        " they were. Give only new rows, or accept the new past with --accept-revisions"
    )


class History:
    """The kept prices of a run's folder.

    Args:
        folder: of the run.
        original: the rows that the run was made from.
    """

    def __init__(self, folder: Path, original: pl.DataFrame) -> None:
        self.run = folder
        self.folder = folder / "live"
        self.original = original

    @property
    def last(self) -> date:
        """The newest day that is known."""
        newest: date = max(self.rows["date"])
        return newest

    @property
    def revised(self) -> bool:
        """Whether a revision of the past was accepted."""
        return (self.folder / "revisions.parquet").exists()

    @property
    def rows(self) -> pl.DataFrame:
        """Every row, by date and symbol."""
        added = self._read("prices.parquet")
        if added is None:
            return self.original.sort(KEYS)
        kept = self.original.join(added, on=KEYS, how="anti")
        return pl.concat([kept, added.select(kept.columns)]).sort(KEYS)

    def keep(self, changed: pl.DataFrame) -> None:
        """Add rows, in place of what was there for their day and symbol."""
        added = self._read("prices.parquet")
        if added is not None:
            changed = pl.concat([added.join(changed, on=KEYS, how="anti"), changed.select(added.columns)])
        self._write("prices.parquet", changed.sort(KEYS))

    def note_revisions(self, revisions: list[Revision]) -> None:
        """Record accepted revisions; one that is recorded already is not recorded twice."""
        table = pl.DataFrame(
            [vars(cell) for cell in revisions],
            schema={
                "symbol": pl.String,
                "date": pl.Date,
                "field": pl.String,
                "old": pl.Float64,
                "new": pl.Float64,
            },
        )
        before = self._read("revisions.parquet")
        together = table if before is None else pl.concat([before, table])
        self._write("revisions.parquet", together.unique(maintain_order=True))

    def _read(self, name: str) -> pl.DataFrame | None:
        file = self.folder / name
        return pl.read_parquet(file) if file.exists() else None

    def _write(self, name: str, table: pl.DataFrame) -> None:
        with atomic(self.folder / name) as stream:
            table.write_parquet(stream, compression="zstd")


def _shown(value: float | None) -> str:
    return "missing" if value is None else f"{value:.10g}"
