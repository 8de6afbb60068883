"""Splits and dividends applied to raw prices, so that a return is what a holder earned.

`adjusted price = raw price x factor` and `adjusted volume = raw volume / factor`, as in Qlib: price x volume
stays the money traded. Adjustment runs forward from the first day, whose factor is 1, so that a day's
factor holds the events up to that day only. The usual backward adjustment, from the last day, changes
every earlier price with each new event; returns are the same.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel, Values
from manyhead.stocks.readers import cells
from manyhead.stocks.readers.columns import ALIASES, listed, normal
from manyhead.stocks.readers.tables import read_table

Kind = Literal["split", "dividend"]

_AMOUNT: dict[Kind, tuple[str, ...]] = {
    "split": ("ratio", "split", "splitratio", "splitfactor", "stocksplits"),
    "dividend": ("amount", "dividend", "dividends", "cash", "cashdividend"),
}
_DATE = ("date", "exdate", "exdividenddate", "effectivedate")


@dataclass(frozen=True)
class Events:
    """Splits or dividends: one entry an event.

    Args:
        kind: 'split' or 'dividend'.
        symbols: whose.
        days: (events,) first day on which a buyer no longer takes part, datetime64[D].
        amounts: (events,) new shares for an old one, or money for a share as it was the day before.
    """

    kind: Kind
    symbols: tuple[str, ...]
    days: NDArray[np.datetime64]
    amounts: NDArray[np.float64]


def read_events(path: str | Path, kind: Kind) -> Events:
    """Read a table of symbol, date and ratio (splits: 4, or 4:1) or amount (dividends).

    Raises:
        InputError: with file and line, if a column is missing, a cell cannot be read, or an amount is
            not above zero.
    """
    raw, origin = read_table(Path(path))
    wanted = {"symbol": ALIASES["symbol"], "date": _DATE, "amount": _AMOUNT[kind]}
    found = {}
    for field, names in wanted.items():
        column = next((name for name in raw.columns if normal(name) in names), None)
        if column is None:
            raise InputError(
                f"{origin.name}: there is no column for the {field} of a {kind} (accepted names:"
                f" {', '.join(names)}); there are {listed(raw.columns)}"
            )
        found[field] = column
    rows = pl.int_range(len(raw), eager=True)
    symbols = cells.symbols(raw[found["symbol"]], rows, origin)
    days, _ = cells.dates(raw[found["date"]], rows, origin)
    amount = raw[found["amount"]]
    if kind == "split" and amount.dtype == pl.String:
        amount = _ratios(amount)
    amounts = cells.numbers(amount.alias(found["amount"]), rows, origin)
    wrong = ~(amounts.is_finite() & (amounts > 0)).fill_null(False)
    if wrong.any():
        index = cells.first(wrong)
        raise InputError(
            f"{origin.at(index, found['amount'])}: got {cells.shown(raw[found['amount']][index])}; a number"
            " above zero is accepted"
        )
    stamps = days.to_numpy().astype("datetime64[D]")
    return Events(kind, tuple(symbols.to_list()), stamps, amounts.to_numpy().astype(np.float64))


def adjust(panel: Panel, splits: Events | None = None, dividends: Events | None = None) -> Panel:
    """Apply splits and dividends to raw prices.

    An event takes effect on the first day, from its own on, on which the symbol has a close. A split
    multiplies the factor by its ratio; a dividend D by c / (c - D), c being the raw close before.

    Returns:
        A panel with the field 'factor'. Its warnings name events that fell outside the prices, and
        splits that the raw prices do not show, as when they are adjusted already.

    Raises:
        InputError: if the panel has a factor already, or a dividend is not below the close before.
    """
    if "factor" in panel:
        raise InputError("splits: these prices come with a factor, so that they are adjusted already")
    close = panel["close"]
    factor = np.ones(close.shape)
    column = {symbol: index for index, symbol in enumerate(panel.symbols)}
    outside, unseen = [], []
    for events in (dividends, splits):
        if events is None:
            continue
        for symbol, day, amount in zip(events.symbols, events.days, events.amounts, strict=True):
            place = _place(panel, column.get(symbol), day)
            if place is None:
                outside.append(f"{events.kind} of {symbol} on {day}")
                continue
            row, col, before = place
            if events.kind == "dividend":
                if amount >= before:
                    raise InputError(
                        f"dividends: {symbol} pays {amount:g} on {day}, its close before is {before:g}; an"
                        " amount below it is accepted"
                    )
                factor[row:, col] *= before / (before - amount)
                continue
            moved = close[row, col] / before
            if abs(np.log(moved * amount)) > abs(np.log(moved)):
                unseen.append(f"{symbol} on {day} ({amount:g}:1, close {before:g} to {close[row, col]:g})")
            factor[row:, col] *= amount
    return Panel(
        panel.dates,
        panel.symbols,
        {**_scaled(panel, factor), "factor": np.where(np.isnan(close), np.nan, factor)},
        (*panel.warnings, *_sentences(outside, unseen)),
    )


def _ratios(column: pl.Series) -> pl.Series:
    """Turn 4:1 and 4/1 into 4; what is neither stays text."""
    parts = column.str.extract_groups(r"^\s*([\d.]+)\s*[:/]\s*([\d.]+)\s*$").struct.unnest()
    new, old = (parts.to_series(side).cast(pl.Float64, strict=False) for side in (0, 1))
    pair = new / old
    return column.zip_with(pair.is_null(), pair.cast(pl.String))


def _place(panel: Panel, col: int | None, day: np.datetime64) -> tuple[int, int, float] | None:
    """Return row and column at which an event takes effect and the close before, if they exist."""
    if col is None or day <= panel.dates[0]:
        return None
    known = np.flatnonzero(panel["close"][:, col] > 0)
    row = int(np.searchsorted(panel.dates[known], day))
    if row == 0 or row == len(known):
        return None
    return int(known[row]), col, float(panel["close"][known[row - 1], col])


def _scaled(panel: Panel, factor: Values) -> dict[str, Values]:
    fields: dict[str, Values] = {}
    for name, values in panel.fields.items():
        if name == "volume":
            fields[name] = values / factor
        else:
            fields[name] = values if name == "money" else values * factor
    return fields


def _sentences(outside: list[str], unseen: list[str]) -> list[str]:
    found = []
    if outside:
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        found.append(f"event-outside: {', '.join(outside[:3])}{more}: no price before or after; left out")
    if unseen:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        found.append(
            f"split-unseen: {', '.join(unseen[:3])}{more}: the close does not move so; adjusted already?"
        )
    return found
