"""The days of prices against the calendar of their exchange, as the package exchange_calendars keeps it."""

import numpy as np

from manyhead.errors import InputError, optional
from manyhead.stocks.panel import Panel


def session_warnings(panel: Panel, exchange: str) -> list[str]:
    """Say which sessions of an exchange the prices lack, and which of their days were none.

    Nothing is filled or taken out. Half days are sessions like others; how many there are is said.

    Args:
        panel: prices.
        exchange: name or ISO 10383 code: 'NYSE', 'XNYS', 'XSHG', 'XLON', ...

    Returns:
        Sentences that begin with 'missing-session', 'no-session' or 'half-day'.

    Raises:
        InputError: if the exchange is unknown, its calendar does not cover the prices, or the package is
            not installed.
    """
    calendars = optional("exchange_calendars", "stocks")
    first, last = str(panel.dates[0]), str(panel.dates[-1])
    known = sorted(calendars.get_calendar_names())
    if exchange.upper() not in known:
        raise InputError(f"exchange: got {exchange!r}; one of {', '.join(known)} is accepted")
    try:
        calendar = calendars.get_calendar(exchange.upper(), start=first, end=last)
    except ValueError as error:
        raise InputError(f"exchange: {exchange} has no calendar from {first} to {last}: {error}") from error
    sessions = calendar.sessions.to_numpy().astype("datetime64[D]")
    half = np.intersect1d(calendar.early_closes.to_numpy().astype("datetime64[D]"), panel.dates)
    found = []
    for code, days, what in (
        (
            "missing-session",
            np.setdiff1d(sessions, panel.dates),
            f"sessions of {exchange} are not in the prices",
        ),
        (
            "no-session",
            np.setdiff1d(panel.dates, sessions),
            f"days of the prices are no sessions of {exchange}",
        ),
        ("half-day", half, "sessions closed early; their volume is a part of a day's"),
    ):
        if len(days):
            shown = ", ".join(map(str, days[:3])) + (f" and {len(days) - 3} more" if len(days) > 3 else "")
            found.append(f"{code}: {len(days)} {what}: {shown}")
    return found
