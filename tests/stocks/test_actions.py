"""Splits and dividends: returns of adjusted prices are what a holder earns; a day needs no later event."""

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.actions import Events, adjust, read_events
from manyhead.stocks.panel import Panel
from manyhead.stocks.prices import read_prices

DAYS = np.datetime64("2021-01-01") + np.arange(30)


def raw_panel(events: dict[int, tuple[float, float]], seed: int = 0) -> tuple[Panel, np.ndarray]:
    """Raw closes of one symbol and the wealth of a holder who puts every dividend into shares.

    `events` holds, by row, the split ratio (1 for none) and the dividend for a share of the day before.
    """
    rng = np.random.default_rng(seed)
    growth = 1 + 0.02 * rng.standard_normal(30)
    close, wealth, shares = [100.0], [100.0], 1.0
    for row in range(1, 30):
        ratio, dividend = events.get(row, (1.0, 0.0))
        # the price falls by what is paid out and by the split, then moves
        opening = (close[-1] - dividend) / ratio
        shares = shares * ratio * (1 + dividend / (close[-1] - dividend))
        close.append(opening * growth[row])
        wealth.append(shares * close[-1])
    prices = np.array(close)[:, None]
    fields = {"open": prices * 0.99, "close": prices, "volume": np.full((30, 1), 1e4), "money": prices * 1e4}
    return Panel(DAYS, ("X",), fields), np.array(wealth)


def events_of(table: dict[int, tuple[float, float]]) -> tuple[Events, Events]:
    splits = [(DAYS[row], ratio) for row, (ratio, _) in table.items() if ratio != 1]
    paid = [(DAYS[row], money) for row, (_, money) in table.items() if money]

    def one(kind: str, entries: list) -> Events:
        days = np.array([day for day, _ in entries], "datetime64[D]")
        return Events(kind, ("X",) * len(entries), days, np.array([amount for _, amount in entries], float))

    return one("split", splits), one("dividend", paid)


TABLES = st.dictionaries(
    st.integers(1, 29),
    st.tuples(st.sampled_from([1.0, 2.0, 3.0, 0.1, 7.0]), st.sampled_from([0.0, 0.3, 1.5])),
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(TABLES, st.integers(0, 1000))
def test_adjusted_closes_are_the_wealth_of_a_holder(table: dict, seed: int) -> None:
    panel, wealth = raw_panel(table, seed)
    assume(all(money < 0.5 * panel["close"][row - 1, 0] for row, (_, money) in table.items()))
    adjusted = adjust(panel, *events_of(table))
    np.testing.assert_allclose(adjusted["close"][:, 0], wealth, rtol=1e-12)
    np.testing.assert_allclose(adjusted["close"], panel["close"] * adjusted["factor"])
    np.testing.assert_allclose(adjusted["open"], adjusted["close"] * 0.99)
    np.testing.assert_allclose(adjusted["close"] * adjusted["volume"], panel["money"])
    np.testing.assert_array_equal(adjusted["money"], panel["money"])


@settings(max_examples=30, deadline=None)
@given(TABLES, st.integers(2, 29))
def test_a_day_needs_no_later_event_or_price(table: dict, row: int) -> None:
    panel, _ = raw_panel(table)
    assume(all(money < 0.5 * panel["close"][at - 1, 0] for at, (_, money) in table.items()))
    early = {at: event for at, event in table.items() if at < row}
    later = {name: values.copy() for name, values in panel.fields.items()}
    for values in later.values():
        values[row:] *= 3
    one = adjust(panel, *events_of(table))
    other = adjust(Panel(panel.dates, panel.symbols, later), *events_of(early))
    for name in one.fields:
        np.testing.assert_array_equal(one[name][:row], other[name][:row])


def test_an_event_on_a_day_without_price_waits_for_the_next() -> None:
    panel, _ = raw_panel({10: (2.0, 0.0)})
    for values in panel.fields.values():
        values[9:12] = np.nan
    splits, _ = events_of({10: (2.0, 0.0)})
    adjusted = adjust(panel, splits)
    np.testing.assert_array_equal(adjusted["factor"][:9], 1)
    np.testing.assert_array_equal(adjusted["factor"][12:], 2)
    assert np.isnan(adjusted["factor"][9:12]).all()


def test_events_that_do_not_fit_are_named() -> None:
    panel, _ = raw_panel({})
    splits = Events(
        "split", ("X", "Q", "X"), np.array([DAYS[5], DAYS[5], DAYS[-1] + 9]), np.array([2.0, 3.0, 2.0])
    )
    adjusted = adjust(panel, splits)
    assert any(w.startswith("split-unseen: X on 2021-01-06 (2:1") for w in adjusted.warnings)
    assert any(
        w.startswith("event-outside: split of Q on 2021-01-06, split of X on") for w in adjusted.warnings
    )
    with pytest.raises(InputError, match="adjusted already"):
        adjust(adjusted, splits)
    with pytest.raises(InputError, match=r"X pays 500 on 2021-01-06, its close before is"):
        adjust(panel, None, Events("dividend", ("X",), DAYS[5:6], np.array([500.0])))


def test_from_files(tmp_path: Path) -> None:
    """A hundredfold split would be taken for a wrong price; with the file of splits it is none."""
    table = {12: (100.0, 0.0), 20: (1.0, 0.1)}
    panel, wealth = raw_panel(table)
    prices = pl.DataFrame({"date": DAYS, "symbol": ["X"] * 30, "close": panel["close"][:, 0]})
    (tmp_path / "splits.csv").write_text(f"Symbol,Date,Ratio\nX,{DAYS[12]},100:1\n")
    (tmp_path / "dividends.csv").write_text(f"ticker,ex-date,amount\nX,{DAYS[20]},0.1\n")
    today = date(2024, 1, 1)
    without = read_prices(prices, today=today)
    assert any(w.startswith("jump: close of X on 2021-01-13") for w in without.warnings)
    read = read_prices(
        prices, splits=tmp_path / "splits.csv", dividends=tmp_path / "dividends.csv", today=today
    )
    np.testing.assert_allclose(read["close"][:, 0], wealth)
    assert not any(w.startswith("jump") for w in read.warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symbol,date\nX,2021-01-06\n", "no column for the amount of a split"),
        ("symbol,date,ratio\nX,2021-01-06,0\n", "line 2, column 'ratio': got '0'; a number above zero"),
        ("symbol,date,ratio\nX,2021-01-06,-2\n", "got '-2'"),
        ("symbol,date,ratio\nX,2021-01-06,4 for 1\n", "line 2, column 'ratio': got '4 for 1'; a number"),
        ("symbol,date,ratio\nX,2021-01-06,\n", "line 2, column 'ratio'"),
        ("symbol,date,ratio\nX,2021-01-06,3:0\n", "line 2, column 'ratio'"),
        ("symbol,date,ratio\nX,soon,2\n", "line 2, column 'date': got 'soon'"),
    ],
)
def test_malformed_events(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_events(tmp_path / "splits.csv", "split")
