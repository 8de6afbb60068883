"""Accounting identities that hold for every strategy, and what a user may get wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import (
    Costs,
    EqualWeight,
    Exchange,
    LongShort,
    Rebalance,
    SectorNeutral,
    TopK,
    TopkDropout,
    backtest,
    backtest_files,
    equal_weight_returns,
    exchange,
    simple_topk,
)
from tests.stocks.portfolio.markets import business_days, random_panel, smooth_panel

SECTORS = {f"S{column:02d}": "AB"[column % 2] for column in range(12)}
STRATEGIES = {
    "topk_dropout": TopkDropout(3, 1),
    "equal_weight": Rebalance(EqualWeight(), 5),
    "top_k": Rebalance(TopK(3), band=0.02),
    "long_short": Rebalance(LongShort(0.25), volatility=0.1),
    "sector_neutral": Rebalance(SectorNeutral(SECTORS, 0.5), max_turnover=0.5),
}
strategies = pytest.mark.parametrize("name", sorted(STRATEGIES))


@strategies
@pytest.mark.parametrize("lot", [None, 10])
def test_cash_and_holdings_make_the_account_and_orders_make_the_cash(name: str, lot: float | None) -> None:
    panel, rng = random_panel(5, 60, 12), np.random.default_rng(5)
    rules = Exchange(Costs(0.001, 0.002, 1.0, borrow=0.03), "open", 0.095, lot, short=True)
    result = backtest(panel, rng.normal(size=(60, 12)), STRATEGIES[name], rules, account=1e5)
    report = result.report
    value = np.where(result.amounts != 0, result.amounts * result.prices, 0).sum(axis=1)
    np.testing.assert_allclose(report["account"], report["cash"].to_numpy() + value, rtol=1e-12)
    assert result.weights.sum(axis=1) == pytest.approx((report["value"] / report["account"]).to_numpy())

    orders = result.orders.filter(pl.col("amount") > 0)
    sign = np.where(orders["side"] == "buy", 1.0, -1.0)
    borrowed = (report["borrow"] * np.concatenate(([1e5], report["account"].to_numpy()[:-1]))).sum()
    paid = float((sign * orders["value"].to_numpy() + orders["cost"].to_numpy()).sum()) + borrowed
    assert report["cash"][-1] == pytest.approx(1e5 - paid)
    # every amount is the sum of its orders
    for column, symbol in enumerate(panel.symbols):
        mine = (orders["symbol"] == symbol).to_numpy()
        assert (sign * orders["amount"].to_numpy())[mine].sum() == pytest.approx(
            result.amounts[-1, column], abs=1e-6
        )
    assert report["cash"].min() >= -1e-6  # type: ignore[operator]
    total = float(orders["cost"].sum()) + borrowed
    assert report["total_cost"][-1] == pytest.approx(total)
    assert report["total_turnover"][-1] == pytest.approx(float(orders["value"].sum()))


@strategies
def test_higher_costs_never_help(name: str) -> None:
    panel, rng = smooth_panel(2, 60, 12), np.random.default_rng(2)
    scores = rng.normal(size=(60, 12))
    finals = []
    for rate in (0.0, 0.0005, 0.002, 0.01):
        rules = Exchange(Costs(rate, rate, 0), short=True)
        finals.append(backtest(panel, scores, STRATEGIES[name], rules).report["account"][-1])
    assert finals == sorted(finals, reverse=True)
    assert finals[-1] < finals[0]


@strategies
def test_what_comes_after_a_day_does_not_change_its_trades(name: str) -> None:
    panel, rng = random_panel(9, 60, 12), np.random.default_rng(9)
    scores = rng.normal(size=(60, 12))
    rules = Exchange(Costs(), "close", 0.095, short=True)
    span = {"start": panel.dates[1], "end": panel.dates[-1]}
    first = backtest(panel, scores, STRATEGIES[name], rules, **span)
    for day in (10, 33, 50):
        later = {field: values.copy() for field, values in panel.fields.items()}
        for values in later.values():
            values[day + 1 :] *= rng.uniform(0.1, 10, values[day + 1 :].shape)
        changed = scores.copy()
        changed[day:] *= -1
        altered = Panel(panel.dates, panel.symbols, later)
        second = backtest(altered, changed, STRATEGIES[name], rules, **span)
        until = pl.col("date") <= panel.dates[day]
        assert first.orders.filter(until).equals(second.orders.filter(until))
        assert not np.array_equal(first.amounts[day:], second.amounts[day:])


def test_holding_all_stocks_free_of_cost_is_the_equal_weight_curve() -> None:
    panel = smooth_panel(4, 80, 9)
    scores = np.zeros((80, 9))
    held = backtest(panel, scores, Rebalance(EqualWeight(), None), "free", lag=0, benchmark="hold")
    np.testing.assert_allclose(
        held.report["return"].to_numpy()[1:], held.report["bench"].to_numpy()[1:], atol=1e-12
    )
    relative = (panel["close"] / panel["close"][0]).mean(axis=1)
    np.testing.assert_allclose(held.report["account"].to_numpy() / 1e8, relative, rtol=1e-12)
    daily = backtest(panel, scores, Rebalance(EqualWeight(), 1), "free", lag=0)
    np.testing.assert_allclose(daily.report["return"], equal_weight_returns(panel), atol=1e-12)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 6), rate=st.sampled_from([0.0, 0.001, 0.01]))
@settings(max_examples=30, deadline=None)
def test_rebalancing_reaches_its_weights_after_fees(seed: int, k: int, rate: float) -> None:
    panel, rng = smooth_panel(seed, 20, 8), np.random.default_rng(seed)
    result = backtest(panel, rng.normal(size=(20, 8)), Rebalance(TopK(k)), Exchange(Costs(rate, rate, 0)))
    held = np.sort(result.weights, axis=1)[:, -k:]
    np.testing.assert_allclose(held[:-1], 1 / k, atol=1e-6)  # the last day only holds
    assert (np.count_nonzero(result.amounts, axis=1) == k).all()


def test_a_long_short_book_is_neutral_and_pays_for_what_it_borrows() -> None:
    panel, rng = smooth_panel(1, 30, 10), np.random.default_rng(1)
    scores = rng.normal(size=(30, 10))
    rules = exchange("free", short=True, borrow=0.365)
    result = backtest(panel, scores, Rebalance(LongShort(0.2, 0.5, 0.5)), rules)
    assert result.weights[:-1].sum(axis=1) == pytest.approx(0, abs=1e-3)
    assert np.abs(result.weights[:-1]).sum(axis=1) == pytest.approx(
        1, abs=2e-3
    )  # the fee is charged after the trade
    elapsed = np.diff(result.dates).astype(int)  # a weekend costs three days
    short = -np.minimum(result.weights, 0).sum(axis=1)
    charged = result.report["borrow"].to_numpy()[1:]
    account = result.report["account"].to_numpy()
    np.testing.assert_allclose(charged * account[:-1], 0.001 * elapsed * short[1:] * account[1:], rtol=1e-9)
    with pytest.raises(InputError, match="short=True"):
        backtest(panel, scores, Rebalance(LongShort(0.2)), "free")


def test_no_sector_has_a_net_weight_in_a_sector_neutral_book() -> None:
    panel, rng = smooth_panel(1, 20, 12), np.random.default_rng(1)
    scores = rng.normal(size=(20, 12)) + 5 * (np.arange(12) % 2)  # one sector scores far higher
    rules = exchange("free", short=True)
    neutral = backtest(panel, scores, Rebalance(SectorNeutral(SECTORS, 0.3)), rules).weights[0]
    sector = np.arange(12) % 2
    assert [neutral[sector == s].sum() for s in (0, 1)] == pytest.approx([0, 0], abs=1e-12)
    assert np.abs(neutral).sum() == pytest.approx(2)
    plain = backtest(panel, scores, Rebalance(LongShort(0.3)), rules).weights[0]
    assert plain[sector == 1].sum() > 0.9
    long_only = backtest(panel, scores, Rebalance(SectorNeutral(SECTORS, 0.3, 1, 0)), rules).weights[0]
    assert [long_only[sector == s].sum() for s in (0, 1)] == pytest.approx([0.5, 0.5])
    some = {symbol: name for symbol, name in SECTORS.items() if symbol != "S03"}
    result = backtest(panel, scores, Rebalance(SectorNeutral(some)), rules)
    assert any("S03" in warning for warning in result.warnings)
    assert not result.amounts[:, 3].any()
    with pytest.raises(InputError, match="no symbol of the prices has a sector"):
        backtest(panel, scores, Rebalance(SectorNeutral({"X": "A"})), rules)


def test_turnover_limit_band_and_volatility_scale_hold() -> None:
    panel, rng = smooth_panel(6, 120, 10), np.random.default_rng(6)
    scores = rng.normal(size=(120, 10))
    limited = backtest(panel, scores, Rebalance(TopK(3), max_turnover=0.2), "free")
    traded = limited.orders.group_by("date").agg(pl.col("value").sum()).join(limited.report, on="date")
    assert (traded["value"] / traded["account"]).max() == pytest.approx(0.2)
    assert backtest(panel, scores, Rebalance(TopK(3)), "free").report["turnover"].mean() > 0.5  # type: ignore[operator]
    banded = backtest(panel, np.zeros((120, 10)), Rebalance(EqualWeight(), band=0.005), "free")
    daily = backtest(panel, np.zeros((120, 10)), Rebalance(EqualWeight()), "free")
    assert banded.orders.height < daily.orders.height / 5
    calm = Rebalance(EqualWeight(), volatility=0.05, window=40)
    realised = backtest(panel, np.zeros((120, 10)), calm, "free").net_returns[45:].std() * np.sqrt(252)
    whole = daily.net_returns[45:].std() * np.sqrt(252)
    assert whole > 0.08
    assert realised == pytest.approx(0.05, rel=0.25)


def test_weights_drift_between_rebalancings() -> None:
    panel = smooth_panel(7, 12, 4)
    result = backtest(panel, np.zeros((12, 4)), Rebalance(EqualWeight(), every=5), "free", lag=0)
    assert np.array_equal(result.amounts[0], result.amounts[4])
    assert not np.array_equal(result.amounts[4], result.amounts[5])
    assert result.weights[5] == pytest.approx(0.25)
    assert result.weights[4] != pytest.approx(0.25, abs=1e-4)


def test_the_score_of_a_day_is_traded_the_next_and_earns_from_there() -> None:
    close = np.array([[10.0, 10], [10, 10], [20, 10], [20, 10]])
    panel = Panel(business_days(4), ("A", "B"), {"close": close, "open": close * 0.8})
    scores = np.array([[1.0, 0], [np.nan, np.nan], [np.nan, np.nan], [np.nan, np.nan]])
    one = TopkDropout(1, 1, risk_degree=1.0)
    result = backtest(panel, scores, one, "free", end=panel.dates[-1])
    assert result.orders["date"].to_list() == [panel.dates[1].astype(object)]
    assert result.report["return"].to_list() == pytest.approx([0, 1, 0])
    opening = backtest(panel, scores, one, exchange("free", deal_price="open"), end=panel.dates[-1])
    assert opening.report["return"].to_list() == pytest.approx([0.25, 1, 0])  # bought at 8, closed at 10
    assert backtest(panel, scores, one, "free", lag=2).report["return"].to_list() == pytest.approx([0, 0])
    assert any("lag=0" in text for text in backtest(panel, scores, one, "free", lag=0).warnings)


def test_a_delisted_name_is_paid_out_or_named() -> None:
    close = np.full((40, 2), 10.0)
    close[5:, 0] = np.nan
    panel = Panel(business_days(40), ("GONE", "B"), {"close": close})
    scores = np.full((40, 2), np.nan)
    scores[0] = [1.0, 0.0]
    span: dict[str, Any] = {"account": 1000.0, "end": panel.dates[-1]}
    kept = backtest(panel, scores, TopkDropout(1, 1), "free", **span)
    assert any("GONE" in warning for warning in kept.warnings)
    assert kept.report["account"][-1] == pytest.approx(1000)
    rules = exchange("free", delist_after=10, delisting_return=-0.5)
    paid = backtest(panel, scores, TopkDropout(1, 1), rules, **span)
    assert paid.report["account"][-1] == pytest.approx(1000 - 950 / 2)
    assert not paid.amounts[-1].any()
    assert paid.orders["reason"].to_list() == ["", "delisted"]


def test_full_rebalancing_on_the_day_of_the_score_is_the_released_notebook() -> None:
    panel, rng = smooth_panel(11, 50, 9), np.random.default_rng(11)
    scores = rng.normal(size=(50, 9))
    notebook = simple_topk(panel["close"], scores, k=4)
    ours = backtest(panel, scores, Rebalance(TopK(4)), "free", lag=0)
    np.testing.assert_allclose(ours.report["account"] / 1e8, notebook.nav, rtol=1e-9)
    np.testing.assert_allclose(ours.report["turnover"][:1], notebook.turnover[:1])


def test_an_account_that_is_worth_nothing_stops() -> None:
    close = np.full((8, 2), 10.0)
    close[4:, 1] = 40.0  # what is sold short quadruples
    panel = Panel(business_days(8), ("A", "B"), {"close": close})
    result = backtest(
        panel, np.tile([1.0, 0.0], (8, 1)), Rebalance(LongShort(0.5)), exchange("free", short=True)
    )
    assert any("worth nothing on 2021-01-08" in warning for warning in result.warnings)
    assert result.report["account"].to_list() == pytest.approx([1e8] * 3 + [-2e8] * 4)
    assert not result.amounts[3:].any()
    assert result.orders["date"].max() < panel.dates[4].astype(object)


def test_metrics_agree_with_the_report_and_tables_survive_a_save(tmp_path: Path) -> None:
    panel, rng = smooth_panel(8, 100, 10), np.random.default_rng(8)
    result = backtest(panel, rng.normal(size=(100, 10)), TopkDropout(3, 1), "us", benchmark="hold")
    account = np.concatenate(([1e8], result.report["account"].to_numpy()))
    assert result.metrics["total_return"] == pytest.approx(account[-1] / 1e8 - 1)
    drawdown = account / np.maximum.accumulate(account) - 1
    assert result.metrics["max_drawdown"] == pytest.approx(drawdown.min())
    assert result.metrics["annual_return"] == pytest.approx((account[-1] / 1e8) ** (252 / 99) - 1)
    result.save(tmp_path)
    assert pl.read_parquet(tmp_path / "report.parquet").equals(result.report)
    assert pl.read_parquet(tmp_path / "positions.parquet")["weight"].sum() == pytest.approx(
        result.weights.sum()
    )
    assert pl.read_parquet(tmp_path / "orders.parquet").height == result.orders.height


def test_files_in_files_out(tmp_path: Path) -> None:
    panel, rng = smooth_panel(8, 30, 5), np.random.default_rng(8)
    values = rng.normal(size=(30, 5))
    day, column = np.indices(values.shape).reshape(2, -1)
    table = pl.DataFrame(
        {"date": panel.dates[day], "symbol": np.array(panel.symbols)[column], "score": values.ravel()}
    )
    table.write_csv(tmp_path / "scores.csv")
    table.sample(fraction=1, shuffle=True, seed=0).write_parquet(tmp_path / "scores.parquet")
    expected = backtest(panel, values, TopkDropout(2, 1))
    for name in ("scores.csv", "scores.parquet"):
        result = backtest_files(tmp_path / name, panel, TopkDropout(2, 1), out=tmp_path / "out")
        np.testing.assert_allclose(result.amounts, expected.amounts, rtol=1e-9)
    assert (tmp_path / "out" / "report.parquet").is_file()
    with pytest.raises(InputError, match="out must be a folder"):
        backtest_files(tmp_path / "scores.csv", panel, out=tmp_path / "scores.csv")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "account": ({"account": 0.0}, "account"),
    "account is not a number": ({"account": float("nan")}, "account"),
    "lag": ({"lag": -1}, "lag"),
    "preset": ({"exchange": "mars"}, "presets are us|presets are"),
    "start": ({"start": "yesterday"}, "start must be a date"),
    "span": ({"start": "2030-01-01"}, "no day is left"),
    "benchmark": ({"benchmark": "sp500"}, "benchmark must be"),
    "benchmark shape": ({"benchmark": np.zeros(3)}, "one return a day"),
    "benchmark table": ({"benchmark": pl.DataFrame({"x": [1]})}, "date, return"),
    "unknown": ({"unknown": "ignore"}, "'warn' or 'error'"),
    "exchange": ({"exchange": 5}, "exchange must be"),
    "a book as strategy": ({"strategy": TopK(2)}, "wrap a book in Rebalance"),
    "no strategy": ({"strategy": "topk"}, "method 'trader'"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_wrong_arguments_are_named(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(InputError, match=message):
        backtest(smooth_panel(), np.zeros((60, 10)), **arguments)
    with pytest.raises(InputError, match="method 'weights'"):
        Rebalance(TopkDropout())  # type: ignore[arg-type]
