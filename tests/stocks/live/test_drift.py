"""Alarms ring where drift was planted and stay quiet where there is none."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyhead.stocks import build, run, update
from manyhead.stocks.live import drift
from manyhead.stocks.prepare import Prepared, prepare
from manyhead.stocks.splits import choose_splits
from tests.stocks.market import SMALL, market, written

DAYS, SYMBOLS = 480, 12


def prepared(table: pl.DataFrame) -> Prepared:
    from manyhead.stocks.prices import read_prices

    panel = read_prices(table)
    lengths = {"splits": {"train": 260, "validation": 40, "test": 60}, "universe": {"count": 12}}
    config = build(SMALL, lengths, {"factors": {"scaling": "training"}, "relations": {"kind": "none"}})
    return prepare(panel, max(choose_splits(config, panel.days).items())[1], config)


@pytest.fixture(scope="module")
def calm() -> pl.DataFrame:
    return market(3, DAYS, SYMBOLS)


def late(table: pl.DataFrame) -> pl.Series:
    days = table["date"].unique().sort()
    return table["date"] > days[-drift.DRIFT_DAYS - 1]


def test_the_index_is_that_of_its_definition() -> None:
    expected, seen = np.full((1, 10), 1e6), np.array([[2e6] + [8 / 9 * 1e6] * 9])
    p, q = seen[0] / seen.sum(), expected[0] / expected.sum()
    assert drift.stability(expected, seen)[0] == pytest.approx(
        float(((p - q) * np.log(p / q)).sum()), rel=1e-4
    )
    assert drift.stability(expected, expected)[0] == 0.0


def test_deciles_of_the_training_days_hold_a_tenth_each(calm: pl.DataFrame) -> None:
    ready = prepared(calm)
    known = drift.reference(ready)
    share = known.counts / known.counts.sum(axis=1, keepdims=True)
    moving = [place for place, name in enumerate(known.names) if name not in ("CLOSE0", "VOLUME0")]
    assert np.abs(share[moving] - 0.1).max() < 0.01
    seen = drift.observed(ready, ready.split.train)
    assert known.counts[-1].sum() == np.isfinite(seen[..., -1]).sum()
    # a panel that begins with the training days: its first two know no return
    start = drift.observed(ready, range(0, 3))[..., -1]
    assert np.array_equal(np.isnan(start).all(axis=1), [True, True, False])
    # the newest return known on a row is that of two rows before
    row = ready.split.start + 9
    close = ready.panel["close"]
    newest = drift.observed(ready, range(row, row + 1))[0, :, -1]
    assert np.allclose(newest, close[row] / close[row - 1] - 1, atol=1e-6, equal_nan=True)


def test_a_reference_is_read_back_as_it_was(calm: pl.DataFrame, tmp_path: Path) -> None:
    known = drift.reference(prepared(calm))
    assert drift.load_reference(tmp_path) is None
    known.save(tmp_path)
    again = drift.load_reference(tmp_path)
    assert again is not None
    assert again.names == known.names
    for name in ("edges", "counts", "usual"):
        assert np.array_equal(getattr(again, name), getattr(known, name))


PLANTED = {
    # volatility five times as high, prices made of it
    "volatility": lambda t: [
        (pl.col(name) * (1 + 4 * (pl.col("close") / pl.col("open") - 1))).alias(name)
        for name in ("close", "high")
    ],
    # a vendor changes its unit of volume within the window of lags: 100 times day after day
    "volume unit": lambda t: [(pl.col("volume") * (1 + 99 * (pl.int_range(pl.len()) % 2))).alias("volume")],
    # opening prices are those of another day
    "opens": lambda t: [(pl.col("open") * 1.05).alias("open"), (pl.col("high") * 1.06).alias("high")],
}


@pytest.mark.parametrize("kind", sorted(PLANTED))
def test_planted_drift_of_inputs_is_found_and_named(kind: str, calm: pl.DataFrame) -> None:
    known = drift.reference(prepared(calm))
    marked = calm.with_columns(late(calm).alias("late"))
    changed = pl.concat(
        [marked.filter(~pl.col("late")), marked.filter("late").with_columns(PLANTED[kind](calm))]
    )
    found = drift.input_drift(known, ready := prepared(changed.drop("late")), range(ready.panel.days))
    assert found["drifted"]
    field = {
        "volatility": ("newest return", "CLOSE1", "OPEN0"),
        "volume unit": ("VOLUME",),
        "opens": ("OPEN",),
    }
    assert found["drifted"][0]["input"].startswith(field[kind])
    said = drift.alarms(found, drift.skill_drift(np.zeros(0), np.zeros(0)))
    assert len(said) == 1
    assert found["drifted"][0]["input"] in said[0]


@pytest.mark.parametrize("seed", range(6))
def test_without_drift_no_input_alarm_rings(seed: int) -> None:
    ready = prepared(market(100 + seed, DAYS, SYMBOLS))
    found = drift.input_drift(drift.reference(ready), ready, range(ready.panel.days))
    assert found["drifted"] == []
    assert found["days"] == drift.DRIFT_DAYS


def series(random: np.random.Generator, days: int, mean: float) -> np.ndarray:
    """A daily IC of deviation 0.1 with an autocorrelation of 0.3."""
    noise = random.normal(0, 0.1, days)
    for day in range(1, days):
        noise[day] = 0.3 * noise[day - 1] + np.sqrt(1 - 0.09) * noise[day]
    return mean + noise


def test_the_skill_alarm_rings_for_lost_skill_and_seldom_for_kept_skill() -> None:
    random = np.random.default_rng(5)
    tests = [(series(random, 400, 0.05), series(random, 60, 0.05)) for _ in range(120)]
    false = np.mean([drift.skill_drift(test, since, resamples=200)["below"] for test, since in tests])
    assert false < 0.1  # one side of a 95 % interval: 2.5 %, more as the test's own mean is uncertain
    lost = [drift.skill_drift(test, since - 0.09, resamples=200)["below"] for test, since in tests]
    assert np.mean(lost) > 0.9


def test_skill_is_not_judged_on_too_few_days() -> None:
    found = drift.skill_drift(np.linspace(0, 0.1, 100), np.full(drift.FEWEST_DAYS - 1, -1.0))
    assert found["days"] == drift.FEWEST_DAYS - 1
    assert found["low"] is None
    assert not found["below"]
    assert drift.alarms(None, found) == []


def test_an_update_tells_of_drift_and_writes_it_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyhead.stocks.pipeline.write_report", lambda *_: None)
    table = market()
    days = table["date"].unique().sort()
    cut = days[-61]
    source = written(table.filter(pl.col("date") <= cut), tmp_path / "prices.parquet")
    settings = {"training": {"epochs": 1}, "baselines": {"names": []}}
    run(build(SMALL, settings, {"data": {"prices": source}}), tmp_path / "run", progress=False)
    card = json.loads((tmp_path / "run" / "model_card.json").read_text())
    assert card["alarms"] == []
    assert card["trained"]["tested until"] == str(cut)
    assert card["figures"]["stockformer"]["since"] is None
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert card["figures"]["stockformer"]["test"]["ic"] == pytest.approx(metrics["stockformer"]["ic"])
    later = table.filter(pl.col("date") > cut)
    quiet = update(tmp_path / "run", later.filter(pl.col("date") <= days[-31]))
    assert quiet.alarms == []
    assert quiet.card.facts["live"] == {"days": 30, "last": str(days[-31])}
    assert quiet.card.facts["drift"]["skill"]["days"] == 28  # the newest two labels are not known yet
    # from here on every close is the open of the day, raised or lowered by a tenth in turn
    wild = later.filter(pl.col("date") > days[-31]).with_columns(
        close=pl.col("open") * (1 + 0.1 * (-1.0) ** pl.col("date").dt.ordinal_day()),
        high=pl.col("open") * 1.11,
        low=pl.col("open") * 0.89,
    )
    loud = update(tmp_path / "run", wild)
    assert "inputs have drifted" in loud.alarms[0]
    text = (tmp_path / "run" / "model_card.md").read_text()
    assert "**Alarm:** inputs have drifted" in text
    assert "since the run" in text
    assert loud.card.facts["figures"]["stockformer"]["test"] == card["figures"]["stockformer"]["test"]
