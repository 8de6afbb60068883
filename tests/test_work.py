"""Pieces of work run once each, in any number of processes; a worker that dies is replaced."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from manyhead.errors import InputError
from manyhead.work import run_items


def record(folder: Path, item: int) -> str:
    """Leave one file an execution."""
    (folder / f"{item}-{os.getpid()}").touch()
    return str(item)


def die_once(folder: Path, item: int) -> str:
    """Kill the own worker on the first attempt at item 2."""
    mark = folder / f"tried-{item}"
    if item == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"done-{item}").touch()
    return str(item)


def linger(folder: Path, item: int) -> str:
    """Say which process this is, and stay."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return str(item)


def start_two(folder: Path) -> None:
    run_items(partial(linger, folder), range(2), workers=2, progress=False)


def always_die(item: int) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return str(item)


def refuse(item: int) -> str:
    raise InputError(f"item {item} is no good")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_runs_exactly_once(tmp_path: Path, workers: int) -> None:
    run_items(partial(record, tmp_path), range(5), workers=workers, progress=False)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == list("01234")


def test_a_killed_worker_is_replaced_and_its_item_runs_again(tmp_path: Path) -> None:
    run_items(partial(die_once, tmp_path), range(4), workers=2, progress=False)
    assert {path.name for path in tmp_path.glob("done-*")} == {f"done-{item}" for item in range(4)}


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=start_two, args=(tmp_path,))
    parent.start()
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    until(lambda: not any(map(alive, workers)))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come within a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_item_that_always_kills_its_worker_is_given_up() -> None:
    with pytest.raises(RuntimeError, match="ended its worker process"):
        run_items(always_die, [7], workers=2, progress=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_reaches_the_caller(workers: int) -> None:
    with pytest.raises(InputError, match="item 0 is no good"):
        run_items(refuse, [0], workers=workers, progress=False)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        run_items(refuse, [0], workers=0)
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        run_items(refuse, [0], threads=0)
