"""A comparison gives every method the same, finds what was planted, and survives a kill."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhead.comparison import Comparison, compare
from manyhead.comparison.commands import show
from manyhead.comparison.epochs import best_epoch, references
from manyhead.comparison.interference import conflict_table, first_conflict
from manyhead.comparison.methods import parse_methods
from manyhead.comparison.page import comparison_page
from manyhead.comparison.recommendation import stands
from manyhead.comparison.report import Report, as_dict, report, table
from manyhead.comparison.result import TUNING_SEED
from manyhead.comparison.summary import estimate
from manyhead.comparison.taskset import Score
from manyhead.comparison.trial import Outcome, Setting, Trial, run_trial
from manyhead.errors import InputError
from manyhead.files import write_text
from tests.browser import open_page
from tests.comparison import planted

OPPOSED, PARTIAL = "tests.comparison.planted:opposed", "tests.comparison.planted:partly_labelled"


@pytest.fixture(scope="module")
def opposed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Report]:
    """The planted conflict, compared with its interference report."""
    found = compare(
        OPPOSED,
        ["single", "mgda"],
        seeds=(0, 1, 2),
        epochs=8,
        rates=(0.03, 0.1),
        interference=True,
        folder=tmp_path_factory.mktemp("opposed"),
        progress=False,
    )
    return found, report(found, OPPOSED)


def test_every_method_is_tried_with_the_same_rates_on_a_seed_that_is_not_reported(
    opposed: tuple[Comparison, Report],
) -> None:
    found, _ = opposed
    assert TUNING_SEED not in found.seeds
    for method in (*found.singles, *found.methods):
        assert list(found.tried[method.key]) == [0.03, 0.1]
        best = max(found.tried[method.key].values())
        assert found.tried[method.key][found.rates[method.key]] == best
        for seed in found.seeds:
            assert len(found.outcome(method, seed).history) == 8
            assert found.outcome(method, seed).steps == 8 * 6


def test_the_table_is_the_relative_change_of_the_epoch_that_validation_chose(
    opposed: tuple[Comparison, Report],
) -> None:
    found, made = opposed
    own: dict[str, list[float]] = {"up": [], "down": []}
    for seed in found.seeds:
        alone: dict[str, Any] = {}
        for method in found.singles:
            task = method.tasks[0]
            history = found.outcome(method, seed).history
            alone[task] = min(history, key=lambda row: row[f"validation/{task}/loss"])
        history = found.outcome(found.equal, seed).history
        changes = [
            sum(
                1 - row[f"validation/{task}/loss"] / alone[task][f"validation/{task}/loss"]
                for task in ("up", "down")
            )
            for row in history
        ]
        row = history[changes.index(max(changes))]
        for task, values in own.items():
            values.append(100 * (1 - row[f"test/{task}/loss"] / alone[task][f"test/{task}/loss"]))
    line = made.lines[1]
    assert line.label == "equal"
    for task, values in own.items():
        assert line.change[task].values == pytest.approx(values)
    means = [(a + b) / 2 for a, b in zip(own["up"], own["down"], strict=True)]
    assert line.mean_change.values == pytest.approx(means)
    assert line.gain.values == pytest.approx([0.0] * 3)
    assert made.lines[0].mean_change.values == (0.0, 0.0, 0.0)
    assert made.lines[0].parameters == 2 * line.parameters


def test_the_test_part_never_chooses_the_epoch() -> None:
    history = [
        {"epoch": 1.0, "cpu": 1.0, "validation/a/loss": 0.9, "test/a/loss": 0.01},
        {"epoch": 2.0, "cpu": 1.0, "validation/a/loss": 0.5, "test/a/loss": 0.80},
        {"epoch": 3.0, "cpu": 1.0, "validation/a/loss": 0.5, "test/a/loss": 0.02},
    ]
    scores = {"a": Score()}
    assert best_epoch(Outcome(history), ["a"], scores, {"a": 0.4}) == 1  # the first of equals
    assert best_epoch(Outcome(history), ["a"], scores, None, within=1.5) == 0
    assert best_epoch(Outcome(history), ["a"], scores, None, within=0.5) == -1


def test_a_conflict_planted_in_the_second_layer_is_found_there_and_branching_is_worth_it(
    opposed: tuple[Comparison, Report],
) -> None:
    found, made = opposed
    first, second = (next(row for row in made.conflicts if row.layer == depth) for depth in (1, 2))
    assert first.cosine.values == pytest.approx([1.0] * 3, abs=1e-6)
    assert second.cosine.mean < -0.5
    assert second.against > 0.7
    assert first_conflict(made.conflicts) is second
    assert found.forked is not None
    assert found.forked.shared == 1
    assert made.branch is not None
    assert made.branch.gain.above
    assert made.branch.gain.mean > 20
    # 24 weights and biases of the first layer are shared, 5 of the second doubled
    assert (made.lines[1].parameters, made.branch.parameters) == (25, 30)
    assert made.lines[1].mean_change.below
    advice = " ".join(made.advice)
    assert "Do not share all" in advice
    assert "Share up to layer 1: branching there costs" in advice


def test_leaving_the_other_task_out_is_the_single_task_model_here(opposed: tuple[Comparison, Report]) -> None:
    found, made = opposed
    assert {(row.task, row.without) for row in made.left_out} == {("up", "down"), ("down", "up")}
    for row in made.left_out:
        change = made.lines[1].change[row.task]
        assert row.change.values == pytest.approx(change.values)
        assert row.rise.above  # the opposed task raises the loss
        assert row.together.mean > row.alone.mean
    assert found.outcome(found.left_out["up"], 0) is found.outcome(found.singles[1], 0)


def test_the_race_stops_everyone_after_the_seconds_of_equal_weights() -> None:
    scores = {"a": Score(), "b": Score()}

    def outcome(losses: list[float], cpu: float, names: str) -> Outcome:
        return Outcome(
            [
                {"epoch": place + 1.0, "cpu": cpu}
                | {f"{part}/{name}/loss": loss for part in ("validation", "test") for name in names}
                for place, loss in enumerate(losses)
            ]
        )

    from manyhead.comparison.interference import race
    from manyhead.comparison.methods import single_methods
    from manyhead.comparison.taskset import Budget

    methods = parse_methods(["mgda", "flat-mgda"], ("a", "b"))
    found = Comparison("x", "tiny", Budget(4, (1.0,)), (0,), scores, single_methods(("a", "b")), methods)
    equal, mgda, flat = methods
    for single in found.singles:
        found.outcomes[single.key, 0] = outcome([4.0, 3.0, 2.0, 1.0], 1.0, single.tasks[0])
    found.outcomes[equal.key, 0] = outcome([2.0, 1.5, 1.2, 1.1], 1.0, "ab")
    found.outcomes[mgda.key, 0] = outcome([1.5, 0.9, 0.8, 0.7], 2.0, "ab")
    found.outcomes[flat.key, 0] = outcome([0.1, 0.1, 0.1, 0.1], 5.0, "ab")
    by_name = {racer.label: racer for racer in race(found)}
    assert by_name["equal"].mean_change.mean == pytest.approx(-10)
    assert by_name["mgda"].epochs == 2  # of four, at twice the price
    assert by_name["mgda"].mean_change.mean == pytest.approx(10)
    assert by_name["mgda"].gain.mean == pytest.approx(20)
    assert by_name["flat-mgda"].mean_change.values == ()  # not one epoch in time
    assert by_name["single"].epochs == 2  # two networks share the seconds
    assert by_name["single"].mean_change.mean == pytest.approx(-200)
    assert by_name["equal"].curve[-1] == (1.0, pytest.approx(-10))


def test_estimates_leave_out_what_is_not_finite() -> None:
    assert estimate([1.0, float("nan"), 3.0]).mean == 2.0
    assert estimate([1.0, 3.0]).half == pytest.approx(12.706, abs=1e-2)  # t(0.975, 1) * 1
    assert estimate([]).text() == ""
    assert estimate([2.0]).text() == "+2.00"


def test_labels_for_one_task_a_sample_are_enough(tmp_path: Path) -> None:
    found = compare(
        PARTIAL,
        ["mgda", "uncertainty", "flat-upgrad:rho=0.1"],
        seeds=(0,),
        epochs=2,
        rates=(0.01,),
        interference=True,
        folder=tmp_path,
        progress=False,
    )
    made = report(found, PARTIAL)
    assert [line.label for line in made.lines[2:]] == ["mgda", "uncertainty", "flat-upgrad:rho=0.1"]
    assert not any(line.failed for line in made.lines)
    assert len(made.left_out) == 6
    assert references(found, 0, "test").keys() == {"a", "b", "c"}
    assert len(conflict_table(found, [])) == 0
    assert "Keep equal weights" in " ".join(made.advice)  # one seed gives no interval


def test_a_rate_that_diverges_is_not_chosen_and_one_that_always_does_is_told(tmp_path: Path) -> None:
    options: dict[str, Any] = {"seeds": (0,), "epochs": 2, "folder": tmp_path / "a", "progress": False}
    found = compare(OPPOSED, [], rates=(0.01, 1e30), **options)
    assert set(found.rates.values()) == {0.01}
    tried = found.tried[found.equal.key][1e30]
    assert tried != tried  # NaN: it did not end
    with pytest.raises(InputError, match=r"single on up diverged at every rate \[1e\+30\]"):
        compare(OPPOSED, [], rates=(1e30,), **{**options, "folder": tmp_path / "b"})


def numbers(folder: Path) -> dict[str, Any]:
    """What every trial left, without what depends on the clock."""
    found = {}
    for path in sorted((folder / "runs").glob("*.json")):
        held = json.loads(path.read_text("utf-8"))
        held["history"] = [
            {name: value for name, value in row.items() if name not in ("cpu", "seconds")}
            for row in held["history"]
        ]
        found[path.name] = held
    return found


def test_a_killed_comparison_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    words = ["--data", PARTIAL, "--balancers", "mgda,flat-mean", "--seeds", "1", "--epochs", "6"]
    words += ["--rates", "0.01", "--out", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "manyhead.cli", "compare", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 200
    runs = tmp_path / "killed" / "runs"
    # in the middle: some trials are done, and one has a checkpoint
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(runs.glob("*.json"))) >= 4 and list(runs.glob("*/checkpoint.safetensors")):
            break
        time.sleep(0.005)
    assert process.poll() is None, "the comparison ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(runs.glob("*.json")))
    options: dict[str, Any] = {
        "balancers": ["mgda", "flat-mean"],
        "seeds": (0,),
        "epochs": 6,
        "rates": (0.01,),
        "progress": False,
    }
    compare(PARTIAL, folder=tmp_path / "killed", **options)
    compare(PARTIAL, folder=tmp_path / "whole", **options)
    whole = numbers(tmp_path / "whole")
    assert 4 <= done < len(whole) == 6 * 2
    assert numbers(tmp_path / "killed") == whole
    assert not [path for path in runs.iterdir() if path.is_dir()]  # nothing half-done is left


def test_trials_can_be_sent_to_other_processes_and_have_names_of_their_own(tmp_path: Path) -> None:
    setting = Setting(OPPOSED, "tiny", 1, tmp_path)
    methods = parse_methods(["mgda", "cagrad:c=0.4", "cagrad:c=0.5"], ("up", "down"))
    trials = [Trial(method, rate, seed) for method in methods for rate in (0.1, 0.01) for seed in (0, 1)]
    assert len({trial.name for trial in trials}) == len(trials)
    for trial in trials:
        assert pickle.loads(pickle.dumps(trial)) == trial
    assert pickle.loads(pickle.dumps(partial(run_trial, setting))).args == (setting,)


def test_the_same_folder_takes_more_seeds_but_not_other_settings(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rates": (0.01,), "folder": tmp_path, "progress": False}
    compare(OPPOSED, [], seeds=(0,), epochs=1, **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    found = compare(OPPOSED, ["log"], seeds=(0, 1), epochs=1, **options)
    assert found.outcome(found.methods[1], 1).steps == 6
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    with pytest.raises(InputError, match="holds a comparison with epochs=1, this one has 2: name another"):
        compare(OPPOSED, [], seeds=(0,), epochs=2, **options)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    compare(
        planted.opposed,
        [],
        seeds=(0,),
        epochs=1,
        rates=(0.01,),
        folder=tmp_path,
        progress=False,
        interference=True,
    )
    assert torch.equal(torch.get_rng_state(), before)


BAD = [
    ({"data": "nowhere_mnist"}, "--data takes multi_mnist or module:function, got 'nowhere_mnist'"),
    ({"data": "no.such.module:f"}, "module 'no.such.module', which cannot be imported"),
    ({"data": "tests.comparison.planted:absent"}, "has no such function"),
    ({"data": "tests.comparison.planted:no_task_set"}, "must return a TaskSet, got dict"),
    ({"data": "tests.comparison.planted:one_task"}, "at least two tasks to compare"),
    ({"data": "tests.comparison.planted:empty_test"}, "test must hold at least one sample, got none"),
    ({"data": "tests.comparison.planted:wrong_model"}, "must return a MultiTask of these tasks, got Linear"),
    ({"data": "tests.comparison.planted:unknown_score"}, "has no 'accuracy' of task 'up'; it has up/loss"),
    ({"data": "tests.comparison.planted:bad_direction"}, "better 'higher' or 'lower'"),
    ({"balancers": "nonsense"}, "balancer must be one of sum, fixed"),
    ({"balancers": "flat-nonsense"}, "aggregator must be one of"),
    ({"balancers": "mgda,mgda"}, "--balancers names 'mgda' twice"),
    ({"balancers": "equal,sum"}, "--balancers names 'equal' twice, or another name of it"),
    ({"balancers": "mgda:oops"}, "arguments of a balancer look like cagrad:c=0.4"),
    ({"balancers": "mgda:speed=3"}, "cannot be built with"),
    ({"balancers": "flat-mean:rho=[1]"}, "an argument of a balancer is a number, a word, true or false"),
    ({"seeds": "0"}, "--seeds takes a count of at least 1"),
    ({"seeds": "many"}, "--seeds takes a count such as 3, or a list such as 0,5; got 'many'"),
    ({"seeds": "1,1"}, "seeds must be different numbers"),
    ({"budget": "huge"}, "budget must be one of tiny, small, large, got 'huge'"),
    ({"epochs": "0"}, "epochs must be at least 1, got 0"),
    ({"rates": "fast"}, "--rates takes numbers separated by commas"),
    ({"rates": "0.1,-1"}, "rates must be finite and above zero"),
    ({"rates": "0.1,0.1"}, "rates must differ"),
    ({"workers": "0"}, "workers must be at least 1, got 0"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_bad_input_is_one_clear_message(
    wrong: dict[str, str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from manyhead import cli

    given = {"data": OPPOSED, "balancers": "mgda", "seeds": "1", "epochs": "1", "rates": "0.1"} | wrong
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["manyhead", "compare", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_the_command_prints_json_and_writes_table_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyhead import cli

    words = ["--data", OPPOSED, "--balancers", "log", "--seeds", "4,7", "--epochs", "1", "--rates", "0.1"]
    monkeypatch.setattr(sys, "argv", ["manyhead", "compare", *words, "--out", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["seeds"] == [4, 7]
    assert [line["label"] for line in printed["lines"]] == ["single", "equal", "log"]
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == printed
    assert "| single |" in (tmp_path / "table.md").read_text("utf-8")
    assert "Recommendation" in (tmp_path / "page.html").read_text("utf-8")


def test_the_terminal_shows_gain_price_and_advice(
    opposed: tuple[Comparison, Report], capsys: pytest.CaptureFixture[str]
) -> None:
    show(opposed[1], Path("page.html"))
    told = capsys.readouterr().out
    for words in (
        "over equal",
        "cost",
        "branch",
        "up loss",
        "Share up to layer 1",
        "page: page.html",
    ):
        assert words in told


def test_json_holds_no_nan(opposed: tuple[Comparison, Report]) -> None:
    text = json.dumps(as_dict(opposed[1], "command", "machine"), allow_nan=False)
    assert json.loads(text)["branch"]["label"] == "branch after layer 1"


@pytest.mark.browser
def test_every_chart_of_the_page_is_drawn(opposed: tuple[Comparison, Report], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, comparison_page(opposed[1], "manyhead compare", "a machine").html())
    seen = open_page(path)
    assert seen.errors == []
    assert seen.charts == seen.drawn == 6  # Pareto, two curves, angles, heat map, race
    headings, rows = table(opposed[1])
    assert all(row[0] in seen.text for row in rows)
    for words in ("Recommendation", "up against down", "where gradients conflict", "a race at equal seconds"):
        assert words in seen.text
    assert all(sentence in seen.text for sentence in opposed[1].advice)
    assert len(headings) == len(rows[0])


def test_multi_mnist_comes_by_name(tmp_path: Path) -> None:
    from manyhead import data
    from manyhead.comparison.taskset import load_tasks

    if data.present("mnist_10k") is None:
        pytest.skip("mnist_10k is not on this machine: set MANYHEAD_DATA")
    held = load_tasks("multi_mnist", 0, "tiny")
    model = held.model(held.names)
    batch = held.train.batch(torch.arange(4))
    assert list(model.losses(batch)) == ["first", "second"]
    assert set(model.evaluate([batch])) == {f"{t}/{s}" for t in held.names for s in ("loss", "accuracy")}


def test_a_gain_picked_from_many_must_stand_after_correction() -> None:
    gain = estimate([0.8, 1.0, 1.2])  # 1.0 with half a width of 0.4968
    assert gain.above
    assert stands(gain, 1)
    assert stands(gain, 2)  # t(1 - 0.05/4, 2) = 6.21 instead of 4.30: half a width of 0.72
    assert not stands(gain, 6)  # 10.89 instead of 4.30: 1.26
    assert not stands(estimate([5.0]), 1)  # one seed tells nothing
