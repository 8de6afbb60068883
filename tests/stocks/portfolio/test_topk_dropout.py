"""TopK-Dropout: the arrays equal the plain definition, and each rule shows where it should."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import Costs, Exchange, TopkDropout, backtest, exchange
from manyhead.stocks.portfolio.reference import topk_dropout_days
from tests.stocks.portfolio.markets import business_days, random_panel, smooth_panel

FREE = exchange("free")


@given(
    seed=st.integers(0, 10**6),
    topk=st.integers(1, 7),
    n_drop=st.integers(0, 5),
    hold=st.integers(0, 4),
    only_tradable=st.booleans(),
    forbid=st.booleans(),
    degree=st.sampled_from([0.5, 0.95, 1.0]),
    cash=st.sampled_from([300.0, 8e3, 1e6]),
    price=st.sampled_from(["close", "open", ("open", "close")]),
    costs=st.sampled_from([Costs(0, 0, 0), Costs(0.0005, 0.0015, 5), Costs(0.01, 0.02, 30)]),
    lot=st.sampled_from([None, 1, 100]),
    limit=st.sampled_from([None, 0.095]),
    ties=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_equals_one_order_at_a_time(
    seed: int, topk: int, n_drop: int, hold: int, only_tradable: bool, forbid: bool, degree: float,
    cash: float, price: object, costs: Costs, lot: float | None, limit: float | None, ties: bool,
) -> None:  # fmt: skip
    panel = random_panel(seed)
    rng = np.random.default_rng(seed + 1)
    scores = rng.integers(0, 3, (40, 8)).astype(float) if ties else rng.normal(size=(40, 8))
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[20] = np.nan  # a day without any score trades nothing
    strategy = TopkDropout(topk, n_drop, hold, degree, only_tradable, forbid)
    rules = Exchange(costs, price, limit, lot)  # type: ignore[arg-type]
    result = backtest(panel, scores, strategy, rules, account=cash, start=panel.dates[2], end=panel.dates[-1])
    days = topk_dropout_days(rules.open(panel), scores, strategy, cash, 2, 39)
    for row, day in enumerate(days):
        expected = np.zeros(8)
        expected[list(day.amounts)] = list(day.amounts.values())
        np.testing.assert_allclose(result.amounts[row], expected, rtol=1e-9, atol=1e-9)
    for column, name in {"account": "account", "cash": "cash"}.items():
        np.testing.assert_allclose(
            result.report[column], [getattr(day, name) for day in days], rtol=1e-9, atol=1e-6
        )
    before = np.concatenate(([cash], result.report["account"].to_numpy()[:-1]))
    np.testing.assert_allclose(result.report["turnover"] * before, [day.turnover for day in days], atol=1e-6)
    np.testing.assert_allclose(result.report["cost"] * before, [day.cost for day in days], atol=1e-6)


@given(seed=st.integers(0, 10**6), day=st.integers(3, 30), price=st.sampled_from(["close", "open"]))
@settings(max_examples=40, deadline=None)
def test_what_comes_after_a_day_does_not_change_its_trades(seed: int, day: int, price: str) -> None:
    panel, rng = random_panel(seed), np.random.default_rng(seed)
    scores = rng.normal(size=(40, 8))
    later = {name: values.copy() for name, values in panel.fields.items()}
    for values in later.values():
        values[day + 1 :] *= rng.uniform(0.1, 10, values[day + 1 :].shape)
    changed = scores.copy()
    changed[day:] = rng.normal(size=changed[day:].shape)  # a score of today is traded tomorrow
    span = {"start": panel.dates[1], "end": panel.dates[-1]}
    rules = Exchange(Costs(), price, 0.095, 100)
    first = backtest(panel, scores, TopkDropout(3, 1), rules, account=1e5, **span)
    second = backtest(
        Panel(panel.dates, panel.symbols, later), changed, TopkDropout(3, 1), rules, account=1e5, **span
    )
    until = pl.col("date") <= panel.dates[day]
    assert first.orders.filter(until).equals(second.orders.filter(until))
    assert np.array_equal(first.amounts[:day], second.amounts[:day])


def test_no_drop_never_trades_after_the_first_fill() -> None:
    scores = np.random.default_rng(0).normal(size=(60, 10))
    result = backtest(smooth_panel(), scores, TopkDropout(4, 0), "us")
    assert result.orders["date"].n_unique() == 1
    assert (np.count_nonzero(result.amounts, axis=1) == 4).all()


def test_a_purchase_at_the_upper_limit_leaves_its_cash() -> None:
    close = np.full((5, 3), 10.0)
    close[2:, 0] = 11.0  # the best name jumps on the day of the first trade
    panel = Panel(business_days(5), ("A", "B", "C"), {"close": close})
    scores = np.tile([3.0, 2.0, 1.0], (5, 1))
    scores[0] = np.nan
    rules = Exchange(Costs(0, 0, 0), limit=0.095)
    result = backtest(panel, scores, TopkDropout(2, 1, risk_degree=1.0), rules, account=1000)
    first = result.orders.filter(pl.col("date") == panel.dates[2])
    assert first["symbol"].to_list() == ["A", "B"]
    assert first["reason"].to_list() == ["limit up", ""]
    assert result.report["cash"][0] == pytest.approx(500)
    assert result.report["cash"][1] == pytest.approx(0)  # the next day it can be bought


def test_a_sale_at_the_lower_limit_waits_and_the_book_holds_one_more() -> None:
    close = np.full((6, 3), 10.0)
    close[3:, 0] = 9.0
    panel = Panel(business_days(6), ("A", "B", "C"), {"close": close})
    scores = np.tile([3.0, 2.0, 1.0], (6, 1))
    scores[2:, 0] = 0.0  # on day 3, A should go, but has hit the limit
    rules = Exchange(Costs(0, 0, 0), limit=0.095)
    result = backtest(panel, scores, TopkDropout(2, 1, risk_degree=0.5), rules, account=1000)
    held = np.count_nonzero(result.amounts, axis=1)
    assert held.tolist() == [2, 2, 3, 2, 2]
    assert result.orders.filter(pl.col("reason") == "limit down")["symbol"].to_list() == ["A"]


def test_a_name_is_kept_for_as_long_as_the_threshold_says() -> None:
    rng = np.random.default_rng(1)
    result = backtest(
        smooth_panel(days=80), rng.normal(size=(80, 10)), TopkDropout(3, 3, hold_thresh=5), FREE
    )
    filled = result.orders.filter(pl.col("reason") == "")
    rows = {day: row for row, day in enumerate(result.dates.tolist())}
    bought: dict[str, int] = {}
    spans = []
    for day, symbol, side in filled.select("date", "symbol", "side").iter_rows():
        if side == "buy":
            bought[symbol] = rows[day]
        else:
            spans.append(rows[day] - bought.pop(symbol))
    assert min(spans) == 5
    assert "held too briefly" in result.orders["reason"].to_list()


def test_the_best_scores_win_on_a_market_where_they_tell_the_future() -> None:
    panel = smooth_panel(3, 120, 12)
    close = panel["close"]
    oracle = np.full(close.shape, np.nan)
    oracle[:-2] = close[2:] / close[1:-1] - 1  # the label of the default timing
    seen = backtest(panel, oracle, TopkDropout(3, 3), FREE).metrics["annual_return"]
    early = backtest(panel, oracle, TopkDropout(3, 3), FREE, lag=0).metrics["annual_return"]
    late = backtest(panel, oracle, TopkDropout(3, 3), FREE, lag=2).metrics["annual_return"]
    assert seen > 5
    assert max(abs(early), abs(late)) < 2  # one day off, the oracle knows nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topk": 0}, "topk"),
        ({"n_drop": -1}, "n_drop"),
        ({"hold_thresh": -1}, "hold_thresh"),
        ({"risk_degree": 0}, "risk_degree"),
        ({"risk_degree": 1.5}, "risk_degree"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TopkDropout(**arguments)  # type: ignore[arg-type]
