"""A demonstration joins its seeds, over processes as in one, and its page keeps what a person wrote."""

import json
import os
from pathlib import Path

import pytest

from manyhead.demonstration import BY_HAND, demonstrate, parse_seeds, write_page
from manyhead.errors import InputError
from manyhead.system import Measurement, System


def measure(seed: int, budget: float) -> list[Measurement]:
    process = Measurement("process", "", None, os.getpid(), None)
    return [Measurement("gain", "above", float(seed), seed + budget, True, unit="points"), process]


def fail(seed: int, budget: float) -> list[Measurement]:
    raise InputError(f"seed {seed} finds no data")


SYSTEM = System(
    "small", "A small paper", 2024, "2401.00001", "More is more.", measure, budget=2.0, notes="Notes."
)


@pytest.mark.parametrize("workers", [1, 2])
def test_seeds_are_joined_in_order_by_one_process_or_several(workers: int) -> None:
    result = demonstrate(SYSTEM, [3, 1, 2], budget=5.0, workers=workers)
    gain, process = result.findings
    assert [run[0].here for run in result.runs] == [8.0, 6.0, 7.0]
    assert (gain.baseline, gain.here, gain.verdict, gain.seeds) == (2.0, 7.0, "holds", 3)
    assert process.verdict == "reported"
    assert all((run[1].here == os.getpid()) == (workers == 1) for run in result.runs)
    more = " --workers 2" if workers == 2 else ""
    assert result.command == f"manyhead demo small --seeds 3,1,2 --budget 5{more}"


def test_a_fault_in_a_worker_reaches_the_caller_as_itself() -> None:
    broken = System("small", "A small paper", 2024, "", "More is more.", fail)
    with pytest.raises(InputError, match=r"seed \d finds no data"):
        demonstrate(broken, [0, 1], workers=2)
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        demonstrate(SYSTEM, [0], workers=0)


def test_a_page_written_again_keeps_what_stands_below_the_line(tmp_path: Path) -> None:
    result = demonstrate(SYSTEM, [0, 1, 2])
    page = write_page(tmp_path, SYSTEM, result)
    text = page.read_text()
    assert "| gain (points) | above | 1 | 3 | [2, 2] | holds |" in text
    assert text.endswith("Notes.\n")
    page.write_text(text + BY_HAND + "\n\nMine.\n")
    again = write_page(tmp_path, SYSTEM, demonstrate(SYSTEM, [0, 1, 2], budget=3.0)).read_text()
    assert again.endswith(BY_HAND + "\n\nMine.\n")
    assert "| gain (points) | above | 1 | 4 | [3, 3] | holds |" in again
    assert json.loads((tmp_path / "small.json").read_text())["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "a", "1,", "1,1", "-1", "0.5"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--seeds takes"):
        parse_seeds(text)
