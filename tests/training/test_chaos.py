"""Chaos: our saves survive it, and it finds every way in which a save can be unsafe."""

import contextlib
import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manyhead.cli import app
from manyhead.errors import InputError
from manyhead.training import chaos, checkpoint, loop, state
from manyhead.training.child import Attempt
from manyhead.training.disturbance import load_run
from manyhead.training.faults import Disk
from manyhead.training.rehearsal import rehearse


def test_kills_and_faults_lose_nothing() -> None:
    report = chaos(kills=12, faults=1, seed=1)
    assert report.violations == []
    tried = {tally.what: tally.tried for tally in report.tallies}
    assert tried.pop("killed inside a save") == 6
    assert tried.pop("killed at a random moment") == 6
    assert set(tried.values()) == {1}, f"a fault was not made: {tried}"
    assert len(tried) == 8
    assert report.resumed >= 8
    assert report.files > 0


def test_a_kill_strikes_at_every_kind_of_point(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = Attempt(rehearse, tmp_path / "whole", False).wait()
    assert not whole.error
    assert {"create", "write", "sync", "rename", "remove"} <= set(whole.operations)
    (tmp_path / "cut").mkdir()
    # the first file: the lock is created and written (points 1, 2, 3, 4), then best weights are created
    # (5, 6); 8 is the middle of their write
    cut = Attempt(rehearse, tmp_path / "cut", False, Disk(tmp_path / "cut", "kill", 8)).wait()
    assert cut.killed
    parts = list((tmp_path / "cut").glob(".*.part"))
    assert len(parts) == 1
    assert parts[0].stat().st_size > 0
    assert not list((tmp_path / "cut").glob("*.safetensors"))


# -- each run below is unsafe in one way, inside the child alone; chaos must say so -------------------


def writes_in_place(folder: Path, resume: bool):
    @contextlib.contextmanager
    def in_place(path, mode="wb"):
        with open(path, mode) as stream:
            yield stream

    checkpoint.atomic = in_place
    return rehearse(folder, resume)


def commits_before_the_best_weights(folder: Path, resume: bool):
    save_best, save = checkpoint.RunFolder.save_best, checkpoint.RunFolder.save
    held = []
    checkpoint.RunFolder.save_best = lambda self, *best: held.append(best)

    def late(self, state, best_epoch):
        save(self, state, best_epoch)
        while held:
            save_best(self, *held.pop())

    checkpoint.RunFolder.save = late
    return rehearse(folder, resume)


def hides_failed_saves(folder: Path, resume: bool):
    save = checkpoint.save_state

    def quiet(path, state):
        with contextlib.suppress(OSError):
            save(path, state)

    checkpoint.save_state = quiet
    return rehearse(folder, resume)


def forgets_the_generators(folder: Path, resume: bool):
    state.set_random_state = lambda generators: None
    return rehearse(folder, resume)


def forgets_the_position(folder: Path, resume: bool):
    restore = state.restore

    def from_the_start_of_the_epoch(*arguments):
        position = restore(*arguments)
        position.batch = 0
        return position

    loop.restore = from_the_start_of_the_epoch
    return rehearse(folder, resume)


def takes_no_lock(folder: Path, resume: bool):
    checkpoint._locked = lambda path: open(path, "a+")  # noqa: SIM115 held as long as the run
    return rehearse(folder, resume)


def never_checks(folder: Path, resume: bool):
    checkpoint.digest = lambda *content: "the same"
    return rehearse(folder, resume)


@pytest.mark.parametrize(
    ("run", "trouble", "times", "says"),
    [
        (writes_in_place, "killed inside a save", 6, "is half-written"),
        (
            commits_before_the_best_weights,
            "killed inside a save",
            10,
            "the weights of the best epoch . are missing",
        ),
        (forgets_the_generators, "killed at a random moment", 16, "the resumed run ended with other bits"),
        (forgets_the_position, "killed inside a save", 3, "the resumed run ended with other bits"),
        (hides_failed_saves, "rename refused", 3, "a failed save reported success"),
        (hides_failed_saves, "disk full", 5, "a failed save reported success"),
        (takes_no_lock, "two writers", 2, "a second writer was let in"),
        (
            never_checks,
            "checkpoint cut short or altered",
            4,
            "a damaged checkpoint was taken for a whole one",
        ),
    ],
)
def test_an_unsafe_run_is_found(run, trouble: str, times: int, says: str) -> None:
    report = chaos(run, kills=2 * times, faults=times, seed=2, only=[trouble])
    found = "\n".join(report.violations)
    assert re.search(f"{re.escape(trouble)}: .*{says}", found), found or "chaos found nothing"


def fails(folder: Path, resume: bool) -> None:
    raise ZeroDivisionError("always")


def never_the_same(folder: Path, resume: bool) -> float:
    return int.from_bytes(os.urandom(4), "little")


def test_a_run_that_fails_or_does_not_repeat_by_itself_is_refused() -> None:
    with pytest.raises(InputError, match="fails when nobody disturbs it: ZeroDivisionError: always"):
        chaos(fails, kills=1)
    with pytest.raises(InputError, match="does not repeat bit for bit"):
        chaos(never_the_same, kills=1)
    with pytest.raises(InputError, match="must not be negative"):
        chaos(kills=-1)
    with pytest.raises(InputError, match=r"only must name troubles among .* got 'fire'"):
        chaos(only=["fire"])


MINE = """
import torch
from torch import nn
from manyhead.training import fit, seed_everything

class Points:
    def __len__(self):
        return 12
    def batch(self, indices):
        return indices[:, None].float() / 12

def train(folder, resume):
    seed_everything(0)
    model = nn.Linear(1, 1)
    fit(model, Points(), losses=lambda m, x: {"a": ((m(x) - x) ** 2).mean()}, batch_size=4, epochs=2,
        folder=folder, resume=resume, logs=("csv",))
    return model
"""


def test_the_command_disturbs_a_run_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_to_disturb.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["chaos", "--run", "mine_to_disturb:train", "--kills", "4", "--faults", "1"]
    done = CliRunner().invoke(app, [*options, "--json"])
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    assert counts["violations"] == 0
    assert sum(tally["tried"] for tally in counts["tallies"]) >= 8
    table = CliRunner().invoke(app, options)
    assert table.exit_code == 0
    assert "killed inside a save" in table.stdout


def test_the_command_exits_with_1_where_something_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"{forgets_the_position.__module__}:forgets_the_position"
    monkeypatch.setattr("manyhead.training.disturbance.load_run", lambda name: forgets_the_position)
    done = CliRunner().invoke(app, ["chaos", "--run", here, "--kills", "4", "--faults", "0"])
    assert done.exit_code == 1
    assert "violation" in done.stdout


@pytest.mark.parametrize(
    "name", ["nothing", "nowhere:f", "manyhead.training:nothing", "manyhead:__version__"]
)
def test_a_run_that_cannot_be_loaded_is_named(name: str) -> None:
    with pytest.raises(InputError, match="run"):
        load_run(name)
