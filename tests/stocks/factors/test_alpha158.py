"""Alpha158: equality with a plain pandas evaluation, closed forms, and what it may look at."""

from itertools import pairwise

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.factors import Factors, RollingAlpha158, alpha158, factor_names
from manyhead.stocks.panel import Panel
from tests.stocks.factors import reference
from tests.stocks.factors.panels import altered_after, random_panel

PANEL = random_panel(130, 6, seed=1, gaps=0.05)
STORED = alpha158(PANEL)


def column(factors: Factors, name: str) -> np.ndarray:
    return factors.values[..., factors.names.index(name)]


def require_equal(factors: Factors, slow: dict[str, np.ndarray]) -> None:
    assert set(factors.names) == set(slow)
    for name in factors.names:
        ours, theirs = column(factors, name), slow[name]
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs), err_msg=f"{name}: missing values")
        known = np.isfinite(theirs)
        assert known.any() or name == "ROC45", name
        scale = np.abs(theirs[known]).max(initial=0)
        assert np.abs(ours[known] - theirs[known]).max(initial=0) <= 1e-6 * scale, name


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::numpy.exceptions.RankWarning")
def test_equals_pandas_on_gaps_listings_ties_and_flat_stretches() -> None:
    require_equal(STORED, reference.alpha158(PANEL))


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::numpy.exceptions.RankWarning")
def test_equals_pandas_for_other_windows_and_where_windows_exceed_the_panel() -> None:
    panel = random_panel(40, 4, seed=2, gaps=0.1)
    windows = (3, 7, 12, 45)
    require_equal(alpha158(panel, windows), reference.alpha158(panel, windows))


def test_a_straight_line_is_explained_by_time_alone() -> None:
    days = 80
    close = np.broadcast_to(100 + 0.5 * np.arange(days)[:, None], (days, 2)).astype(np.float32)
    factors = alpha158(Panel(np.datetime64("2020-01-01") + np.arange(days), ("A", "B"), {"close": close}))
    for d in (5, 10, 20, 30, 60):
        full = slice(d - 1, None)
        np.testing.assert_allclose(column(factors, f"BETA{d}")[full], 0.5 / close[full], rtol=1e-6)
        np.testing.assert_allclose(column(factors, f"RSQR{d}")[full], 1, rtol=1e-6)
        np.testing.assert_allclose(column(factors, f"RESI{d}")[full], 0, atol=1e-7)
        np.testing.assert_allclose(
            column(factors, f"MA{d}")[full], (close[full] - 0.25 * (d - 1)) / close[full], rtol=1e-6
        )
        assert (column(factors, f"RANK{d}") == 1).all()
        assert (column(factors, f"CNTP{d}")[d:] == 1).all()
        np.testing.assert_allclose(column(factors, f"SUMD{d}")[1:], 1, rtol=1e-6)


def test_a_small_move_on_a_large_price_keeps_its_accuracy() -> None:
    # running sums of squares over 3,000 days at a price of 30,000 would lose every digit of this
    random = np.random.default_rng(0)
    close = (30000 + np.cumsum(random.choice([-0.0625, 0.0625], (3000, 1)), axis=0)).astype(np.float32)
    panel = Panel(np.datetime64("2010-01-01") + np.arange(3000), ("A",), {"close": close})
    std = column(alpha158(panel, (20,)), "STD20")[2980:]
    exact = [
        close[row - 19 : row + 1].astype(np.float64).std(ddof=1) / close[row, 0] for row in range(2980, 3000)
    ]
    np.testing.assert_allclose(std[:, 0], exact, rtol=1e-6)


def test_rows_on_demand_and_threads_give_the_same_bits() -> None:
    source = RollingAlpha158(PANEL)
    edges = [0, 1, 7, 59, 60, 61, 100, 130]
    pieces = [source.rows(start, stop) for start, stop in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == STORED.values.tobytes()
    assert alpha158(PANEL, threads=2).values.tobytes() == STORED.values.tobytes()
    assert source.rows(5, 5).shape == (0, 6, 158)


@pytest.mark.parametrize("row", [0, 33, 61, 128])
def test_no_column_sees_a_later_price(row: int) -> None:
    after = alpha158(altered_after(PANEL, row))
    assert after.values[: row + 1].tobytes() == STORED.values[: row + 1].tobytes()


def test_the_set_shrinks_to_the_fields_that_exist() -> None:
    for fields in (("close",), ("close", "high"), ("close", "volume"), ("close", "open", "low")):
        fewer = alpha158(Panel(PANEL.dates, PANEL.symbols, {name: PANEL[name] for name in fields}))
        assert fewer.names == factor_names("alpha158", fields)
        for name in fewer.names:
            assert column(fewer, name).tobytes() == column(STORED, name).tobytes(), name
    assert len(factor_names("alpha158", ("close",))) == 15 * 5
    assert "RSV5" not in fewer.names


def test_alphabetical_order_moves_columns_only() -> None:
    other = alpha158(PANEL, order="alphabetical")
    assert other.names == tuple(sorted(STORED.names))
    for name in other.names:
        assert column(other, name).tobytes() == column(STORED, name).tobytes()


@pytest.mark.parametrize("windows", [(1, 5), (5, 5), ()])
def test_windows_that_cannot_be_are_refused(windows: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="windows must be"):
        alpha158(PANEL, windows)
