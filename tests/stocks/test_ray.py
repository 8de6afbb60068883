"""A run on a Ray cluster of two nodes gives the bits of a local one, also when a worker is killed midway."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.config import build
from manyhead.stocks.pipeline import run
from manyhead.work import run_items
from tests.stocks.market import SMALL, market, written

pytest.importorskip("ray", reason="ray is not installed: pip install manyhead[cluster]")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, as processes of this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: starved where other tests run beside
        cluster = Cluster(head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            yield cluster
        finally:
            cluster.shutdown()


def workers(cluster: Any) -> list[int]:
    """Processes of this cluster that carry out a piece of work right now."""
    raylets = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            title = (folder / "cmdline").read_text()
        except OSError:
            continue
        if (
            parent in raylets
            and title.startswith("ray::")
            and not any(word in title for word in ("IDLE", "Agent"))
        ):
            found.append(int(folder.name))
    return found


def test_the_same_table_on_a_cluster_whose_worker_is_killed(cluster: Any, tmp_path: Path) -> None:
    prices = written(market(), tmp_path / "prices.parquet")
    config = build(SMALL, {"data": {"prices": prices}, "training": {"seeds": [0, 1]}})
    folder = tmp_path / "ray"
    killed: list[int] = []
    stamps: dict[Path, int] = {}

    def kill_one() -> None:
        while not (done := list(folder.glob("items/*/*/item.json"))):
            time.sleep(0.01)
        stamps.update({path: path.stat().st_mtime_ns for path in done})
        while not (busy := workers(cluster)):
            time.sleep(0.01)
        os.kill(busy[0], signal.SIGKILL)
        killed.append(busy[0])

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    remote = run(config, folder, ray=cluster.address, progress=False)
    killer.join(timeout=1)
    assert killed
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    local = run(config, tmp_path / "local", progress=False)
    assert remote.scores.equals(local.scores)
    for table in local.folder.rglob("*.parquet"):
        again = remote.folder / table.relative_to(local.folder)
        assert pl.read_parquet(again).equals(pl.read_parquet(table)), again


def test_a_fault_of_the_work_reaches_the_caller_as_itself(cluster: Any) -> None:
    def refuse(item: int) -> str:
        raise InputError(f"item {item} is no good")

    with pytest.raises(InputError, match="item 3 is no good"):
        run_items(refuse, [3], ray=cluster.address, progress=False)


def test_an_address_without_a_cluster_is_named() -> None:
    with pytest.raises(InputError, match=r"cannot reach a Ray cluster at '127\.0\.0\.1:1'"):
        run_items(print, [0], ray="127.0.0.1:1", progress=False)
