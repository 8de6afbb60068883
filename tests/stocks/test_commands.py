"""The command line: bad input ends with one message and exit code 2, good input with files."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest

from manyhead.cli import main
from manyhead.stocks.config import build, write_toml
from tests.stocks.market import SMALL, market, written


def manyhead(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: what it prints, and its exit code."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["manyhead", *arguments]):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(market(), tmp_path_factory.mktemp("prices") / "prices.parquet")


BAD = {
    "absent prices": (["run", "--prices", "nowhere.csv"], "nowhere.csv"),
    "unknown preset": (["run", "--prices", "{prices}", "--preset", "quick"], "preset must be one of"),
    "unknown TOML key": (["run", "--prices", "{prices}", "--config", "{toml}"], "unknown key 'modell'"),
    "universe of words": (["run", "--prices", "{prices}", "--universe", "many"], "--universe takes"),
    "no splits": (["run", "--prices", "{prices}", "--splits", "0"], "--splits takes"),
    "too short a calendar": (["run", "--prices", "{prices}"], "one split needs 648"),
    "too many splits": (
        ["run", "--prices", "{prices}", "--splits", "9", "--set", "splits.train=100"],
        "9 splits",
    ),
    "setting without value": (["run", "--prices", "{prices}", "--set", "model.dim"], "SECTION.KEY=VALUE"),
    "setting out of range": (["run", "--prices", "{prices}", "--set", "model.dim=0"], "model.dim"),
    "seeds of words": (["run", "--prices", "{prices}", "--seeds", "few"], "--seeds takes"),
    "dates out of range": (["run", "--prices", "{prices}", "--start", "2031-01-01"], "2031-01-01"),
    "resume without a folder": (["run", "--resume"], "--resume needs --out"),
    "resume of nothing": (["run", "--resume", "--out", "nowhere"], "holds no run"),
    "unknown baseline": (
        [
            "run",
            "--prices",
            "{prices}",
            "--set",
            "splits.train=100",
            "--set",
            "splits.validation=40",
            "--set",
            "splits.test=40",
            "--set",
            'baselines.names=["oracle"]',
        ],
        "oracle",
    ),
    "report of nothing": (["report", "nowhere"], "holds no run"),
    "predict without a run": (["predict", "--run", "nowhere"], "holds no run"),
    "scores that do not exist": (["backtest", "--scores", "no.csv", "--prices", "{prices}"], "no.csv"),
    "scores without a score": (["backtest", "--scores", "{prices}", "--prices", "{prices}"], "score"),
    "factors to a text file": (["factors", "--prices", "{prices}", "--out", "factors.txt"], ".parquet"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_message_and_exit_code_2(case: str, prices: str, tmp_path: Path) -> None:
    arguments, words = BAD[case]
    toml = tmp_path / "bad.toml"
    toml.write_text("[modell]\ndim = 3\n")
    filled = [argument.format(prices=prices, toml=toml) for argument in arguments]
    if arguments[0] == "run" and "--out" not in arguments and "--resume" not in arguments:
        filled += ["--out", str(tmp_path / "run")]
    result = manyhead("stocks", *filled)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "config.toml").exists()


def test_factors_are_written_with_names_and_dates(prices: str, tmp_path: Path) -> None:
    out = tmp_path / "factors.parquet"
    result = manyhead(
        "stocks", "factors", "--prices", prices, "--out", str(out), "--set", "factors.lags=[0,1]"
    )
    assert result.returncode == 0, result.stderr
    table = pl.read_parquet(out)
    assert table.columns[:4] == ["date", "symbol", "CLOSE1", "CLOSE0"]
    assert table.height == 300 * 11


def test_any_score_table_can_be_traded(prices: str, tmp_path: Path) -> None:
    scores = market().select("date", "symbol", pl.col("volume").alias("score"))
    scores.write_csv(tmp_path / "scores.csv")
    result = manyhead(
        "stocks", "backtest", "--scores", str(tmp_path / "scores.csv"), "--prices", prices, "--topk", "3",
        "--n-drop", "1", "--out", str(tmp_path / "book"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Sharpe" in result.stdout
    assert (tmp_path / "book" / "orders.parquet").exists()


def test_the_installed_command_ends_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from manyhead.cli import main; main()", "stocks", "report", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere holds no run")


def test_scores_are_held_in_any_book(prices: str, tmp_path: Path) -> None:
    scores = market().select("date", "symbol", pl.col("volume").alias("score"))
    scores.write_csv(tmp_path / "scores.csv")
    (tmp_path / "sectors.csv").write_text(
        "Symbol,Sector\n" + "".join(f"S{number:02d},{'AB'[number % 2]}\n" for number in range(11))
    )
    base = ["stocks", "backtest", "--scores", str(tmp_path / "scores.csv"), "--prices", prices]
    sides = ["--book", "long_short", "--quantile", "0.3", "--borrow", "200", "--volatility", "0.1"]
    out = tmp_path / "book"
    result = manyhead(*base, *sides, "--max-turnover", "0.2", "--every", "5", "--out", str(out))
    assert result.returncode == 0, result.stderr
    report = pl.read_parquet(out / "report.parquet")
    assert report["borrow"].sum() > 0
    assert report["turnover"].to_numpy().max() < 0.21
    assert (report["turnover"].to_numpy() > 0).sum() == 60  # every fifth of 299 days
    neutral = manyhead(*base, "--book", "sector_neutral", "--sectors", str(tmp_path / "sectors.csv"))
    assert neutral.returncode == 0, neutral.stderr
    for extra, words in (
        (["--book", "sector_neutral"], "needs data.sectors"),
        (["--book", "topk", "--quantile", "0.2"], "kind 'topk' has no setting 'quantile'"),
        (["--book", "martingale"], "topk_dropout"),
        (["--book", "long_short", "--borrow", "-1"], "--borrow takes basis points"),
    ):
        refused = manyhead(*base, *extra)
        assert refused.returncode == 2
        assert words in refused.stderr


def test_an_update_prints_scores_orders_and_alarms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyhead.stocks.pipeline.write_report", lambda *_: None)
    table = market()
    days = table["date"].unique().sort()
    first = written(table.filter(pl.col("date") <= days[-3]), tmp_path / "first.parquet")
    whole = written(table, tmp_path / "whole.parquet")
    toml = tmp_path / "small.toml"
    toml.write_text(write_toml(build(SMALL, {"training": {"epochs": 1}, "baselines": {"names": []}})))
    run = str(tmp_path / "run")
    ended = manyhead(
        "stocks", "run", "--prices", first, "--config", str(toml), "--out", run, "--workers", "1"
    )
    assert ended.returncode == 0, ended.stderr
    (tmp_path / "held.csv").write_text("symbol,amount\nS03,10\nCASH,50000\n")
    update = ["stocks", "update", "--run", run, "--prices"]
    result = manyhead(*update, whole, "--holdings", str(tmp_path / "held.csv"))
    assert result.returncode == 0, result.stderr
    assert f"2 new day(s) scored: {days[-2]} to {days[-1]}" in result.stdout
    assert f"orders-{days[-1]}.csv" in result.stdout
    assert "no alarm" in result.stdout
    assert (tmp_path / "run" / "model_card.md").exists()
    revised = table.with_columns(pl.when(pl.col("date") == days[5]).then(1.0).otherwise("open").alias("open"))
    refused = manyhead(*update, written(revised, tmp_path / "revised.parquet"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: the past was revised: S00 on")
    assert "--accept-revisions" in refused.stderr
