"""The controls of a run: a canary at every fold and a placebo, kept in its folder and shown in its report."""

import json
from pathlib import Path

import pytest

from manyhead.stocks.config import build
from manyhead.stocks.controls import canary_verdicts, placebo_of
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.pipeline import run
from manyhead.stocks.result import Result
from tests.browser import open_page
from tests.stocks.market import SMALL, market, written
from tests.stocks.test_commands import manyhead

CLEAN = {"splits": {"count": 2}, "training": {"epochs": 1}}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("checked")
    prices = written(market(), folder / "prices.parquet")
    config = build(SMALL, {"data": {"prices": prices}}, CLEAN)
    return run(config, folder / "run", progress=False, canary=True, placebo=12)


def test_every_fold_of_a_clean_run_stays_silent(checked: Result) -> None:
    verdicts = canary_verdicts(RunFolder(checked.folder))
    assert [verdict["split"] for verdict in verdicts] == sorted(checked.splits)
    for verdict, split in zip(verdicts, checked.splits.values(), strict=True):
        assert verdict["leaks"] == []
        days = [str(checked.panel.dates[row]) for row in split.test]
        assert verdict["decision"] in days[1:-2]
    text = checked.report.read_text()
    assert "No look-ahead in 2 of 2 splits" in text
    assert "12 runs of ridge on labels dealt out anew" in text


def test_controls_are_added_to_a_finished_run_and_not_computed_twice(checked: Result) -> None:
    place = RunFolder(checked.folder)
    files = [*(place.path / "canary").glob("*.json"), *place.path.glob("items/*/*/item.json")]
    stamps = {file: file.stat().st_mtime_ns for file in files}
    assert len(stamps) == 8
    words = ["stocks", "run", "--resume", "--out", str(checked.folder), "--workers", "1", "--canary"]
    done = manyhead(*words, "--placebo", "8")
    assert done.returncode == 0, done.stderr
    assert {file: file.stat().st_mtime_ns for file in files} == stamps
    dealt = placebo_of(place)
    assert dealt is not None
    assert len(dealt["ic"]) == len(dealt["p_values"]) == 8


def test_a_leak_is_named_with_its_stage_in_the_report(tmp_path: Path) -> None:
    prices = written(market(), tmp_path / "prices.parquet")
    leaky = build(SMALL, {"data": {"prices": prices}}, CLEAN, {"leaks": {"graph_all_dates": True}})
    result = run(
        build(leaky.model_dump(), {"splits": {"count": 1}, "baselines": {"names": []}}),
        tmp_path / "run",
        progress=False,
        canary=True,
    )
    (verdict,) = canary_verdicts(RunFolder(result.folder))
    assert {leak["stage"] for leak in verdict["leaks"]} == {"relations"}
    assert "The future is read: in 1 of 1 splits" in result.report.read_text()
    assert json.loads((result.folder / "canary" / "split-002.json").read_text()) == verdict


@pytest.mark.browser
def test_the_placebo_is_drawn(checked: Result) -> None:
    seen = open_page(checked.report)
    assert seen.errors == []
    assert seen.charts == seen.drawn == 10
    assert "what luck alone gives" in seen.text
