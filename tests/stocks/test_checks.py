"""Checks of a panel: what they remove depends on the past alone, and what is sound they leave alone."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks import checks
from manyhead.stocks.panel import Panel

TODAY = date(2030, 1, 1)


def random_panel(days: int = 60, symbols: int = 5, seed: int = 0, dirt: float = 0.0) -> Panel:
    """Random bars; `dirt` is the share of cells that are zero, negative, infinite, tiny or missing."""
    rng = np.random.default_rng(seed)
    dates = np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-01-01") + 2 * days)
    dates = dates[np.is_busday(dates)][:days]
    close = 50 * np.exp(0.02 * rng.standard_normal((days, symbols)).cumsum(axis=0))
    fields = {"open": close * 1.001, "high": close * 1.02, "low": close * 0.97, "close": close.copy()}
    fields["volume"] = rng.integers(1, 1000, (days, symbols)).astype(float)
    fields["money"] = fields["volume"] * close
    for values in fields.values():
        hit = rng.random(values.shape) < dirt
        wrong = rng.choice(
            [0.0, -1.0, np.inf, np.nan, 1e-3, 1e6], size=int(hit.sum()), p=[0.2, 0.05, 0.1, 0.25, 0.2, 0.2]
        )
        values[hit] = wrong
    return Panel(dates, tuple(f"S{i}" for i in range(symbols)), fields)


def test_sound_prices_are_left_alone() -> None:
    panel = random_panel()
    clean = checks.clean(panel, today=TODAY)
    assert clean.warnings == ()
    for name in panel.fields:
        np.testing.assert_array_equal(clean[name], panel[name])
    np.testing.assert_allclose(clean["vwap"], panel["close"])  # money / volume


def test_the_input_is_not_changed() -> None:
    panel = random_panel(dirt=0.1)
    before = {name: values.copy() for name, values in panel.fields.items()}
    checks.clean(panel, today=TODAY)
    assert list(panel.fields) == list(before)
    for name, values in before.items():
        np.testing.assert_array_equal(panel[name], values)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(10, 50), st.sampled_from(["noise", "drift", "missing"]))
def test_no_cleaned_price_depends_on_the_future(seed: int, row: int, kind: str) -> None:
    """Alter everything after a day: every cell up to it stays bit-identical."""
    panel = random_panel(seed=seed, dirt=0.06)
    rng = np.random.default_rng(seed + 1)
    altered = {name: values.copy() for name, values in panel.fields.items()}
    for values in altered.values():
        later = values[row:]
        if kind == "drift":
            later *= 100
        elif kind == "noise":
            later[:] = rng.uniform(0.001, 1000, later.shape)
        else:
            later[rng.random(later.shape) < 0.5] = np.nan
    one = checks.clean(panel, today=TODAY)
    other = checks.clean(Panel(panel.dates, panel.symbols, altered), today=TODAY)
    assert one.symbols == other.symbols
    until = int(np.searchsorted(one.dates, panel.dates[row]))
    assert (one.dates[:until] == other.dates[:until]).all()
    for name in one.fields:
        np.testing.assert_array_equal(one[name][:until], other[name][:until])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_what_is_left_is_possible_and_cleaning_twice_changes_nothing(seed: int) -> None:
    clean = checks.clean(random_panel(seed=seed, dirt=0.08), today=TODAY)
    for name in ("open", "high", "low", "close", "vwap"):
        there = clean[name][~np.isnan(clean[name])]
        assert (there > 0).all()
        assert np.isfinite(there).all()
    slack = 1 + checks.TOLERANCE
    assert not (clean["high"] * slack < clean["low"]).any()
    assert not (clean["close"] > clean["high"] * slack).any()
    assert not (clean["volume"] == 0).any()
    again = checks.clean(clean, today=TODAY)
    np.testing.assert_array_equal(again["close"], clean["close"])
    np.testing.assert_array_equal(again["volume"], clean["volume"])


def beside(values: list[float]) -> Panel:
    """A symbol X with these closes, beside one that never moves much."""
    close = np.array(values, float)
    steady = 50 + 0.1 * np.arange(len(close))
    dates = np.datetime64("2020-01-06") + np.arange(len(close))
    return Panel(dates, ("X", "Y"), {"close": np.stack([close, steady], axis=1)})


NAN = np.nan


@pytest.mark.parametrize(
    ("close", "left"),
    [
        ([10, 10, 1000, 1100, 1200], [10, 10, NAN, NAN, NAN]),  # a split that nobody adjusted
        ([10, 10, 1000, 11, 12], [10, 10, NAN, 11, 12]),  # one wrong day
        ([10, 10, 1000, 1100, 11, 9, NAN, 0.1, 8], [10, 10, NAN, NAN, 11, 9, NAN, NAN, 8]),
        ([10, NAN, NAN, 700, 720], [10, NAN, NAN, NAN, NAN]),  # a jump over a gap
        ([10, 10, 499, 12, 0.25], [10, 10, 499, 12, 0.25]),  # just below fifty-fold
    ],
)
def test_a_close_fifty_times_the_last_trusted_one_is_taken_out(close: list[float], left: list[float]) -> None:
    clean = checks.clean(beside(close), today=TODAY)
    np.testing.assert_array_equal(clean["close"][:, 0], left)
    kept = checks.clean(beside(close), today=TODAY, jumps="keep")
    np.testing.assert_array_equal(kept["close"][:, 0], close)


def test_jumps_take_the_whole_bar() -> None:
    panel = random_panel()
    for name in ("open", "high", "low", "close"):
        panel[name][30:, 2] *= 100
    clean = checks.clean(panel, today=TODAY)
    assert all(np.isnan(values[30:, 2]).all() for values in clean.fields.values())
    assert all(not np.isnan(values[:30, 2]).any() for values in clean.fields.values())
    with pytest.raises(InputError, match="close jumps: S2 on"):
        checks.clean(panel, jumps="refuse")


def test_a_bar_that_repeats_the_last_close_without_volume_is_suspended() -> None:
    """Only a bar that is flat, untraded and equal to the close before was filled in by a vendor."""
    panel = random_panel()
    for name in ("open", "high", "low", "close"):
        panel[name][10, 0] = panel["close"][9, 0]  # flat, repeated, untraded: suspended
        panel[name][20, 1] = panel["close"][19, 1]  # flat and repeated, but traded
        panel[name][30, 2] = panel["close"][29, 2] * 1.01  # flat and untraded, but moved
    panel["volume"][[10, 30], [0, 2]] = 0
    clean = checks.clean(panel, today=TODAY)
    assert np.isnan(clean["close"][10, 0])
    assert int(np.isnan(clean["close"]).sum()) == 1
    assert np.isnan(clean["volume"][30, 2])
    assert int(np.isnan(clean["volume"]).sum()) == 2


def test_a_stale_close_is_named() -> None:
    panel = random_panel(days=100)
    for name in ("open", "high", "low", "close"):
        panel[name][20:80, 3] = panel["close"][20, 3]
    assert "stale: the close of S3 (60 days) stays the same" in checks.clean(panel, today=TODAY).warnings


def test_every_code_that_cleaning_can_give_is_listed() -> None:
    found = set()
    for seed in range(20):
        found |= {
            w.split(":")[0] for w in checks.clean(random_panel(seed=seed, dirt=0.1), today=TODAY).warnings
        }
    assert found <= set(checks.CODES)
    assert {"infinite", "negative-price", "zero-price", "contradiction", "zero-volume", "jump"} <= found


def test_the_page_on_prices_lists_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prices.md").read_text("utf-8")
    for code, rule in checks.CODES.items():
        assert f"| `{code}` | {rule} |" in page
