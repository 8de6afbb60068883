"""No look-ahead: whatever happens after day r, every score usable on r+1 stays the same, bit for bit.

The whole pipeline runs twice from a price file: reading, checks, universe, factors, scalers, graph, training,
choice of epoch and variant, baselines. In the second file every price and volume after day r is another.
"""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manyhead.stocks.config import build
from manyhead.stocks.pipeline import run
from manyhead.stocks.splits import choose_splits
from tests.stocks.market import SMALL, market, written

CLEAN = {
    "fast": {},
    "paper": {"splits": {"within": False}},
    "paper within": {},
    "information": {"model": {"alignment": "information"}, "factors": {"scaling": "training"}},
    "alpha158": {"factors": {"sets": ["alpha158"]}, "relations": {"kind": "spectral"}},
}


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and cards are made of the scores compared here, and take half of a small run's time."""
    monkeypatch.setattr("manyhead.stocks.pipeline.write_report", lambda *_: None)
    monkeypatch.setattr("manyhead.stocks.pipeline.write_card", lambda *_: None)


def altered(prices: pl.DataFrame, after: date) -> pl.DataFrame:
    """Replace every bar after a day: other levels, other volumes, other days missing."""
    random = np.random.default_rng(99)
    factor = np.exp(random.normal(0.3, 0.4, prices.height))
    later = pl.col("date") > after
    fields = [
        pl.when(later).then(pl.col(name) * factor).otherwise(pl.col(name)) for name in ("open", "close")
    ]
    changed = prices.with_columns(
        *fields, pl.when(later).then(pl.col("volume") * (1 + 9 * factor)).otherwise(pl.col("volume"))
    ).with_columns(
        pl.when(later)
        .then(pl.max_horizontal("open", "close") * 1.01)
        .otherwise(pl.col("high"))
        .alias("high"),
        pl.when(later).then(pl.min_horizontal("open", "close") * 0.99).otherwise(pl.col("low")).alias("low"),
    )
    gone = pl.Series(random.random(prices.height) < 0.05)
    return changed.filter(~(gone & (changed["date"] > after)))


def scores(prices: pl.DataFrame, settings: dict[str, Any], preset: str, folder: Path) -> pl.DataFrame:
    folder.mkdir()
    source = written(prices, folder / "prices.parquet")
    config = build(SMALL, settings, {"data": {"prices": source}}, preset=preset)
    return run(config, folder / "run", progress=False).scores


def decided(table: pl.DataFrame, last: date) -> pl.DataFrame:
    """What could be used up to the close of a day: scores, not what they earned later."""
    usable = table.filter(pl.col("date") <= last)
    return usable.select(pl.exclude("earned")).sort("split", "model", "seed", "part", "date", "symbol")


def test_days(settings: dict[str, Any], preset: str, prices: pl.DataFrame) -> list[date]:
    """First test day, and one in the middle of the test span."""
    days = prices["date"].unique().sort()
    split = next(iter(choose_splits(build(SMALL, settings, preset=preset), len(days)).values()))
    first = split.validation_end
    return [days[first], days[(first + split.test_end) // 2]]


test_days.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", sorted(CLEAN))
def test_prices_after_a_day_change_no_score_usable_by_then(case: str, tmp_path: Path) -> None:
    settings, preset = CLEAN[case], "paper" if case.startswith("paper") else "fast"
    prices = market()
    before = scores(prices, settings, preset, tmp_path / "before")
    for place, day in enumerate(test_days(settings, preset, prices)):
        after = scores(altered(prices, day), settings, preset, tmp_path / f"after{place}")
        left, right = decided(before, day), decided(after, day)
        assert left.height > 0
        assert left.equals(right), f"a score up to {day} changed"
        # the test can fail: what lies after the day did change
        assert not decided(before, date.max).equals(decided(after, date.max))


def test_the_leaky_preset_is_caught(tmp_path: Path) -> None:
    prices = market()
    before = scores(prices, {}, "official_leaky", tmp_path / "before")
    day = test_days({}, "official_leaky", prices)[1]
    after = scores(altered(prices, day), {}, "official_leaky", tmp_path / "after")
    assert not decided(before, day).equals(decided(after, day))


@pytest.mark.parametrize(
    "leak", ["graph_all_dates", "scaler_all_dates", "universe_all_dates", "label_as_factor", "label_masking"]
)
def test_each_leak_of_information_alone_is_caught(leak: str, tmp_path: Path) -> None:
    prices = market()
    settings: dict[str, Any] = {"leaks": {leak: True}, "baselines": {"names": []}, "training": {"epochs": 1}}
    if leak == "scaler_all_dates":
        settings["factors"] = {"scaling": "training"}
    if leak == "label_masking":  # a suspension: the price of one stock stands still
        still = (pl.col("symbol") == "S09") & (pl.col("date") >= prices["date"].unique().sort()[200])
        flat = prices.filter(pl.col("symbol") == "S09")["close"][0]
        prices = prices.with_columns(
            [
                pl.when(still).then(flat).otherwise(pl.col(name)).alias(name)
                for name in ("open", "high", "low", "close")
            ]
        )
    before = scores(prices, settings, "fast", tmp_path / "before")
    day = test_days(settings, "fast", prices)[1]
    after = scores(altered(prices, day), settings, "fast", tmp_path / "after")
    assert not decided(before, day).equals(decided(after, day)), f"{leak} changed nothing"
