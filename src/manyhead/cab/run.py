"""Run the benchmark: choose the pieces, do those that are not done, and sum up."""

import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from manyhead import __version__
from manyhead.cab.budgets import Budget
from manyhead.cab.pieces import Piece, Sources, make_mixer, run_piece
from manyhead.cab.result import summary
from manyhead.cab.tasks import TASKS
from manyhead.demonstration import machine
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.mixers.base import CAUSAL_CROSS, NONCAUSAL_CROSS
from manyhead.mixers.catalogue import NAMES, uses_of
from manyhead.testing.mixers import check_mixer
from manyhead.training.checkpoint import RunFolder
from manyhead.work import run_items


@dataclass(frozen=True)
class Settings:
    """What a benchmark compares.

    Args:
        tasks: names of `TASKS`.
        mixers: names of the catalogue, and dotted names of classes that take `(channels, heads, causal=,
            cross=)`.
        budget: sizes and steps.
        seeds: repetitions of training.
        sources: a user's own data.
    """

    tasks: tuple[str, ...]
    mixers: tuple[str, ...]
    budget: Budget
    seeds: tuple[int, ...] = (0, 1, 2)
    sources: Sources = field(default_factory=Sources)

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise InputError(f"there is no task {name!r}; tasks are {', '.join(TASKS)}")
        if not self.tasks or not self.mixers or not self.seeds:
            raise InputError("a task, a mixer and a seed at least are needed")
        for name, given in {"tasks": self.tasks, "mixers": self.mixers, "seeds": self.seeds}.items():
            if len(set(given)) != len(given):
                raise InputError(f"{name} come once each, got {', '.join(map(str, given))}")


def supported(mixer: str, settings: Settings) -> list[str]:
    """The uses among the tasks' that a mixer has a form for; a user's own is checked in each.

    Raises:
        InputError: if the mixer does not exist, cannot be built, breaks the contract, or has no form for
            any of the tasks.
    """
    wanted = list(dict.fromkeys(TASKS[name].use for name in settings.tasks))
    if mixer in NAMES:
        found = [use for use in wanted if use in uses_of(mixer)]
    else:
        found, refusals = [], []
        for use in wanted:
            try:
                made = make_mixer(mixer, use, settings.budget)
            except InputError as refused:
                if "cannot be imported" in str(refused) or "there is no mixer" in str(refused):
                    raise
                refusals.append(str(refused))
                continue
            except Exception as fault:
                raise InputError(
                    f"{mixer} cannot be built for {use} with (channels, heads, causal=, cross=): "
                    f"{type(fault).__name__}: {fault}"
                ) from fault
            _check(mixer, made, use, settings.budget)
            found.append(use)
        if not found:
            raise InputError("; ".join(dict.fromkeys(refusals)))
    if not found:
        have = ", ".join(sorted(uses_of(mixer)))
        raise InputError(f"{mixer} supports {have}; the tasks ask for {', '.join(wanted)}")
    return found


def _check(name: str, mixer: Any, use: str, budget: Budget) -> None:
    """Refuse a mixer that breaks the contract, before anything is trained."""
    try:
        with torch.random.fork_rng(devices=[]):
            shape = (2, 16, budget.channels)
            if use in (NONCAUSAL_CROSS, CAUSAL_CROSS):
                x, context = torch.randn(shape), torch.randn(2, 24, budget.channels)
                assert mixer.eval()(x, context).shape == x.shape, "cross-attention changes the shape"
            else:
                check_mixer(mixer, shape)
    except Exception as fault:  # an assertion of the check, or anything that the mixer itself raises
        raise InputError(f"{name} breaks the contract of a mixer in {use}: {fault}") from fault


def pieces_of(settings: Settings) -> tuple[list[Piece], list[Piece]]:
    """All pieces: of quality, and of cost.

    Raises:
        InputError: as `supported`.
    """
    uses = {mixer: supported(mixer, settings) for mixer in settings.mixers}
    judged = [
        Piece("quality", task, mixer, seed)
        for seed in settings.seeds
        for task in settings.tasks
        for mixer in settings.mixers
        if TASKS[task].use in uses[mixer]
    ]
    costs = [
        Piece("cost", use, mixer)
        for use in dict.fromkeys(TASKS[task].use for task in settings.tasks)
        for mixer in settings.mixers
        if use in uses[mixer]
    ]
    return judged, costs


def fingerprint(settings: Settings) -> dict[str, Any]:
    """What numbers depend on: settings, versions, and the content of own data and own mixers."""
    digests = {}
    for path in (settings.sources.text, settings.sources.series):
        if path is not None and Path(path).is_file():
            digests[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for name in settings.mixers:
        if name not in NAMES:
            home = sys.modules.get(name.rpartition(".")[0])
            file = None if home is None else inspect.getsourcefile(home)
            if file is not None:
                digests[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    described: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return described | {"digests": digests, "manyhead": __version__, "torch": torch.__version__}


def _begin(folder: Path, settings: Settings) -> None:
    """Note the settings in a new folder, or see that an old one has the same."""
    record, wanted = folder / "settings.json", fingerprint(settings)
    if not record.exists():
        write_text(record, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        held = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{record} is damaged: remove {folder}, or give another --output") from None
    differ = sorted(key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key))
    if differ:
        raise InputError(
            f"{folder} holds a run with other {', '.join(differ)}: give another --output, or remove it"
        )


def run_cab(
    settings: Settings,
    folder: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run what is left of a benchmark and sum it up in `cab.json` and `cab.html`.

    Args:
        settings: what is compared.
        folder: where pieces and results lie; a run that is there is continued.
        workers, ray, progress: as in `run_items`. Costs are measured one at a time, here.

    Returns:
        The summary, as in `cab.json`.

    Raises:
        InputError: if something is unknown, a mixer breaks its contract, or the folder holds another run.
        FolderInUse: if another process is running in the folder.
    """
    from manyhead.cab.page import page

    judged, costs = pieces_of(settings)
    held = RunFolder(folder)
    held.open()
    try:
        _begin(held.path, settings)
        work = partial(run_piece, held.path, settings.budget, settings.sources)
        run_items(
            work,
            _left(judged, held.path),
            workers=workers,
            ray=ray,
            title="quality",
            progress=progress,
        )
        run_items(work, _left(costs, held.path), title="cost", progress=progress)
        result = summary(held.path, settings.tasks, judged, costs) | {
            "settings": fingerprint(settings),
            "machine": machine(),
        }
        write_text(held.path / "cab.json", json.dumps(result, indent=1) + "\n")
        page(result).save(held.path / "cab.html")
    finally:
        held.close()
    return result


def _left(pieces: Sequence[Piece], folder: Path) -> list[Piece]:
    return [piece for piece in pieces if not piece.file(folder).exists()]
