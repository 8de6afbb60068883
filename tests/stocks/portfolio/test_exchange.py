"""Prices, limits, lots and fees of the exchange."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import Costs, Exchange, TopkDropout, backtest, exchange
from manyhead.stocks.portfolio.account import affordable_amount
from tests.stocks.portfolio.markets import business_days, random_panel


def panel(close: np.ndarray, **fields: np.ndarray) -> Panel:
    days, width = close.shape
    return Panel(business_days(days), tuple("ABCDEFGH"[:width]), {"close": close, **fields})


def test_limits_are_compared_in_float32() -> None:
    # 0.095 in float32 is 0.09499999..., so that a change of the float64 just below it still is at the limit
    change = np.array([[0, 0, 0], [np.float32(0.095), 0.0949999, -0.095]])
    market = Exchange(limit=0.095).open(panel(np.ones((2, 3)), change=change))
    assert market.rise[1].tolist() == [True, False, False]
    assert market.fall[1].tolist() == [False, False, True]
    assert float(np.float32(0.095)) < 0.095


def test_a_change_is_measured_from_the_last_close_known() -> None:
    close = np.array([[10.0], [np.nan], [11.0]])
    market = Exchange(limit=0.095).open(panel(close))
    assert market.rise[:, 0].tolist() == [False, False, True]
    assert market.can_buy[:, 0].tolist() == [True, False, False]
    assert market.can_sell[:, 0].tolist() == [True, False, True]
    assert market.gap[:, 0].tolist() == [0, 1, 0]
    assert market.mark[:, 0].tolist() == [10, 10, 11]


def test_a_missing_deal_price_is_the_close() -> None:
    market = exchange("free", deal_price=("open", "vwap")).open(
        panel(np.full((1, 3), 7.0), open=np.array([[6.0, np.nan, 0.0]]), vwap=np.array([[8.0, 9.0, np.nan]]))
    )
    assert market.buy_price.tolist() == [[6, 7, 7]]
    assert market.sell_price.tolist() == [[8, 9, 7]]
    with pytest.raises(InputError, match="no field 'vwap'"):
        exchange("free", deal_price="vwap").open(panel(np.ones((1, 1))))


@given(amount=st.floats(0, 1e6), factor=st.floats(0.1, 10), lot=st.sampled_from([1, 100]))
def test_lots_are_whole_in_unadjusted_shares(amount: float, factor: float, lot: int) -> None:
    market = exchange("us", lot=lot).open(panel(np.ones((1, 1)), factor=np.array([[factor]])))
    rounded = market.lots(0, np.array([0]), np.array([amount]))[0]
    lots = rounded * factor / lot
    assert lots == pytest.approx(round(lots), abs=1e-6)
    # never more than wanted, but for the tenth of a share that absorbs rounding; never a lot less
    assert -0.1 / factor - 1e-6 <= amount - rounded <= lot / factor + 1e-6


def test_without_factors_lots_need_raw_prices() -> None:
    plain = exchange("us").open(panel(np.ones((1, 1))))
    assert plain.lots(0, np.array([0]), np.array([2.5])) == [2.5]
    assert "factor" in plain.warnings[0]
    raw = exchange("us", raw_prices=True).open(panel(np.ones((1, 1))))
    assert raw.lots(0, np.array([0]), np.array([2.5])) == [2.0]
    gaps = exchange("us").open(panel(np.ones((2, 1)), factor=np.array([[1.0], [np.nan]])))
    assert "gaps" in gaps.warnings[0]


@given(cash=st.floats(0, 1e6), price=st.floats(0.01, 1e4), rate=st.floats(0, 0.1), minimum=st.floats(0, 100))
def test_what_cash_buys_costs_all_of_it(cash: float, price: float, rate: float, minimum: float) -> None:
    amount = affordable_amount(cash, price, rate, minimum)
    if amount > 0:
        assert amount * price + max(amount * price * rate, minimum) == pytest.approx(cash, abs=1e-6)
    else:
        assert cash <= minimum + 1e-9


def test_fees_follow_the_schedule() -> None:
    days = np.array(["2023-08-25", "2023-08-28", "2023-08-29"], "datetime64[D]")
    costs = Costs(0.0005, 0.0015, schedule=[("2023-08-28", 0.0005, 0.001)])
    opening, closing = costs.rates(days)
    assert opening.tolist() == [0.0005] * 3
    assert closing.tolist() == [0.0015, 0.001, 0.001]
    prices = Panel(days, ("A", "B"), {"close": np.ones((3, 2))})
    scores = np.array([[1.0, 0], [0, 1], [1, 0]])
    rules = Exchange(Costs(0, 0.1, 0, schedule=[("2023-08-28", 0, 0.2), ("2023-08-29", 0, 0.3)]))
    result = backtest(prices, scores, TopkDropout(1, 1, risk_degree=1), rules, account=1.0, end=days[-1])
    sold = result.orders.filter(result.orders["side"] == "sell")
    assert (sold["cost"] / sold["value"]).to_list() == pytest.approx([0.3])


def test_the_minimum_fee_and_the_impact() -> None:
    market = Exchange(Costs(0.001, 0.002, 5, impact=0.1)).open(
        panel(np.full((1, 2), 10.0), volume=np.array([[1000.0, np.nan]]))
    )
    columns, price = np.array([0, 1]), np.array([10.0, 10.0])
    values = np.array([5000.0, 5000.0])  # half of what was traded; nothing is known of the second
    fees = market.fees(0, columns, values, price, buying=True)
    assert fees == pytest.approx([5000 * (0.001 + 0.1 * 0.25), 5000 * (0.001 + 0.1)])
    small = market.fees(0, columns[:1], np.array([1.0]), price[:1], buying=True)
    assert small == pytest.approx([5.0])
    assert market.fees(0, columns[:1], np.array([0.0]), price[:1], buying=False) == [0.0]


def test_presets_and_changes() -> None:
    china = exchange("cn", min_cost=0, limit=0.2)
    assert (china.costs.open, china.costs.close, china.costs.minimum) == (0.0005, 0.0015, 0)
    assert (china.limit, china.lot) == (0.2, 100)
    assert exchange("us").limit is None
    with pytest.raises(InputError, match="no argument 'limits'"):
        exchange("cn", limits=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Costs(open=-0.1), "'open'"),
        (lambda: Costs(close=1.0), "below 1"),
        (lambda: Costs(minimum=float("inf")), "'minimum'"),
        (lambda: Costs(schedule=[("2023-08-28", 0, 0), ("2023-08-27", 0, 0)]), "increasing"),
        (lambda: Costs(schedule=[("soon", 0, 0)]), "'soon'"),
        (lambda: Exchange(limit=0), "limit"),
        (lambda: Exchange(lot=0), "lot"),
        (lambda: Exchange(delist_after=0), "delist_after"),
        (lambda: Exchange(delisting_return=-2), "delisting_return"),
    ],
)
def test_wrong_numbers_are_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_orders_say_why_they_were_not_filled() -> None:
    reasons: set[str] = set()
    for seed, cash in [(1, 1e5), (2, 2e3), (3, 100.0)]:
        prices = random_panel(seed, 80, 8)
        scores = np.random.default_rng(seed).normal(size=(80, 8))
        rules = Exchange(Costs(0.01, 0.01, 20), limit=0.095, lot=10)
        strategy = TopkDropout(3, 2, hold_thresh=3, risk_degree=1.0)
        orders = backtest(prices, scores, strategy, rules, account=cash).orders
        reasons |= set(orders["reason"].to_list())
        nothing = orders.filter(orders["amount"] == 0)
        assert (nothing["cost"] == 0).all()
        assert (nothing["reason"] != "").all()
    assert {"suspended", "limit up", "limit down", "held too briefly", "less than one lot"} <= reasons
    assert {"cut to the cash", "not enough cash"} <= reasons
