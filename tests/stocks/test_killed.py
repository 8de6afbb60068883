"""A run that is killed with SIGKILL and continued ends in the same bits as one that nobody disturbed."""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import polars as pl

from manyhead.cli import main
from manyhead.stocks.config import build, write_toml
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.items import pieces_of
from manyhead.stocks.pipeline import run
from tests.stocks.market import SMALL, market, written

CONTEXT = multiprocessing.get_context("forkserver")


def start(words: list[str]) -> None:
    sys.argv = ["manyhead", *words]
    main()


def command(folder: Path, *options: str) -> ForkServerProcess:
    """Start `manyhead stocks run` in a folder, in a process of its own."""
    words = ["stocks", "run", "--out", str(folder), "--workers", "2", *options]
    process = CONTEXT.Process(target=start, args=(words,))
    process.start()
    return process


def done(folder: Path) -> list[Path]:
    return list(folder.glob("items/*/*/item.json"))


def kill_after(running: ForkServerProcess, folder: Path, pieces: int) -> None:
    """Kill the run itself, not its workers, once some pieces are done; they must end by themselves."""
    while len(done(folder)) < pieces:
        assert running.is_alive()
        time.sleep(0.005)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    running.join()
    assert running.exitcode == -signal.SIGKILL


def test_a_run_killed_twice_ends_in_the_table_of_an_undisturbed_one(tmp_path: Path) -> None:
    prices = written(market(), tmp_path / "prices.parquet")
    cheap = {"relations": {"kind": "spectral", "neighbours": 3}}
    config = build(
        SMALL,
        cheap,
        {"data": {"prices": prices}, "splits": {"count": 2}, "training": {"seeds": [0, 1]}},
    )
    settings, folder = tmp_path / "settings.toml", tmp_path / "killed"
    settings.write_text(write_toml(config))
    kill_after(command(folder, "--config", str(settings)), folder, 1)
    kept = {path: path.stat().st_mtime_ns for path in done(folder)}
    kill_after(command(folder, "--resume"), folder, len(kept) + 1)
    assert len(done(folder)) < len(pieces_of(config, RunFolder(folder).panel()[0]))
    last = command(folder, "--resume")
    last.join()
    assert last.exitcode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was done was not done again

    calm = run(config, tmp_path / "calm", progress=False).folder
    tables = sorted(path.relative_to(calm) for path in calm.rglob("*.parquet"))
    assert {"scores.parquet", "skill.parquet", "portfolio/stockformer.parquet"} <= set(map(str, tables))
    for table in tables:
        assert pl.read_parquet(folder / table).equals(pl.read_parquet(calm / table)), table
    assert (folder / "metrics.json").read_text() == (calm / "metrics.json").read_text()
    for weights in calm.rglob("*.safetensors"):
        assert (folder / weights.relative_to(calm)).read_bytes() == weights.read_bytes()
