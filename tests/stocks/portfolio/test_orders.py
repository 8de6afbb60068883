"""Orders for the next day: those that a back-test would place, and holdings files that cannot be used."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import (
    EqualWeight,
    LongShort,
    Rebalance,
    TopkDropout,
    backtest,
    exchange,
    next_orders,
    read_holdings,
)
from tests.stocks.portfolio.markets import smooth_panel

PANEL = smooth_panel(0, 30, 6)
SCORES = np.random.default_rng(0).normal(size=(30, 6))


@pytest.mark.parametrize("day", [5, 12, 28])
def test_the_back_test_places_the_same_orders_the_next_day(day: int) -> None:
    strategy = TopkDropout(3, 1)
    whole = backtest(PANEL, SCORES, strategy, "us", account=1e6, end=PANEL.dates[-1])
    row = int(np.searchsorted(whole.dates, PANEL.dates[day]))
    held = pl.DataFrame({"symbol": PANEL.symbols, "amount": whole.amounts[row]}).filter(pl.col("amount") != 0)
    orders = next_orders(
        held, PANEL.rows(0, day + 1), SCORES[: day + 1], strategy, exchange("us", lot=None),
        cash=whole.report["cash"][row],
    )  # fmt: skip
    later = whole.orders.filter(pl.col("date") == PANEL.dates[day + 1])
    for side in ("buy", "sell"):
        ours, theirs = orders.table.filter(pl.col("side") == side), later.filter(pl.col("side") == side)
        assert ours["symbol"].to_list() == theirs["symbol"].cast(pl.String).to_list()
        if side == "sell":  # what is bought depends on tomorrow's prices, what is sold does not
            assert ours["shares"].to_list() == pytest.approx(theirs["amount"].to_list())
    assert orders.decided == PANEL.dates[day]


def test_orders_lead_to_the_target_book_and_pay_for_themselves(tmp_path: Path) -> None:
    file = tmp_path / "holdings.csv"
    file.write_text("symbol,amount\nS00,1000\nS01,10\nCASH,50000\n")
    rules = exchange("us", open_cost=0.001, close_cost=0.001, lot=1)
    orders = next_orders(file, PANEL, SCORES, Rebalance(EqualWeight()), rules)
    close = PANEL["close"][-1]
    worth = 50000 + 1000 * close[0] + 10 * close[1]
    assert orders.book["weight"].to_list() == pytest.approx([1 / 6] * 6, abs=5e-3)
    assert orders.book["value"].sum() + orders.cash + orders.cost == pytest.approx(worth)
    assert orders.table["shares"].to_list() == [round(shares) for shares in orders.table["shares"]]
    assert orders.cash >= 0
    sides = dict(orders.table.select("symbol", "side").iter_rows())
    assert (sides["S00"], sides["S05"]) == ("sell", "buy")
    assert orders.cost == pytest.approx(0.001 * orders.table["value"].sum())
    orders.save(tmp_path / "orders.csv")
    assert pl.read_csv(tmp_path / "orders.csv").height == orders.table.height


def test_adjusted_prices_are_turned_into_shares() -> None:
    factor = np.full(PANEL["close"].shape, 0.5)  # real prices are twice the adjusted ones
    adjusted = Panel(PANEL.dates, PANEL.symbols, {**PANEL.fields, "factor": factor})
    real = Panel(PANEL.dates, PANEL.symbols, {name: values * 2 for name, values in PANEL.fields.items()})
    held = pl.DataFrame({"symbol": ["S00", "CASH"], "amount": [100, 20000]})
    strategy = TopkDropout(3, 1)
    ours = next_orders(held, adjusted, SCORES, strategy, "us")
    theirs = next_orders(held, real, SCORES, strategy, "us")
    for column in ("shares", "price", "value", "cost"):
        assert ours.table[column].to_list() == pytest.approx(theirs.table[column].to_list())
    assert ours.cash == pytest.approx(theirs.cash)


def test_what_is_suspended_stays_and_is_said() -> None:
    close = PANEL["close"].copy()
    close[-1, 0] = np.nan
    panel = Panel(PANEL.dates, PANEL.symbols, {"close": close})
    scores = np.tile([-9.0, 5, 4, 3, 2, 1], (30, 1))
    held = pl.DataFrame({"symbol": ["S00", "S01", "CASH"], "amount": [10, 10, 1000]})
    orders = next_orders(held, panel, scores, TopkDropout(2, 1), "cn")
    assert orders.table.filter(pl.col("symbol") == "S00")["reason"].to_list() == ["suspended"]
    assert "S00" in orders.book["symbol"].to_list()
    assert any("S00" in warning for warning in orders.warnings)


def test_a_short_book_starts_from_short_holdings() -> None:
    held = pl.DataFrame({"symbol": ["S00", "CASH"], "amount": [-10, 5000]})
    orders = next_orders(held, PANEL, SCORES, Rebalance(LongShort(0.2)), exchange("free", short=True))
    assert (orders.book["shares"] < 0).sum() == 1
    with pytest.raises(InputError, match="short"):
        next_orders(held, PANEL, SCORES, TopkDropout(2, 1))


def test_cash_may_stand_in_three_places(tmp_path: Path) -> None:
    file = tmp_path / "holdings.csv"
    for text in (
        "symbol,amount\nA,1\ncash,7\n",
        "symbol,amount,cash\nA,1,7\nB,2,\n",
        "symbol,amount,cash\n,,7\n",
    ):
        file.write_text(text)
        assert read_holdings(file).cash == 7
    file.write_text("symbol,amount,days\nA,1,3\n")
    assert read_holdings(file, 7).days == {"A": 3}
    assert read_holdings(file, 7).shares == {"A": 1}


BAD = {
    "no amount": ("symbol,shares\nA,1\n", "'amount' is missing"),
    "text": ("symbol,amount\nA,one\nCASH,1\n", "row 1, column 'amount', got 'one'"),
    "empty amount": ("symbol,amount\nA,\nCASH,1\n", "row 1, column 'amount'"),
    "infinite": ("symbol,amount\nA,inf\nCASH,1\n", "row 1"),
    "twice": ("symbol,amount\nA,1\nA,2\nCASH,1\n", "'A' twice, the second time in row 2"),
    "no cash": ("symbol,amount\nA,1\n", "say nothing of cash"),
    "two cashes": ("symbol,amount,cash\nA,1,5\nCASH,6,\n", "more than one amount of cash"),
    "no symbol": ("symbol,amount\n,1\nCASH,1\n", "no symbol in row 1"),
    "empty": ("", "cannot be read"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_holdings_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    (tmp_path / "holdings.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_holdings(tmp_path / "holdings.csv")


def test_holdings_prices_and_scores_must_fit() -> None:
    with pytest.raises(InputError, match="no holdings file"):
        read_holdings("absent.csv")
    held = pl.DataFrame({"symbol": ["NEW", "CASH"], "amount": [10, 1000]})
    with pytest.raises(InputError, match="without prices: NEW"):
        next_orders(held, PANEL, SCORES)
    late = SCORES.copy()
    late[-1] = np.nan
    with pytest.raises(InputError, match="no score is of the last day"):
        next_orders(held, PANEL, late)
