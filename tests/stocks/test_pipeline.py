"""A run from a price file to a report: repeatable, resumable, the same however many workers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.config import Config, build
from manyhead.stocks.items import pieces_of
from manyhead.stocks.pipeline import run
from manyhead.stocks.result import Result, collect
from manyhead.stocks.scoring import predict
from manyhead.stocks.summary import summarise
from tests.browser import open_page
from tests.stocks.market import SMALL, market, written


def small(folder: Path, **settings: Any) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "prices.parquet"
    if not source.exists():
        written(market(), source)
    return build(SMALL, settings, {"data": {"prices": str(source)}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("finished")
    return run(small(folder, training={"seeds": [0, 1]}, splits={"count": 2}), folder / "run", progress=False)


def test_every_table_is_there_and_every_number_follows_from_the_scores(finished: Result) -> None:
    stored = pl.read_parquet(finished.folder / "scores.parquet")
    assert stored.equals(finished.scores)
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    own = stored.filter(
        (pl.col("model") == "ridge") & (pl.col("part") == "test") & pl.col("earned").is_not_null()
    )
    daily = own.group_by("date", maintain_order=True).agg(pl.corr("score", "earned"))["score"].to_numpy()
    assert metrics["ridge"]["ic"] == pytest.approx(float(np.mean(daily)), rel=1e-9)
    assert set(metrics) == {"stockformer", "ridge", "momentum"}
    assert {(row["model"], row["seed"]) for row in finished.skill.to_dicts()} == {
        ("stockformer", 0),
        ("stockformer", 1),
        ("ridge", 0),
        ("momentum", 0),
    }


def test_test_days_of_neighbouring_splits_tile_the_calendar(finished: Result) -> None:
    days = finished.scores.filter((pl.col("part") == "test") & (pl.col("model") == "ridge"))["date"]
    whole = finished.panel.dates[-80:]
    assert np.array_equal(days.unique().sort().to_numpy().astype("datetime64[D]"), whole)


def test_a_killed_run_continues_to_the_same_table(finished: Result, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    lost = [item for item in pieces_of(finished.config, finished.panel) if item.model != "momentum"][:3]
    for item in lost:
        shutil.rmtree(item.folder(folder))
    with pytest.raises(InputError, match="3 of 8 pieces are missing"):
        collect(folder)
    again = run(finished.config, folder, resume=True, progress=False)
    assert again.scores.equals(finished.scores)


def test_two_workers_give_the_same_bits_as_one(finished: Result, tmp_path: Path) -> None:
    again = run(finished.config, tmp_path / "run", workers=2, progress=False)
    assert again.scores.equals(finished.scores)


def test_a_folder_with_a_run_is_not_overwritten(finished: Result) -> None:
    with pytest.raises(InputError, match="holds a run already"):
        run(finished.config, finished.folder, progress=False)
    other = build(finished.config.model_dump(), {"model": {"dim": 9}})
    with pytest.raises(InputError, match="other settings in model"):
        run(other, finished.folder, resume=True, progress=False)


def test_the_newest_day_is_scored_as_the_run_scored_it(finished: Result) -> None:
    table = predict(finished.folder, days=3)
    assert table["date"].n_unique() == 3
    assert table.filter(pl.col("date") == table["date"].max())["rank"].to_list() == list(
        range(1, 1 + table.filter(pl.col("date") == table["date"].max()).height)
    )
    newest = max(finished.splits)
    own = finished.scores.filter(
        (pl.col("model") == "stockformer") & (pl.col("split") == newest) & (pl.col("part") == "test")
    )
    forecast = own.group_by("date", "symbol").agg(pl.col("regression").mean())
    joined = table.join(forecast, on=["date", "symbol"])
    assert joined.height == table.height
    assert np.allclose(joined["forecast"], joined["regression"], atol=1e-7)


def test_newer_prices_are_scored_without_training_again(finished: Result, tmp_path: Path) -> None:
    longer = market(days=310)
    known = longer["date"].unique().sort()[:300]
    # the first 300 days must be the run's own, the later ones are new
    merged = pl.concat([market(), longer.filter(~pl.col("date").is_in(known.implode()))])
    table = predict(finished.folder, written(merged, tmp_path / "longer.parquet"), days=2)
    assert table["date"].max() == longer["date"].max()
    short = written(merged.filter(pl.col("date") > known[200]), tmp_path / "short.parquet")
    with pytest.raises(InputError, match="training and validation days"):
        predict(finished.folder, short)


def test_the_report_compares_two_runs(finished: Result, tmp_path: Path) -> None:
    leaky = run(
        small(tmp_path, training={"epochs": 1}, splits={"count": 2}, leaks={"one_day_early": True}),
        tmp_path / "leaky",
        progress=False,
        against=finished,
    )
    text = leaky.report.read_text()
    assert "Leak &#39;one_day_early&#39; is on" in text
    assert "training.epochs: 1 here, 2 there" in text


@pytest.mark.browser
def test_the_report_shows_every_chart_without_console_errors(finished: Result) -> None:
    seen = open_page(finished.report)
    assert seen.errors == []
    assert seen.charts == seen.drawn == 9
    for words in (
        "In short",
        "Mean daily IC",
        "What would change this",
        "Survivorship",
        "Who attends to whom",
    ):
        assert words in seen.text


def test_the_summary_is_ten_lines_with_every_model(finished: Result) -> None:
    lines = summarise(finished).splitlines()
    assert len(lines) <= 12
    for name in ("Stockformer", "ridge", "12-1 momentum", "equal weight"):
        assert any(line.startswith(name) for line in lines)
