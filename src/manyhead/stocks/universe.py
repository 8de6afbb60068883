"""Which symbols take part, by rules that could have been applied on the day.

Every rule takes `before`, a row of the panel's calendar, and reads no row from there on. Choosing by
what came later (today's index members, those without gaps until the end, the most traded of the whole
history) selects survivors, and the selection alone then looks like skill; Stockformer's released
pipeline does that (card, section 11.3). What no rule can repair is a source that holds survivors only.
Dollar volume of prices that were adjusted afterwards is smaller than it was for payers of dividends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.readers import cells
from manyhead.stocks.readers.columns import listed, normal
from manyhead.stocks.readers.tables import read_table

Choice = tuple[list[str], list[str]]  # symbols, and warnings in sentences


def most_traded(panel: Panel, count: int, before: int, window: int = 252, presence: float = 0.9) -> Choice:
    """Choose the symbols with the largest median dollar volume over the days before a row.

    A day without a trade counts as zero. Dollar volume is the field 'money' if it exists, else
    close x volume. Without volume the symbols that are present, and whose close changes, on the most
    days are taken, and a warning says so.

    Args:
        panel: prices.
        count: how many; fewer are returned, with a warning, if fewer qualify.
        before: first row that must not be read, the end of the training span.
        window: rows that are read, those directly before.
        presence: share of the window's days with a close that a symbol needs, 0..1.

    Returns:
        The symbols, most traded first, ties by name; and warnings.

    Raises:
        InputError: if an argument is out of range or no symbol qualifies.
    """
    if count < 1:
        raise InputError(f"universe: count must be at least 1, got {count}")
    if window < 1:
        raise InputError(f"universe: window must be at least 1 day, got {window}")
    if not 0 <= presence <= 1:
        raise InputError(f"universe: presence must be a share between 0 and 1, got {presence}")
    seen = _known(panel, before, window)
    warnings = []
    if seen.days < window:
        warnings.append(f"universe: only {seen.days} days lie before the split, {window} were asked for")
    close = seen["close"]
    share = (~np.isnan(close)).mean(axis=0)
    if "money" in seen or "volume" in seen:
        money = seen["money"] if "money" in seen else close * seen["volume"]
        rank = np.median(np.nan_to_num(money, nan=0.0), axis=0)
    else:
        warnings.append(
            "universe: the prices have no volume; the symbols present on most days, and among them those"
            " whose close changes most often, are taken instead of the most traded"
        )
        moved = np.nan_to_num(np.diff(close, axis=0), nan=0.0) != 0
        rank = share + moved.sum(axis=0) / (1e3 * seen.days)  # presence first, changes settle ties
    able = np.flatnonzero((share >= presence) & (share > 0))
    if not len(able):
        raise InputError(
            f"universe: no symbol has prices on {presence:.0%} of the {seen.days} days to {seen.dates[-1]}"
        )
    order = sorted(able, key=lambda index: (-rank[index], panel.symbols[index]))
    if len(order) < count:
        warnings.append(f"universe: {len(order)} symbols qualify, {count} were asked for")
    return [panel.symbols[index] for index in order[:count]], warnings


def complete_rows(panel: Panel, before: int, window: int = 252, fields: Sequence[str] = ("close",)) -> Choice:
    """Choose the symbols that have `fields` on every one of the `window` days before row `before`.

    Raises:
        InputError: if no symbol qualifies.
    """
    seen = _known(panel, before, window)
    whole = np.all([~np.isnan(seen[name]).any(axis=0) for name in fields], axis=0)
    if not whole.any():
        raise InputError(
            f"universe: no symbol has {listed(fields)} on all {seen.days} days up to {seen.dates[-1]}"
        )
    return _names(panel, whole), []


def listed_for(panel: Panel, days: int, before: int) -> Choice:
    """Choose the symbols with a close on at least `days` days before row `before` (card: 365).

    Raises:
        InputError: if no symbol qualifies.
    """
    seen = _known(panel, before, before)
    age = (~np.isnan(seen["close"])).sum(axis=0)
    if not (age >= days).any():
        raise InputError(
            f"universe: no symbol has {days} days of prices up to {seen.dates[-1]}; the most is {age.max()}"
        )
    return _names(panel, age >= days), []


def named(panel: Panel, symbols: Sequence[str]) -> Choice:
    """Take the symbols that a list names, once each.

    Raises:
        InputError: if the list is empty or none of its symbols has prices.
    """
    asked = list(dict.fromkeys(symbol.strip() for symbol in symbols if symbol.strip()))
    if not asked:
        raise InputError("universe: the list of symbols is empty")
    known = set(panel.symbols)
    here = [symbol for symbol in asked if symbol in known]
    if not here:
        raise InputError(f"universe: the prices have none of the {len(asked)} symbols, such as {asked[0]!r}")
    absent = [symbol for symbol in asked if symbol not in known]
    warnings = [f"universe: {len(absent)} symbols have no prices: {listed(absent, 5)}"] if absent else []
    return here, warnings


@dataclass(frozen=True)
class Membership:
    """Spans of days on which symbols belong to an index.

    Args:
        symbols: (spans,) a symbol may have several.
        first: (spans,) first day of membership, datetime64[D].
        last: (spans,) last day, included; NaT where it lasts.
    """

    symbols: tuple[str, ...]
    first: NDArray[np.datetime64]
    last: NDArray[np.datetime64]

    def on(self, day: Any) -> list[str]:
        """Return the members of one day (a date, datetime64 or ISO text), by name."""
        when = np.datetime64(day, "D")
        inside = (self.first <= when) & (np.isnat(self.last) | (when <= self.last))
        return sorted({self.symbols[index] for index in np.flatnonzero(inside)})

    def mask(self, panel: Panel) -> NDArray[np.bool_]:
        """Return (days, symbols): was the symbol a member on the day?"""
        column = {symbol: index for index, symbol in enumerate(panel.symbols)}
        inside = np.zeros((panel.days, len(panel.symbols)), bool)
        for symbol, first, last in zip(self.symbols, self.first, self.last, strict=True):
            if symbol in column:
                days = (panel.dates >= first) & (np.isnat(last) | (panel.dates <= last))
                inside[days, column[symbol]] = True
        return inside


def members(panel: Panel, membership: Membership, before: int) -> Choice:
    """Choose those who belonged to the index on the last day before row `before`.

    Raises:
        InputError: if nobody did, or none of them has prices.
    """
    day = _known(panel, before, 1).dates[-1]
    then = membership.on(day)
    if not then:
        raise InputError(f"universe: the membership table has no member on {day}")
    return named(panel, then)


def read_membership(path: str | Path) -> Membership:
    """Read a table of symbol, from, to: when a symbol entered an index, and its last day in it.

    An empty `to` means that it still belongs. 'start' and 'end', or 'date_added' and 'date_removed', are
    accepted as names too.

    Raises:
        InputError: with file and line, if a column is missing, a cell is no date, or a span ends before
            it starts.
    """
    raw, origin = read_table(Path(path))
    accepted = {
        "symbol": ("symbol", "ticker", "instrument", "code"),
        "from": ("from", "start", "dateadded", "first", "entry"),
        "to": ("to", "end", "dateremoved", "last", "exit"),
    }
    found = {}
    for field, names in accepted.items():
        column = next((name for name in raw.columns if normal(name) in names), None)
        if column is None:
            raise InputError(
                f"{origin.name}: there is no column {field!r}; symbol, from and to are needed, there are"
                f" {listed(raw.columns)}"
            )
        found[field] = column
    if raw.is_empty():
        raise InputError(f"{origin.name}: there are no spans in it")
    rows = pl.int_range(len(raw), eager=True)
    symbols = cells.symbols(raw[found["symbol"]], rows, origin)
    first, _ = cells.dates(raw[found["from"]], rows, origin)
    end = raw[found["to"]]
    if end.dtype == pl.String:
        text = end.str.strip_chars()
        end = text.set(text.str.to_lowercase().is_in(cells.MISSING), None)
    lasting = end.is_null()
    last = np.full(len(raw), np.datetime64("NaT"), "datetime64[D]")
    if not lasting.all():
        read, _ = cells.dates(end.filter(~lasting), rows.filter(~lasting), origin)
        last[~lasting.to_numpy()] = read.to_numpy().astype("datetime64[D]")
    began = first.to_numpy().astype("datetime64[D]")
    backward = np.flatnonzero(last < began)
    if len(backward):
        index = int(backward[0])
        raise InputError(
            f"{origin.at(index, found['to'])}: {symbols[index]} leaves on {last[index]}, before it enters on"
            f" {began[index]}"
        )
    return Membership(tuple(symbols.to_list()), began, last)


def _known(panel: Panel, before: int, window: int) -> Panel:
    """Return the last `window` days that lie before a row."""
    if not 1 <= before <= panel.days:
        raise InputError(f"universe: before must be a row from 1 to {panel.days}, got {before}")
    return panel.rows(max(0, before - window), before)


def _names(panel: Panel, chosen: NDArray[np.bool_]) -> list[str]:
    return [panel.symbols[index] for index in np.flatnonzero(chosen)]
