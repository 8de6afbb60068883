"""What is odd about prices though none of it is taken away: sentences for the report."""

from collections.abc import Callable
from datetime import date

import numpy as np
from numpy.typing import NDArray

from manyhead.stocks.panel import Panel

Mask = NDArray[np.bool_]


def examples(panel: Panel, mask: Mask, describe: Callable[[int, int], str] | None = None) -> str:
    """Name the first cells of a mask, by day, for a warning: 'AAA on 2020-01-02, BBB on ... (7 in all)'."""
    rows, cols = np.nonzero(mask)
    named = [
        f"{panel.symbols[col]} on {panel.dates[row]}" + (f" ({describe(row, col)})" if describe else "")
        for row, col in zip(rows[:3], cols[:3], strict=True)
    ]
    return ", ".join(named) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def calendar_notices(panel: Panel, today: date) -> list[str]:
    """Say what is odd about the days: weekends, the future, gaps, days that few symbols have."""
    found = []
    dates = panel.dates
    weekday = (dates.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    weekend = dates[weekday >= 5]
    if len(weekend):
        found.append(f"weekend: {len(weekend)} days are Saturdays or Sundays, the first {weekend[0]}")
    later = dates[dates > np.datetime64(today, "D")]
    if len(later):
        found.append(f"future-date: {len(later)} days lie after today ({today}), the first {later[0]}")
    gaps = np.flatnonzero(np.diff(dates) > np.timedelta64(14, "D"))
    if len(gaps):
        found.append(
            f"calendar-gap: nothing between {dates[gaps[0]]} and {dates[gaps[0] + 1]}"
            + (f" and {len(gaps) - 1} more such gaps" if len(gaps) > 1 else "")
        )
    count = (~np.isnan(panel["close"])).sum(1)
    if panel.days > 20:
        usual = np.median(np.lib.stride_tricks.sliding_window_view(count[:-1], 20), axis=1)
        thin = np.flatnonzero(count[20:] < 0.5 * usual) + 20
        if len(thin):
            found.append(
                f"thin-day: {dates[thin[0]]} has prices of {count[thin[0]]} symbols, the days before of"
                f" {int(usual[thin[0] - 20])}" + (f"; {len(thin)} such days" if len(thin) > 1 else "")
            )
    return found


def symbol_notices(panel: Panel) -> list[str]:
    """Say what is odd about the symbols: one only, survivors only, stale closes, twins."""
    found = []
    close = panel["close"]
    if len(panel.symbols) == 1:
        found.append(f"one-symbol: only {panel.symbols[0]}; nothing to compare it with on a day")
    ended = np.isnan(close[-20:]).all(axis=0)
    if panel.days > 504 and len(panel.symbols) >= 20 and not ended.any():
        found.append(
            f"survivorship: each of the {len(panel.symbols)} symbols still trades on the last days; those"
            " that left in between are not in these prices, which flatters whatever buys them"
        )
    same = np.zeros(close.shape, np.int64)
    for row in range(1, panel.days):
        same[row] = np.where(close[row] == close[row - 1], same[row - 1] + 1, 0)
    stale = np.flatnonzero(same.max(0) >= 59)  # 60 equal closes repeat 59 times
    if len(stale):
        names = ", ".join(f"{panel.symbols[i]} ({same[:, i].max() + 1} days)" for i in stale[:3])
        more = f" and {len(stale) - 3} more" if len(stale) > 3 else ""
        found.append(f"stale: the close of {names}{more} stays the same")
    twins: dict[bytes, str] = {}
    for index, symbol in enumerate(panel.symbols):
        key = np.ascontiguousarray(close[:, index]).tobytes()
        if key in twins and panel.days > 2:
            found.append(f"identical: {twins[key]} and {symbol} have the same closes throughout")
        twins.setdefault(key, symbol)
    return found
