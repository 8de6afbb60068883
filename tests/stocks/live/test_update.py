"""A run in daily use: day by day gives the bits of one run over everything; a revised past is refused."""

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks import build, run, update
from manyhead.stocks.config import Config, write_toml
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.pipeline import panel_from
from tests.stocks.market import SMALL, market, written
from tests.stocks.test_prices import Client

NEW = 60  # days after the run's end
TABLE = market()
CALENDAR = TABLE["date"].unique().sort()
END = CALENDAR[-NEW - 1]
KEYS = ["split", "model", "seed", "date", "symbol"]
BOOKS = {"sides": {"kind": "long_short", "quantile": 0.4}}


def until(day: object, table: pl.DataFrame = TABLE) -> pl.DataFrame:
    return table.filter(pl.col("date") <= day)


def after(day: object, table: pl.DataFrame = TABLE) -> pl.DataFrame:
    return table.filter(pl.col("date") > day)


def config(source: str, test: int, **settings: object) -> Config:
    lengths = {"splits": {"test": test, "step": test}, "books": BOOKS}
    names = {"baselines": {"names": ["ridge"], "trials": 1}}
    return build(SMALL, lengths, names, settings, {"data": {"prices": source}})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended sixty days ago; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("ended")
    source = written(until(END), folder / "prices.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manyhead.stocks.pipeline.write_report", lambda *_: None)  # half of a small run's time
        run(config(source, 40, training={"epochs": 1}), folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def ended(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "run"))


def live(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "live" / "scores.parquet").sort(KEYS)


def test_sixty_days_one_by_one_equal_one_run_over_all_of_them(
    place: Path, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = CALENDAR[-NEW:].to_list()
    # the card is no part of what is compared, and half of the time
    monkeypatch.setattr("manyhead.stocks.live.update.input_drift", lambda *_: None)
    monkeypatch.setattr("manyhead.stocks.live.update.write_card", lambda *_: None)
    for number, day in enumerate(days):
        # vendors send the day alone, or some days again
        rows = TABLE.filter(pl.col("date").is_between(days[max(0, number - number % 4)], day))
        done = update(ended, rows)
        assert done.days == [day]
        assert done.scores["date"].unique().to_list() == [day]
    at_once = Path(shutil.copytree(place, tmp_path / "at_once"))
    update(at_once, after(END))
    assert live(ended).equals(live(at_once))
    # one run over everything: the same training days, a hundred test days
    monkeypatch.setattr("manyhead.stocks.pipeline.write_report", lambda *_: None)
    monkeypatch.setattr("manyhead.stocks.pipeline.write_card", lambda *_: None)
    source = written(TABLE, tmp_path / "whole.parquet")
    whole = run(config(source, 40 + NEW, training={"epochs": 1}), tmp_path / "whole", progress=False)
    tested = whole.scores.filter((pl.col("part") == "test") & (pl.col("date") > END))
    columns = [*KEYS, "regression", "classification", "choice", "score"]
    assert live(ended)["date"].n_unique() == NEW
    assert (
        live(ended)
        .select(columns)
        .equals(
            tested.with_columns(pl.lit(live(ended)["split"][0]).alias("split")).sort(KEYS).select(columns)
        )
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"factors": {"sets": ["alpha158"]}, "universe": {"count": 5}},
        {
            "factors": {"scaling": "training", "lags": [0, 3]},
            "model": {"alignment": "official", "calendar": "counter"},
        },
    ],
    ids=["alpha158", "training scaler"],
)
def test_other_pipelines_score_a_day_as_a_run_does(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"training": {"epochs": 1}, "baselines": {"names": ["gru", "reversal"], "trials": 1}}
    base = build(SMALL, training, settings)
    cut = CALENDAR[-6]
    first = written(until(cut), tmp_path / "first.parquet")
    whole = written(TABLE, tmp_path / "whole.parquet")
    monkeypatch.setattr("manyhead.stocks.pipeline.write_report", lambda *_: None)  # costs half of the time
    run(build(base.model_dump(), {"data": {"prices": first}}), tmp_path / "first", progress=False)
    longer = {"data": {"prices": whole}, "splits": {"test": 45, "step": 45}}
    result = run(build(base.model_dump(), longer), tmp_path / "whole", progress=False)
    for day in CALENDAR[-5:]:
        update(tmp_path / "first", TABLE.filter(pl.col("date") == day))
    tested = result.scores.filter((pl.col("part") == "test") & (pl.col("date") > cut)).sort(KEYS)
    assert tested.height > 0
    assert live(tmp_path / "first").drop("split", "part").equals(tested.drop("split", "part", "earned"))


def test_the_same_file_twice_changes_nothing(ended: Path) -> None:
    update(ended, after(END))
    files = {path: path.read_bytes() for path in sorted(ended.rglob("*")) if path.is_file()}
    assert update(ended, TABLE).days == []  # the whole history this time
    assert update(ended).days == []
    assert {path: path.read_bytes() for path in sorted(ended.rglob("*")) if path.is_file()} == files


@pytest.mark.parametrize("step", ["write_live", "write_card", "keep"])
def test_an_update_killed_between_two_steps_goes_on(
    step: str, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(ended, tmp_path / "undisturbed"))
    three = until(CALENDAR[-NEW + 2], after(END))
    update(whole, three)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "keep":
            patch.setattr("manyhead.stocks.live.history.History.keep", killed)
        else:
            patch.setattr(f"manyhead.stocks.live.update.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            update(ended, three)
    update(ended, three)
    assert live(ended).equals(live(whole))
    assert (ended / "model_card.json").read_bytes() == (whole / "model_card.json").read_bytes()


def revised(day: object, field: str, factor: float) -> pl.DataFrame:
    """The whole history with one cell changed."""
    symbol = TABLE.filter(pl.col("date") == day)["symbol"][2]
    cell = (pl.col("date") == day) & (pl.col("symbol") == symbol)
    return TABLE.with_columns(
        pl.when(cell).then(pl.col(field) * factor).otherwise(pl.col(field)).alias(field)
    )


@pytest.mark.parametrize(("field", "back"), [("close", 100), ("volume", 61), ("low", 62)])
def test_a_revised_past_is_refused_with_the_cell_named(field: str, back: int, ended: Path) -> None:
    day = CALENDAR[-back]
    table = revised(day, field, 0.999)
    symbol = TABLE.filter(pl.col("date") == day)["symbol"][2]
    old = TABLE.filter((pl.col("date") == day) & (pl.col("symbol") == symbol))[field][0]
    with pytest.raises(InputError) as refused:
        update(ended, table)
    assert f"{symbol} on {day}: {field} was {old:.10g}, is {0.999 * old:.10g}" in str(refused.value)
    assert not (ended / "live" / "scores.parquet").exists()
    assert not (ended / "live" / "prices.parquet").exists()


def test_an_accepted_revision_is_recorded_and_only_the_open_decision_taken_again(ended: Path) -> None:
    update(ended, after(END))
    before = live(ended)
    newest = CALENDAR[-1]
    done = update(ended, revised(CALENDAR[-3], "close", 1.01), accept_revisions=True)
    assert done.days == [newest]
    now = live(ended)
    assert until(CALENDAR[-2], now).equals(until(CALENDAR[-2], before))
    assert not after(CALENDAR[-2], now).equals(after(CALENDAR[-2], before))
    log = pl.read_parquet(ended / "live" / "revisions.parquet")
    assert log.select("date", "field").rows() == [(CALENDAR[-3], "close")]
    assert "the past was revised in 1 cells" in " ".join(done.notes)
    again = update(ended, revised(CALENDAR[-3], "close", 1.01))
    assert again.days == []
    assert live(ended).equals(now)
    with pytest.raises(InputError, match="the past was revised"):
        update(ended, TABLE)  # the first version is now the revision


def test_what_is_odd_about_new_rows_is_said(ended: Path) -> None:
    with pytest.raises(InputError, match="no column 'volume'; the run's prices have open, high, low, close"):
        update(ended, after(END).drop("volume"))
    first = TABLE.filter(pl.col("date") == CALENDAR[-NEW])
    stranger = first[:1].with_columns(pl.lit("NEW").alias("symbol"))
    older = first[:2].with_columns(pl.lit(CALENDAR[0]).dt.offset_by("-7d").alias("date"))
    missing = first["symbol"][-1]  # the most traded of all
    table = pl.concat([first[:-1], stranger, older]).with_columns(pl.lit(1.0).alias("money"))
    notes = " ".join(update(ended, table).notes)
    assert "1 symbols are new, NEW" in notes
    assert "2 rows lie before the run's first day" in notes
    assert "the run has no column money" in notes
    assert f"have no price on {CALENDAR[-NEW]}: " in notes
    assert missing in notes.partition("have no price on")[2]
    # the row that was missing comes late: the day's decision was taken without it
    with pytest.raises(InputError, match=f"{missing} on {CALENDAR[-NEW]}: close was missing"):
        update(ended, first)


def test_a_fetched_history_is_asked_for_its_last_days_only(ended: Path) -> None:
    client = Client(until(CALENDAR[-NEW + 1]))
    tickers = "yfinance:" + ",".join(TABLE["symbol"].unique().sort())
    done = update(ended, tickers, client=client)
    assert done.days == CALENDAR[-NEW : -NEW + 2].to_list()
    assert client.asked["start"] == str(END - timedelta(days=7))
    assert "end" not in client.asked
    # a dividend later, the vendor's whole history is another
    adjusted = TABLE.with_columns(pl.when(pl.col("symbol") == "S04").then(0.98).otherwise(1.0).alias("by"))
    prices = [(pl.col(name) * pl.col("by")).alias(name) for name in ("open", "high", "low", "close")]
    later = Client(adjusted.with_columns(prices).drop("by"))
    with pytest.raises(InputError, match="the past was revised: S04 on"):
        update(ended, tickers, client=later)
    accepted = update(ended, tickers, client=later, accept_revisions=True)
    assert "start" not in later.asked
    assert accepted.days == CALENDAR[-NEW + 2 :].to_list()  # what was decided, and traded since, stays


def test_a_day_between_known_days_is_a_revision(ended: Path) -> None:
    between = CALENDAR.filter(CALENDAR.dt.weekday() == 5)[5]
    saturday = TABLE.filter(pl.col("date") == between).with_columns(pl.col("date").dt.offset_by("1d"))
    with pytest.raises(InputError, match=r"close was missing, is .*\(.* cells of .* symbols on 1 days"):
        update(ended, saturday)


def test_a_symbol_that_changes_keeps_its_history_and_its_scores(ended: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(ended, tmp_path / "plain"))
    update(plain, after(END))
    day = CALENDAR[-20]
    changes = tmp_path / "renames.csv"
    changes.write_text(f"old,new,date\nS07,ZZ,{day}\n")
    symbol = pl.when((pl.col("symbol") == "S07") & (pl.col("date") >= day)).then(pl.lit("ZZ"))
    table = TABLE.with_columns(symbol.otherwise(pl.col("symbol")).alias("symbol"))
    update(ended, after(END, until(CALENDAR[-21], table)))
    update(ended, after(CALENDAR[-21], table), renames=changes)
    theirs = live(plain).with_columns(symbol.otherwise(pl.col("symbol")).alias("symbol")).sort(KEYS)
    assert live(ended).equals(theirs)
    assert update(ended, table).days == []  # the file of renames is remembered


def test_orders_lead_from_the_holdings_to_the_book(ended: Path, tmp_path: Path) -> None:
    update(ended, after(END))
    today = TABLE.filter(pl.col("date") == CALENDAR[-1])
    close = dict(zip(today["symbol"], today["close"], strict=True))
    (tmp_path / "holdings.csv").write_text("symbol,amount\nS03,1000\nCASH,100000\n")
    done = update(ended, holdings=tmp_path / "holdings.csv")
    assert done.orders is not None
    assert done.orders_file == ended / "live" / f"orders-{CALENDAR[-1]}.csv"
    written_orders = pl.read_csv(done.orders_file)
    assert written_orders["symbol"].to_list() == done.orders.table["symbol"].to_list()
    own = done.scores.select("symbol", "stockformer").drop_nulls()["symbol"].to_list()
    held = set(done.orders.book["symbol"])
    assert len(held) == 3  # topk of the configuration
    assert set(own[:2]) <= held
    traded = (done.orders.table["shares"] * done.orders.table["price"]).to_numpy()
    assert done.orders.cost == pytest.approx(0.0005 * traded.sum())
    spent = np.where(done.orders.table["side"].to_numpy() == "buy", traded, -traded).sum()
    assert done.orders.cash == pytest.approx(100_000 - spent - done.orders.cost)
    assert done.orders.table.filter(pl.col("symbol") == own[0])["price"].to_list() == [close[own[0]]]
    sides = update(ended, holdings=tmp_path / "holdings.csv", book="sides", orders=tmp_path / "sides.csv")
    assert (tmp_path / "sides.csv").exists()
    assert sides.orders is not None
    assert (sides.orders.book["shares"].to_numpy() < 0).any()
    with pytest.raises(InputError, match="no book 'best'; this run has main, sides"):
        update(ended, holdings=tmp_path / "holdings.csv", book="best")
    with pytest.raises(InputError, match="no 'oracle' in this run; it has stockformer"):
        update(ended, holdings=tmp_path / "holdings.csv", model="oracle")


def test_a_past_that_a_file_of_splits_changes_is_refused(place: Path, tmp_path: Path) -> None:
    # a run whose prices are raw, and adjusted by a file that grows
    splits = tmp_path / "splits.csv"
    splits.write_text(f"symbol,date,ratio\nS09,{CALENDAR[50]},2\n")
    ended = Path(shutil.copytree(place, tmp_path / "run"))
    kept = RunFolder(ended)
    adjusted = build(kept.config().model_dump(), {"data": {"splits": str(splits)}})
    panel = panel_from(kept.rows(), adjusted)
    kept.keep_panel(panel, None, "prices")
    (ended / "config.toml").write_text(write_toml(adjusted))
    # a split after the run's end belongs to the new days
    splits.write_text(f"symbol,date,ratio\nS09,{CALENDAR[50]},2\nS08,{CALENDAR[-NEW + 1]},2\n")
    assert len(update(ended, until(CALENDAR[-NEW + 1], after(END))).days) == 2
    # one that was forgotten changes what the models were trained on
    splits.write_text(f"symbol,date,ratio\nS09,{CALENDAR[50]},2\nS08,{CALENDAR[100]},2\n")
    first = TABLE.filter((pl.col("symbol") == "S08") & (pl.col("date") >= CALENDAR[100]))["date"][0]
    with pytest.raises(InputError, match=f"of S08 on {first} was .* a file of splits, dividends"):
        update(ended, until(CALENDAR[-NEW + 2], after(END)))


def test_runs_that_cannot_go_on_are_refused(ended: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        update(tmp_path / "nothing")
    leaky = (ended / "config.toml").read_text().replace("zero_fees = false", "zero_fees = true")
    kept = (ended / "config.toml").read_text()
    (ended / "config.toml").write_text(leaky)
    with pytest.raises(InputError, match=r"has leaks on \(zero_fees\)"):
        update(ended)
    (ended / "config.toml").write_text(kept)
    (ended / "prices.parquet").unlink()
    with pytest.raises(InputError, match="older than updates"):
        update(ended)
