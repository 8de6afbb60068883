"""What is wrong with prices, and what is done about it.

Every rule that removes a cell looks at that day and earlier days of the same symbol only, so that no
cleaned price depends on the future. What a rule finds is said in one sentence, `code: sentence`, in
`Panel.warnings`; `CODES` lists the rules.
"""

from datetime import date

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.jumps import Jumps, take_out_jumps
from manyhead.stocks.notices import calendar_notices, examples, symbol_notices
from manyhead.stocks.panel import Panel, Values

CODES: dict[str, str] = {
    "adjusted": "close and adjusted close are both there: the bar is scaled to the adjusted close",
    "unsorted": "rows of a symbol go back in time: they are put into order",
    "duplicate": "a row comes twice with the same numbers: it counts once",
    "timezone": "dates carry a time zone: the date as written is the trading day",
    "ignored-file": "a folder holds files that are no tables: they are not read",
    "infinite": "a number is infinite: the cell is made missing",
    "negative-price": "a price is below zero: the cell is made missing",
    "zero-price": "a price is zero: the cell is made missing",
    "negative-volume": "volume or money is below zero, or the factor not above: the cell is made missing",
    "contradiction": "high, low, open and close cannot all be true: the bar keeps its close only",
    "zero-volume": "volume is zero: the volume is made missing, since factors divide by it",
    "suspended": "no volume and the bar repeats the last close: the whole bar is made missing",
    "vwap": "there is no traded average price: (high + low + close) / 3 stands in",
    "few-fields": "a field of the bar is absent: factors that need it are left out",
    "close-only": "closing prices only",
    "large-move": "a close is at least 3 times, or a third, of the last: kept, may be a missed split",
    "jump": "a close is at least 50 times, or a fiftieth, of the last: missing until it is back in range",
    "empty-symbol": "a symbol has no price: it is left out",
    "empty-day": "a day has no price: it is left out",
    "one-symbol": "one symbol cannot be compared with others",
    "weekend": "Saturdays or Sundays occur",
    "future-date": "a day lies after today",
    "calendar-gap": "more than 14 days lie between two trading days",
    "thin-day": "a day has less than half the symbols of the 20 days before",
    "stale": "a close stays the same for 60 trading days or more",
    "identical": "two symbols have the same closes throughout",
    "not-fetched": "a ticker brought no prices",
    "survivorship": "the list of symbols is of survivors",
    "event-outside": "a split or dividend falls on no day of the prices: it is left out",
    "split-unseen": "the raw close does not move as the split says: it is applied all the same",
    "renamed": "a company's symbol became another: its earlier prices take the new one",
    "rename-unseen": "a change of symbol has no price before its day: nothing is renamed",
    "missing-session": "the exchange was open, the prices have no such day: nothing is filled",
    "no-session": "the exchange was closed, the prices have the day: it is kept",
    "half-day": "the exchange closed early: the day counts like others",
}

PRICES = ("open", "high", "low", "close", "vwap")
TOLERANCE = 5e-3  # relative; adjusted prices are rounded


def clean(
    panel: Panel, *, jumps: Jumps = "suspend", today: date | None = None, minimum_days: int = 2
) -> Panel:
    """Make what cannot be true missing, and say so.

    Args:
        panel: prices as they were read; left as it is.
        jumps: a close 50 times the last one (or a fiftieth) makes the symbol missing until its closes
            come back ('suspend'), is kept ('keep'), or is an error ('refuse').
        today: days after it are reported; the system's date if None.
        minimum_days: fewer days are an error.

    Returns:
        A new panel whose warnings end with what was found.

    Raises:
        InputError: if a column is no price at all (over a quarter of its cells zero or negative), no
            price is left, there are too few days, or `jumps` is 'refuse' and there is one.
    """
    if jumps not in ("suspend", "keep", "refuse"):
        raise InputError(f"jumps: got {jumps!r}; 'suspend', 'keep' or 'refuse' is accepted")
    fields: dict[str, Values] = {name: np.array(values, np.float64) for name, values in panel.fields.items()}
    work = Panel(panel.dates, panel.symbols, fields, panel.warnings)
    found = [
        *_impossible_cells(work),
        *_contradictions(work),
        *_suspensions(work),
        *_average_price(work),
        *take_out_jumps(work, jumps),
    ]
    whole, empty = _drop_empty(work)
    found += empty
    if whole.days < minimum_days:
        raise InputError(
            f"the prices cover {whole.days} day ({whole.dates[0]}); at least {minimum_days} are needed"
        )
    found += [*calendar_notices(whole, today or date.today()), *symbol_notices(whole)]
    return Panel(whole.dates, whole.symbols, whole.fields, (*panel.warnings, *found))


def _impossible_cells(panel: Panel) -> list[str]:
    found = []
    for name, values in panel.fields.items():
        present = int((~np.isnan(values)).sum())
        infinite = np.isinf(values)
        if infinite.any():
            found.append(f"infinite: {name} of {examples(panel, infinite)}; made missing")
            values[infinite] = np.nan
        if name not in PRICES:
            wrong = values < 0 if name != "factor" else values <= 0
            if wrong.any():
                found.append(f"negative-volume: {name} of {examples(panel, wrong)}; made missing")
                values[wrong] = np.nan
            continue
        below, zero = values < 0, values == 0
        bad = int(below.sum() + zero.sum())
        if bad > 0.25 * present:
            raise InputError(
                f"{name}: {bad} of {present} cells are zero or negative, the first"
                f" {examples(panel, below | zero, lambda r, c: f'{values[r, c]:g}').split(',')[0]};"  # noqa: B023
                " prices are accepted, not changes of prices"
            )
        for code, wrong in {"negative-price": below, "zero-price": zero}.items():
            if wrong.any():
                found.append(f"{code}: {name} of {examples(panel, wrong)}; made missing")
        values[below | zero] = np.nan
    return found


def _contradictions(panel: Panel) -> list[str]:
    bar = [name for name in PRICES if name in panel]
    top, bottom = panel.fields.get("high"), panel.fields.get("low")
    wrong = np.zeros((panel.days, len(panel.symbols)), bool)
    if top is not None and bottom is not None:
        wrong |= top < bottom * (1 - TOLERANCE)
    for name in ("open", "close"):
        if name in panel and top is not None:
            wrong |= panel[name] > top * (1 + TOLERANCE)
        if name in panel and bottom is not None:
            wrong |= panel[name] < bottom * (1 - TOLERANCE)
    if not wrong.any():
        return []

    def bars(row: int, col: int) -> str:
        return ", ".join(f"{name} {panel[name][row, col]:.6g}" for name in bar)

    sentence = f"contradiction: the bar of {examples(panel, wrong, bars)} cannot be; only its close is kept"
    for name in bar:
        if name != "close":
            panel[name][wrong] = np.nan
    return [sentence]


def _suspensions(panel: Panel) -> list[str]:
    if "volume" not in panel:
        return []
    found = []
    volume, close = panel["volume"], panel["close"]
    idle = volume == 0
    if idle.any():
        count = int(idle.sum())
        found.append(f"zero-volume: {examples(panel, idle)}: volume made missing in {count} cells")
        volume[idle] = np.nan
    # a bar that nobody traded and that repeats the last close was filled in by the vendor
    filled = idle & np.isfinite(close)
    filled[0] = False
    filled[1:] &= close[1:] == close[:-1]
    for name in ("open", "high", "low"):
        if name in panel:
            filled &= (panel[name] == close) | np.isnan(panel[name])
    if filled.any():
        found.append(
            f"suspended: {int(filled.sum())} bars without volume repeat the close before, the first"
            f" {examples(panel, filled)}; made missing"
        )
        for values in panel.fields.values():
            values[filled] = np.nan
    return found


def _average_price(panel: Panel) -> list[str]:
    """Add vwap: money / volume where that lies inside the bar, else (high + low + close) / 3."""
    absent = [name for name in ("open", "high", "low", "volume") if name not in panel]
    found = []
    if absent and not any(warning.startswith("close-only") for warning in panel.warnings):
        found.append(f"few-fields: there is no {', '.join(absent)}; factors that need it are left out")
    if "vwap" in panel or not {"high", "low"} <= panel.fields.keys():
        return found
    high, low, close = panel["high"], panel["low"], panel["close"]
    typical = (high + low + close) / 3
    if "money" not in panel or "volume" not in panel:
        found.append("vwap: the prices have no vwap and no money traded; (high + low + close) / 3 stands in")
        panel.fields["vwap"] = typical
        return found
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        paid = panel["money"] / panel["volume"]
    inside = (paid >= low * 0.99) & (paid <= high * 1.01)
    panel.fields["vwap"] = np.where(inside, paid, typical)
    outside = np.isfinite(paid) & np.isfinite(typical) & ~inside
    if outside.any():
        found.append(
            f"vwap: money / volume lies outside the day's range in {int(outside.sum())} of"
            f" {int(np.isfinite(paid).sum())} bars, the first {examples(panel, outside)} (other units, or raw"
            " beside adjusted prices?); (high + low + close) / 3 stands in there"
        )
    return found


def _drop_empty(panel: Panel) -> tuple[Panel, list[str]]:
    present = ~np.isnan(panel["close"])
    used, traded = present.any(0), present.any(1)
    if not used.any():
        raise InputError("close: no price is left in any row")
    found = []
    if not used.all():
        names = [panel.symbols[i] for i in np.flatnonzero(~used)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        found.append(f"empty-symbol: {', '.join(names[:5])}{more}: no price at all; left out")
    if not traded.all():
        days = panel.dates[~traded]
        found.append(f"empty-day: {len(days)} days without any price, the first {days[0]}; left out")
    if not found:
        return panel, []
    kept = np.ix_(traded, used)
    fields = {name: values[kept] for name, values in panel.fields.items()}
    symbols = tuple(panel.symbols[i] for i in np.flatnonzero(used))
    return Panel(panel.dates[traded], symbols, fields, panel.warnings), found
