"""`manyhead bench cab`: complete and equal after a kill, open to a user's mixer, clear about bad input."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manyhead.cab import BUDGETS, TASKS, Settings, run_cab
from manyhead.cab.page import page
from manyhead.cab.pieces import Piece, Sources, cost, quality
from manyhead.cab.run import pieces_of
from manyhead.cli import main
from manyhead.errors import InputError
from manyhead.mixers.base import USES
from manyhead.mixers.catalogue import NAMES, uses_of
from tests.browser import open_page

OWN = '''
import torch
from manyhead.mixers.heads import HeadMixer
from manyhead.mixers.base import NONCAUSAL_SELF, CAUSAL_SELF


class Mean(HeadMixer):
    """The running mean of values."""

    supports = frozenset({CAUSAL_SELF})

    def __init__(self, channels, heads, **use):
        super().__init__(channels, heads, **use)
        del self.q_proj, self.k_proj

    def forward(self, x, context=None):
        self.tokens_of_keys(x, context)
        return self.out_proj(self.v_proj(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Peeks(Mean):
    """Says causal and is not."""

    def forward(self, x, context=None):
        self.tokens_of_keys(x, context)
        return self.out_proj(self.v_proj(x).mean(1, keepdim=True).expand_as(x) + x)


class Odd(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
'''
TINY = replace(BUDGETS["tiny"], lengths=(32, 64, 96, 128))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"def f{n}(x):\n    return x * {n}\n" for n in range(800)))
    return str(path)


def settings(text: str, **options: object) -> Settings:
    given = {
        "tasks": ("text", "masked"),
        "mixers": ("vanilla", "local", "linear"),
        "budget": TINY,
        "seeds": (0, 1),
        "sources": Sources(text=text),
    }
    return Settings(**(given | options))  # type: ignore[arg-type]


def measured(result: dict[str, object]) -> object:
    """What must not depend on interruptions: every metric of every seed."""
    return {
        (task, mixer, metric): found["values"]
        for task, rows in result["tasks"].items()  # type: ignore[attr-defined]
        for mixer, row in rows["mixers"].items()
        for metric, found in row["metrics"].items()
    }


def test_pieces_follow_the_support_matrix(text: str) -> None:
    every = Settings(tuple(TASKS), NAMES, TINY, (3,))
    judged, costs = pieces_of(every)
    assert {(piece.subject, piece.mixer) for piece in judged} == {
        (task.name, name) for task in TASKS.values() for name in NAMES if task.use in uses_of(name)
    }
    assert {(piece.subject, piece.mixer) for piece in costs} == {
        (use, name) for use in USES for name in NAMES if use in uses_of(name)
    }


def test_a_run_is_complete_and_every_number_comes_from_its_pieces(tmp_path: Path, text: str) -> None:
    result = run_cab(settings(text), tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "cab.json").read_text()) == json.loads(json.dumps(result))
    rows = result["tasks"]["text"]["mixers"]
    assert set(rows) == {"vanilla", "local", "linear"}
    alone = quality(Piece("quality", "text", "local", 1), TINY, Sources(text=text))
    assert rows["local"]["metrics"]["bits a character"]["values"][1] == alone["metrics"]["bits a character"]
    # indices are standardised over the mixers: they average to nothing
    assert sum(row["composite index"] for row in rows.values()) == pytest.approx(0, abs=1e-9)
    assert rows["vanilla"]["parameters over vanilla"] == 1
    assert rows["vanilla"]["cost"]["memory over vanilla"] == 1
    assert list(rows["linear"]["cost"]["seconds"]) == ["32", "64", "96", "128"]


def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, text: str) -> None:
    whole = run_cab(settings(text), tmp_path / "whole", progress=False)
    code = (
        "import sys; from tests.cab.test_run import settings; from manyhead.cab import run_cab; "
        "run_cab(settings(sys.argv[1]), sys.argv[2], progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, text, str(tmp_path / "killed")])
    pieces = tmp_path / "killed" / "pieces"
    deadline = time.monotonic() + 120
    while len(list(pieces.glob("*.json"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in pieces.glob("*.json")}
    assert 3 <= len(kept) < 18
    assert not (tmp_path / "killed" / "cab.json").exists()
    again = run_cab(settings(text), tmp_path / "killed", progress=False)
    assert measured(again) == measured(whole)
    assert {name: (pieces / name).stat().st_mtime_ns for name in kept} == kept  # nothing done twice
    with pytest.raises(InputError, match="other seeds"):
        run_cab(settings(text, seeds=(5,)), tmp_path / "killed", progress=False)


def test_a_users_mixer_takes_part_and_its_faults_are_named(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_mixers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    both = settings(text, mixers=("vanilla", "own_mixers.Mean"), seeds=(0,))
    result = run_cab(both, tmp_path / "run", progress=False)
    assert set(result["tasks"]["text"]["mixers"]) == {"vanilla", "own_mixers.Mean"}
    assert set(result["tasks"]["masked"]["mixers"]) == {"vanilla"}
    for name, message in {
        "own_mixers.Peeks": "own_mixers.Peeks breaks the contract .* a later token changes earlier outputs",
        "own_mixers.Odd": "own_mixers.Odd cannot be built",
        "own_mixers.Absent": "cannot be imported",
        "no_such_module.Mixer": "cannot be imported",
        "nonsense": "there is no mixer 'nonsense'",
        "aaren": "aaren supports causal self; the tasks ask for noncausal self",
    }.items():
        with pytest.raises(InputError, match=message):
            run_cab(settings(text, tasks=("masked",) if name == "aaren" else ("text",), mixers=(name,)), "x")
    assert not Path("x").exists()
    (tmp_path / "own_mixers.py").write_text(OWN + "\n# changed\n")
    with pytest.raises(InputError, match="other digests"):
        run_cab(both, tmp_path / "run", progress=False)


def test_each_task_measures_what_it_says() -> None:
    """Losses at chance and for a network that knows: the metric is of the target, not of the input."""
    random = torch.Generator().manual_seed(0)
    data = torch.randint(256, (4000,), generator=random)
    for name in ("text", "masked", "reverse"):
        task = TASKS[name]
        batch = task.draw(data, TINY, True, random)
        if name == "reverse":
            network = lambda source, begun: 50.0 * torch.nn.functional.one_hot(source.flip(1), 256)  # noqa: E731
        elif name == "masked":
            network = lambda rows: 50.0 * torch.nn.functional.one_hot(batch[0], 256)  # noqa: B023, E731
        else:
            network = lambda rows: 50.0 * torch.nn.functional.one_hot(batch[1], 256)  # noqa: B023, E731
        _, metrics = task.judge(network, batch)  # type: ignore[arg-type]
        found = dict(zip(task.metrics, metrics.tolist(), strict=True))
        assert found["right, %"] == 100
        bits = next(value for key, value in found.items() if key.startswith("bits"))
        assert bits == pytest.approx(0, abs=1e-4)
    walk = torch.randn(500, 3, generator=random).cumsum(0)
    past, coming = TASKS["forecast"].draw(walk, TINY, False, random)
    assert past.shape == (16, 16, 3)
    assert coming.shape == (16, 4, 3)
    assert (past[:, -1] == 0).all()  # less the last known value
    _, (squared, absolute) = TASKS["forecast"].judge(lambda past: coming + 2, (past, coming))  # type: ignore[arg-type]
    assert (squared.item(), absolute.item()) == (pytest.approx(4), pytest.approx(2))


def test_held_out_data_are_not_trained_on() -> None:
    data = torch.arange(1000)
    random = torch.Generator().manual_seed(0)
    rows = [TASKS["masked"].draw(data, TINY, training, random)[0] for training in (True, False) * 20]
    assert max(part.max() for part in rows[::2]) < 850 <= min(part.min() for part in rows[1::2])


def test_refused_lengths_are_left_out_with_their_reason() -> None:
    longer = replace(TINY, lengths=(64, 1024))
    found = cost(Piece("cost", "causal self", "rcmha"), longer)
    assert list(found["seconds"]) == ["64"]
    assert "512" in found["refused"]["1024"]


def run_cli(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(
        sys, "argv", ["manyhead", "bench", "cab", "--output", str(folder / "run"), *arguments]
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "poetry"], "there is no task 'poetry'"),
        (["--mixers", "vanilla,magic"], "got 'magic'"),
        (["--budget", "huge"], "--budget is one of tiny, small"),
        (["--heads", "3"], "--heads must divide --channels"),
        (["--seeds", "a"], "--seeds takes"),
        (["--text", "absent.txt", "--tasks", "text", "--budget", "tiny"], "absent.txt cannot be read"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run_cli(monkeypatch, tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run" / "cab.json").exists()


@pytest.mark.browser
def test_the_command_prints_tables_and_its_page_draws(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series = tmp_path / "series.csv"
    walk = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)).cumsum(0)
    series.write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in walk.tolist()))
    options = {
        "budget": "tiny",
        "seeds": "0",
        "tasks": "forecast,reverse",
        "mixers": "abc,performer",
        "text": text,
        "series": str(series),
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert run_cli(monkeypatch, tmp_path, *arguments) == 0
    said = capsys.readouterr().out
    assert "forecast: noncausal cross" in said
    assert "performer" in said
    seen = open_page(tmp_path / "run" / "cab.html")
    assert seen.errors == []
    assert seen.charts == seen.drawn == 3
    assert "reverse: causal cross" in seen.text
    assert "performer" in seen.text


def test_the_page_of_one_mixer_alone_has_no_index(tmp_path: Path, text: str) -> None:
    one = settings(text, tasks=("text",), mixers=("linear",), seeds=(0,))
    result = run_cab(one, tmp_path / "run", progress=False)
    row = result["tasks"]["text"]["mixers"]["linear"]
    assert row["composite index"] is None
    assert row["rank score"] is None
    assert "took no part" in page(result).html()
