"""Days of prices against the exchange's own calendar."""

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.sessions import session_warnings

pytest.importorskip("exchange_calendars", reason="exchange_calendars is not installed")

# New York in November 2019: Thanksgiving on the 28th, a half day on the 29th
NOVEMBER = np.arange(np.datetime64("2019-11-01"), np.datetime64("2019-12-01"))
SESSIONS = NOVEMBER[np.is_busday(NOVEMBER) & (np.datetime64("2019-11-28") != NOVEMBER)]


def on(dates: np.ndarray) -> Panel:
    return Panel(dates, ("X",), {"close": np.ones((len(dates), 1))})


def test_a_full_month_has_its_half_day_only() -> None:
    assert session_warnings(on(SESSIONS), "XNYS") == [
        "half-day: 1 sessions closed early; their volume is a part of a day's: 2019-11-29"
    ]


def test_days_that_lack_and_days_too_many_are_named() -> None:
    days = np.sort(np.append(SESSIONS[np.datetime64("2019-11-12") != SESSIONS], np.datetime64("2019-11-28")))
    found = session_warnings(on(days), "nyse")
    assert found[0] == "missing-session: 1 sessions of nyse are not in the prices: 2019-11-12"
    assert found[1] == "no-session: 1 days of the prices are no sessions of nyse: 2019-11-28"


def test_unknown_exchange() -> None:
    with pytest.raises(InputError, match="exchange: got 'MARS'; one of "):
        session_warnings(on(SESSIONS), "MARS")
