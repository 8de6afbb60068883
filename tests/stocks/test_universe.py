"""Universe rules: each against a brute-force reading of its definition, and none reads the future."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks import universe
from manyhead.stocks.panel import Panel


def random_panel(seed: int = 0, days: int = 80, symbols: int = 12, volume: bool = True) -> Panel:
    rng = np.random.default_rng(seed)
    close = rng.uniform(5, 100, (days, symbols))
    close[rng.random(close.shape) < rng.choice([0, 0.02, 0.5], symbols)] = np.nan
    fields = {"close": close}
    if volume:
        fields["volume"] = rng.lognormal(10, 2, symbols) * rng.uniform(0.5, 2, close.shape)
    return Panel(
        np.datetime64("2020-01-01") + np.arange(days), tuple(f"S{i:02}" for i in range(symbols)), fields
    )


MEMBERS = universe.Membership(
    ("S01", "S02", "S03", "S01", "S99"),
    np.array(["2020-01-01", "2020-01-10", "2020-02-01", "2020-02-20", "2020-01-01"], "datetime64[D]"),
    np.array(["2020-01-31", "NaT", "2020-03-05", "NaT", "NaT"], "datetime64[D]"),
)

RULES: dict[str, Callable[[Panel, int], universe.Choice]] = {
    "most traded": lambda panel, row: universe.most_traded(panel, 4, row, window=30, presence=0.5),
    "complete": lambda panel, row: universe.complete_rows(panel, row, window=20),
    "listed": lambda panel, row: universe.listed_for(panel, row // 2, row),
    "members": lambda panel, row: universe.members(panel, MEMBERS, row),
}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(25, 79), st.booleans(), st.sampled_from(sorted(RULES)))
def test_no_rule_reads_the_row_before_or_any_later_one(seed: int, row: int, volume: bool, rule: str) -> None:
    """Noise, gaps and a hundredfold volume from row `before` on change nothing; nor does cutting there."""
    panel = random_panel(seed, volume=volume)
    rng = np.random.default_rng(seed + 1)
    altered = {name: values.copy() for name, values in panel.fields.items()}
    for values in altered.values():
        values[row:] = rng.lognormal(8, 3, values[row:].shape)
        values[row:][rng.random(values[row:].shape) < 0.3] = np.nan
    other = Panel(panel.dates, panel.symbols, altered)
    assert RULES[rule](panel, row) == RULES[rule](other, row) == RULES[rule](panel.rows(0, row), row)


@pytest.mark.parametrize("seed", range(5))
def test_most_traded_is_the_median_of_dollars(seed: int) -> None:
    panel = random_panel(seed)
    chosen, warnings = universe.most_traded(panel, 3, 70, window=50, presence=0.9)
    median = {}
    for column, symbol in enumerate(panel.symbols):
        dollars = [panel["close"][row, column] * panel["volume"][row, column] for row in range(20, 70)]
        if sum(not np.isnan(d) for d in dollars) >= 45:
            median[symbol] = np.median([0.0 if np.isnan(d) else d for d in dollars])
    assert chosen == sorted(median, key=median.get, reverse=True)[:3]
    assert warnings == []


def test_money_is_taken_before_close_times_volume() -> None:
    panel = random_panel()
    reverse = np.broadcast_to(np.arange(12.0, 0, -1), panel["close"].shape)
    chosen, _ = universe.most_traded(
        Panel(panel.dates, panel.symbols, {**panel.fields, "money": reverse}), 3, 70, presence=0
    )
    assert chosen == ["S00", "S01", "S02"]


def test_without_volume_presence_decides_and_a_warning_says_so() -> None:
    close = np.random.default_rng(0).uniform(1, 2, (40, 4))
    close[:, 1] = 1.5  # never changes
    close[5, 2] = np.nan
    panel = Panel(np.datetime64("2020-01-01") + np.arange(40), ("A", "B", "C", "D"), {"close": close})
    chosen, warnings = universe.most_traded(panel, 4, 40, window=40)
    assert chosen == ["A", "D", "B", "C"]
    assert "no volume" in warnings[0]


def test_fewer_than_asked_for_and_a_short_history_are_said() -> None:
    chosen, warnings = universe.most_traded(random_panel(), 100, 30, window=252, presence=0)
    assert len(chosen) == 12
    assert "only 30 days lie before the split, 252" in warnings[0]
    assert "12 symbols qualify, 100 were asked for" in warnings[1]


def test_complete_rows_by_field() -> None:
    panel = random_panel(3)
    chosen, _ = universe.complete_rows(panel, 60, window=25, fields=("close", "volume"))
    by_hand = [s for i, s in enumerate(panel.symbols) if not np.isnan(panel["close"][35:60, i]).any()]
    assert chosen == by_hand
    assert 0 < len(chosen) < 12


def test_listing_age_counts_days_with_a_price() -> None:
    panel = random_panel(1)
    chosen, _ = universe.listed_for(panel, 50, 55)
    age = [int((~np.isnan(panel["close"][:55, i])).sum()) for i in range(12)]
    assert chosen == [panel.symbols[i] for i in range(12) if age[i] >= 50]
    with pytest.raises(InputError, match=f"has 56 days of prices up to 2020-02-24; the most is {max(age)}"):
        universe.listed_for(panel, 56, 55)


def test_an_explicit_list() -> None:
    panel = random_panel()
    assert universe.named(panel, ["S03", " S01", "S03"]) == (["S03", "S01"], [])
    chosen, warnings = universe.named(panel, ["S03", "XX"])
    assert chosen == ["S03"]
    assert warnings == ["universe: 1 symbols have no prices: 'XX'"]


def test_members_of_a_day() -> None:
    assert MEMBERS.on("2020-01-09") == ["S01", "S99"]
    assert MEMBERS.on("2020-01-31") == ["S01", "S02", "S99"]
    assert MEMBERS.on(np.datetime64("2020-02-01")) == ["S02", "S03", "S99"]
    panel = random_panel()
    chosen, warnings = universe.members(panel, MEMBERS, 31)  # the last day before is 2020-01-31
    assert chosen == ["S01", "S02"]
    assert "'S99'" in warnings[0]
    inside = MEMBERS.mask(panel)
    for row in range(panel.days):
        here = {panel.symbols[column] for column in np.flatnonzero(inside[row])}
        assert here == set(MEMBERS.on(panel.dates[row])) - {"S99"}


def test_membership_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "members.csv"
    path.write_text(
        "Ticker,date_added,date_removed\nA,2010-01-01,2015-06-30\nA,2018-01-01,\nB,2012-05-05,N/A\n"
    )
    table = universe.read_membership(path)
    assert table.on("2015-06-30") == ["A", "B"]
    assert table.on("2016-01-01") == ["B"]
    assert table.on("2030-01-01") == ["A", "B"]
    path.write_text("symbol,from,to\nA,20100101,\n")
    assert universe.read_membership(path).on("2010-01-01") == ["A"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symbol,from\nA,2010-01-01\n", "no column 'to'; symbol, from and to are needed"),
        ("symbol,from,to\n", "no spans"),
        ("symbol,from,to\nA,2010-01-01,2009-01-01\n", "line 2, column 'to': A leaves on 2009-01-01, before"),
        ("symbol,from,to\nA,2010-01-01,\nB,soon,\n", "line 3, column 'from': got 'soon'"),
        ("symbol,from,to\nA,2010-01-01,\nB,2010-01-01,later\n", "line 3, column 'to': got 'later'"),
        ("symbol,from,to\n,2010-01-01,\n", "line 2, column 'symbol': the symbol is empty"),
        ("", "the file is empty"),
    ],
)
def test_malformed_membership(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "members.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        universe.read_membership(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: universe.most_traded(p, 0, 10), "count must be at least 1, got 0"),
        (lambda p: universe.most_traded(p, 5, 0), "before must be a row from 1 to 80, got 0"),
        (lambda p: universe.most_traded(p, 5, 81), "before must be a row from 1 to 80, got 81"),
        (lambda p: universe.most_traded(p, 5, 10, window=0), "window must be at least 1 day"),
        (lambda p: universe.most_traded(p, 5, 10, presence=1.5), "a share between 0 and 1, got 1.5"),
        (lambda p: universe.named(p, ["", " "]), "the list of symbols is empty"),
        (lambda p: universe.named(p, ["XX"]), "none of the 1 symbols, such as 'XX'"),
        (
            lambda p: universe.members(p, universe.Membership((), MEMBERS.first[:0], MEMBERS.last[:0]), 9),
            "no member",
        ),
    ],
)
def test_arguments_out_of_range(call: Callable[[Panel], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(random_panel())
