"""Books of a configuration: each holds the scores as its words say, and all come into one report."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.book import hold
from manyhead.stocks.config import BOOK_SETTINGS, Book, build, read_toml, write_toml
from manyhead.stocks.holding import exchange_of, strategy_of, words_of
from manyhead.stocks.panel import Panel
from manyhead.stocks.pipeline import run
from manyhead.stocks.portfolio.ledger import Ledger
from tests.stocks.market import SMALL, market, written

DAYS, STOCKS = 130, 12
SYMBOLS = tuple(f"S{n:02d}" for n in range(STOCKS))
SECTORS = {symbol: "AB"[place % 2] for place, symbol in enumerate(SYMBOLS)}
BOOKS = {
    "fewer": {"kind": "topk_dropout", "topk": 2, "n_drop": 1},
    "equal": {"kind": "equal_weight"},
    "monthly": {"kind": "topk", "topk": 4, "every": 21},
    "sides": {"kind": "long_short", "quantile": 0.25, "borrow": 0.02},
    "calm": {"kind": "long_short", "quantile": 0.25, "volatility": 0.05, "borrow": 0.0},
    "slow": {"kind": "long_short", "quantile": 0.25, "max_turnover": 0.1},
    "neutral": {"kind": "sector_neutral", "quantile": 0.34},
    "optimal": {"kind": "optimised", "every": 20, "max_weight": 0.2},
}


@pytest.fixture(scope="module")
def prices() -> tuple[Panel, np.ndarray]:
    random = np.random.default_rng(4)
    close = 30 * np.exp(np.cumsum(random.normal(0, 0.02, (DAYS, STOCKS)), axis=0))
    dates = np.busday_offset("2021-01-04", np.arange(DAYS), roll="forward")
    scores = random.normal(size=(DAYS, STOCKS))
    scores[:70] = np.nan  # covariances and volatilities have their days before the first score
    return Panel(dates, SYMBOLS, {"close": close}), scores


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("sectors") / "sectors.csv"
    file.write_text("Symbol,Sector\n" + "".join(f"{symbol},{name}\n" for symbol, name in SECTORS.items()))
    costs = {"portfolio": {"open_cost": 0.001, "close_cost": 0.001, "topk": 3, "n_drop": 1}}
    return build(costs, {"books": BOOKS, "data": {"sectors": str(file), "sector_column": "Sector"}})


def test_each_kind_holds_what_its_words_say(prices, config) -> None:
    panel, scores = prices
    held = {name: hold(panel, scores, config, "any", name, SECTORS) for name in BOOKS}
    weights = {name: book.backtest.weights[1:-1] for name, book in held.items()}  # type: ignore[union-attr]
    assert ((weights["fewer"] > 0).sum(axis=1) == 2).all()
    assert np.allclose(weights["equal"], 1 / STOCKS, atol=0.01)
    assert ((weights["monthly"] > 0).sum(axis=1) == 4).all()
    for name in ("sides", "slow"):
        assert np.allclose(weights[name].sum(axis=1), 0, atol=0.08), name
    assert ((weights["sides"] > 0).sum(axis=1) == 3).all()
    assert ((weights["sides"] < 0).sum(axis=1) == 3).all()
    for sector in "AB":
        columns = [place for place, symbol in enumerate(SYMBOLS) if SECTORS[symbol] == sector]
        assert np.allclose(weights["neutral"][:, columns].sum(axis=1), 0, atol=0.08)
    assert weights["optimal"].max() <= 0.26  # 0.2 at the rebalancing, drifting between
    report = {name: book.report for name, book in held.items()}
    assert report["slow"]["turnover"].to_numpy().max() <= 0.103  # of the day's value; reported on the last
    assert (report["monthly"]["turnover"].to_numpy() > 0).sum() == 3  # bought, and twice brought back
    assert report["sides"]["borrow"].sum() > 0
    assert report["calm"]["borrow"].sum() == 0
    deviation = report["calm"]["net_return"].to_numpy()[1:].std() * np.sqrt(252)
    assert 0.03 < deviation < 0.08  # aimed at 0.05, over 59 days
    assert all(words_of(config, name) for name in ["main", *BOOKS])


def test_borrowing_is_charged_by_the_day(prices, config) -> None:
    panel, scores = prices
    free = build(config.model_dump(), {"portfolio": {"open_cost": 0, "close_cost": 0}})
    report = hold(panel, scores, free, "any", "sides").report
    elapsed = np.diff(panel.dates[-report.height - 1 :]).astype(int)[1:]
    # one account short, 2 % a year
    assert np.allclose(report["borrow"].to_numpy()[1:], 0.02 * elapsed / 365, rtol=0.15)


def test_a_delisted_holding_is_paid_out_as_the_configuration_says(prices, config) -> None:
    panel, scores = prices
    close = panel["close"].copy()
    best = int(np.nanargmax(scores[70]))
    close[80:, best] = np.nan  # its rows end
    gone = Panel(panel.dates, panel.symbols, {"close": close})
    ranked = np.where(np.arange(STOCKS) == best, 9.0, scores)
    paid = build(config.model_dump(), {"portfolio": {"delist_after": 5, "delisting_return": -0.3}})
    orders = hold(gone, ranked, paid, "any").orders.filter(pl.col("reason") == "delisted")
    assert orders["symbol"].to_list() == [SYMBOLS[best]]
    assert orders["date"].to_list() == [panel.dates[84].item()]
    assert orders["price"].to_list() == [pytest.approx(0.7 * close[79, best])]
    stuck = hold(gone, ranked, config, "any")
    assert stuck.orders.filter(pl.col("reason") == "delisted").is_empty()
    assert any("20 or more days old" in warning for warning in stuck.warnings)


def test_a_configuration_with_books_is_written_and_read_back(config, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(write_toml(config))
    assert build(read_toml(tmp_path / "config.toml")) == config
    assert build(config.model_dump()) == config


@pytest.mark.parametrize(
    ("books", "words"),
    [
        ({"a": {"kind": "topk", "quantile": 0.3}}, "kind 'topk' has no setting 'quantile'"),
        ({"a": {"kind": "all_in"}}, "books.a.kind"),
        ({"a": {"kind": "topk", "k": 3}}, "unknown key 'books.a.k'; known here: band"),
        ({"a": {}}, "books.a.kind: field required"),
        ({"a/b": {"kind": "topk"}}, "cannot be the name of a book"),
        ({"main": {"kind": "topk"}}, "cannot be the name of a book"),
        ({"a": {"kind": "sector_neutral"}}, "needs data.sectors"),
        ({"a": {"kind": "long_short", "long": 3}}, "long - short must be at most 1"),
    ],
)
def test_what_a_book_cannot_be_is_refused(books: dict[str, dict[str, object]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build({"books": books})


def test_every_setting_of_a_book_belongs_to_a_kind() -> None:
    assert set().union(*BOOK_SETTINGS.values()) == set(Book.model_fields) - {"kind", "models"}


def test_an_unknown_book_is_named_with_those_there_are(config) -> None:
    with pytest.raises(InputError, match="no book 'best'; this run has main, fewer"):
        strategy_of(config, 5, "best")
    assert not exchange_of(config).short
    assert exchange_of(config, "sides").costs.borrow == 0.02


def test_a_run_reports_its_books_and_counts_each_as_a_trial(tmp_path: Path) -> None:
    source = written(market(), tmp_path / "prices.parquet")
    books = {"sides": {"kind": "long_short", "models": "all"}, "equal": {"kind": "equal_weight"}}
    settings = {"baselines": {"names": ["reversal"]}, "training": {"epochs": 1}, "books": books}
    result = run(build(SMALL, settings, {"data": {"prices": source}}), tmp_path / "run", progress=False)
    assert set(result.held["sides"]) == {"stockformer", "reversal"}
    assert set(result.held["equal"]) == {"stockformer"}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["stockformer"]["books"]) == {"sides", "equal"}
    table = pl.read_parquet(tmp_path / "run" / "portfolio" / "sides" / "reversal.parquet")
    assert table["net_return"].to_list() == result.held["sides"]["reversal"].report["net_return"].to_list()
    text = result.report.read_text()
    assert "Held in other ways" in text
    assert "every name with a score in equal weights" in text
    assert len(list(Ledger(tmp_path / "ledger.jsonl").entries())) == 5
