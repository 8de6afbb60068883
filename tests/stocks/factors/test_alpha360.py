"""Alpha360: the definition, the order of columns, and the form that keeps six series only."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.factors import LaggedAlpha360, alpha360, factor_names, store
from manyhead.stocks.panel import Panel
from tests.stocks.factors import reference
from tests.stocks.factors.panels import altered_after, random_panel

PANEL = random_panel(90, 5, seed=3, gaps=0.05)
STORED = alpha360(PANEL)


def test_each_column_is_a_lag_over_today() -> None:
    slow = reference.alpha360(PANEL)
    assert STORED.names == tuple(slow)
    for column, name in enumerate(STORED.names):
        np.testing.assert_array_equal(STORED.values[..., column], slow[name], err_msg=name)


def test_a_constant_ratio_shows_in_every_lag() -> None:
    close = 2.0 ** np.arange(70.0)[:, None]  # exact in float32
    panel = Panel(np.datetime64("2020-01-01") + np.arange(70), ("A",), {"close": close})
    factors = alpha360(panel)
    last = dict(zip(factors.names, factors.values[-1, 0], strict=True))
    assert last == {f"CLOSE{lag}": 2.0**-lag for lag in range(60)}
    assert np.isnan(factors.values[58, 0, factors.names.index("CLOSE59")])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=6))
def test_rows_on_demand_are_bit_identical_however_they_are_cut(cuts: list[int]) -> None:
    source = LaggedAlpha360(PANEL)
    edges = sorted({0, 90, *cuts})
    pieces = [source.rows(start, stop) for start, stop in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == STORED.values.tobytes()


def test_chosen_lags_and_order_pick_the_same_columns() -> None:
    lags = (0, 1, 2, 4, 9, 19, 39, 59)
    for order in ("qlib", "alphabetical"):
        chosen = store(LaggedAlpha360(PANEL, lags, order))
        place = [STORED.names.index(name) for name in chosen.names]
        assert len(place) == 48
        assert chosen.values.tobytes() == np.ascontiguousarray(STORED.values[..., place]).tobytes()
    assert factor_names("alpha360", PANEL.fields, lags=lags)[:3] == ("CLOSE59", "CLOSE39", "CLOSE19")


def test_alphabetical_order_is_that_of_the_released_checkpoint() -> None:
    names = LaggedAlpha360(PANEL, order="alphabetical").names
    assert names[:4] == ("CLOSE0", "CLOSE1", "CLOSE10", "CLOSE11")
    series = list(dict.fromkeys(name.rstrip("0123456789") for name in names))
    assert series == ["CLOSE", "HIGH", "LOW", "OPEN", "VOLUME", "VWAP"]


def test_the_set_shrinks_to_the_fields_that_exist() -> None:
    closes = Panel(PANEL.dates, PANEL.symbols, {"close": PANEL["close"]})
    factors = alpha360(closes)
    assert factors.names == STORED.names[:60]
    assert factors.values.tobytes() == np.ascontiguousarray(STORED.values[..., :60]).tobytes()


@pytest.mark.parametrize("row", [0, 30, 62, 88])
def test_no_column_sees_a_later_price(row: int) -> None:
    after = alpha360(altered_after(PANEL, row))
    assert after.values[: row + 1].tobytes() == STORED.values[: row + 1].tobytes()
    assert after.values[row + 1 :].tobytes() != STORED.values[row + 1 :].tobytes()


def test_prices_in_float64_give_the_float32_factors() -> None:
    wide = random_panel(70, 3, seed=5, float64=True)
    narrow = Panel(wide.dates, wide.symbols, {k: v.astype(np.float32) for k, v in wide.fields.items()})
    assert alpha360(wide).values.tobytes() == alpha360(narrow).values.tobytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lags": (60,)}, "lags must lie in 0..59, got 60"),
        ({"lags": (1, 1)}, "differ"),
        ({"order": "random"}, "order must be"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LaggedAlpha360(PANEL, **arguments)
    with pytest.raises(InputError, match=r"rows 5\.\.91"):
        LaggedAlpha360(PANEL).rows(5, 91)
