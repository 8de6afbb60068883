"""One piece of the benchmark: a mixer's quality at a task under a seed, or its cost in a use.

A piece writes one JSON file, whole or not at all, and is done when the file is there. Its result depends
on nothing but its own description, so that a run that was killed continues to the same numbers.
"""

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from manyhead.cab.budgets import Budget
from manyhead.cab.tasks import TASKS, Make, Task, read_series, read_text
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.kernels.measure import peak_bytes, seconds
from manyhead.mixers.base import CAUSAL_CROSS, CAUSAL_SELF, NONCAUSAL_CROSS, Mixer
from manyhead.mixers.catalogue import build

JUDGED = 10_000  # seed of the held-out batches, the same for every mixer and seed


@dataclass(frozen=True)
class Piece:
    """What is measured: a task with a seed, or a use's cost."""

    kind: Literal["quality", "cost"]
    subject: str  # a task, or a use
    mixer: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.kind} of {self.mixer}, {self.subject}" + (
            f", seed {self.seed}" if self.kind == "quality" else ""
        )

    def file(self, folder: Path) -> Path:
        """Where the result is."""
        name = f"{self.kind}-{self.subject.replace(' ', '-')}-{self.mixer}-{self.seed}.json"
        return folder / "pieces" / name


@dataclass(frozen=True)
class Sources:
    """Files of a user's own data; None for the data that come with Python and skfolio."""

    text: str | None = None
    series: str | None = None


def make_mixer(name: str, use: str, budget: Budget) -> Mixer:
    """Build a mixer for a use; long-short attention's windows and chunks are scaled to the samples.

    Its own are for thousands of tokens, and short samples would be padded to them.
    """
    options: dict[str, Any] = {}
    if name == "longshort" and use == CAUSAL_SELF:
        options = {"chunk": max(2, budget.length // 8), "width": max(4, budget.length // 4)}
    return build(
        name,
        budget.channels,
        budget.heads,
        causal=use in (CAUSAL_SELF, CAUSAL_CROSS),
        cross=use in (NONCAUSAL_CROSS, CAUSAL_CROSS),
        **options,
    )


@functools.lru_cache(maxsize=2)
def _data(wants: str, path: str | None) -> torch.Tensor:
    return read_text(path) if wants == "text" else read_series(path)


def train_and_judge(
    task: Task, data: torch.Tensor, budget: Budget, seed: int, make: Make
) -> tuple[dict[str, float], float]:
    """Train a task's network and judge it on held-out batches, which are the same for every seed.

    Returns:
        Metrics by name, and seconds of the thread for each step.
    """
    steps = task.pace * budget.steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = task.network(data, budget, make)
        random = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(network.parameters(), budget.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, budget.rate, total_steps=steps + 1, pct_start=0.1
        )
        begun = time.thread_time()
        for _ in range(steps):
            loss, _ = task.judge(network, task.draw(data, budget, True, random))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        spent = time.thread_time() - begun
        network.eval()
        random.manual_seed(JUDGED)
        with torch.no_grad():
            judged = [
                task.judge(network, task.draw(data, budget, False, random))[1] for _ in range(budget.tests)
            ]
    found = torch.stack(judged).mean(0).double().tolist()
    return dict(zip(task.metrics, found, strict=True)), spent / steps


def quality(piece: Piece, budget: Budget, sources: Sources) -> dict[str, Any]:
    """What `train_and_judge` finds for a piece, with the mixer's number of parameters."""
    task = TASKS[piece.subject]
    data = _data(task.wants, sources.text if task.wants == "text" else sources.series)
    make: Make = lambda depth: make_mixer(piece.mixer, task.use, budget)  # noqa: E731
    metrics, spent = train_and_judge(task, data, budget, piece.seed, make)
    parameters = sum(weight.numel() for weight in make(0).parameters())
    return {"metrics": metrics, "seconds a step": spent, "parameters": parameters}


def cost(piece: Piece, budget: Budget) -> dict[str, Any]:
    """Processor time and peak memory of a forward and backward pass over lengths.

    A length that the mixer refuses is left out, with its reason.
    """
    use = piece.subject
    found: dict[str, Any] = {"seconds": {}, "bytes": {}, "refused": {}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(piece.seed)
        mixer = make_mixer(piece.mixer, use, budget)
        for length in budget.lengths:
            x = torch.randn(1, length, budget.channels, requires_grad=True)
            inputs = [x, torch.randn_like(x)] if use in (NONCAUSAL_CROSS, CAUSAL_CROSS) else [x]

            def run(inputs: list[torch.Tensor] = inputs) -> None:
                mixer.zero_grad()
                torch.autograd.backward(mixer(*inputs).square().mean())

            try:
                found["seconds"][str(length)] = seconds(run, budget.repeats, time.thread_time)
                found["bytes"][str(length)] = peak_bytes(run)
            except InputError as refused:
                found["refused"][str(length)] = str(refused)
    return found


def run_piece(folder: Path, budget: Budget, sources: Sources, piece: Piece) -> str:
    """Measure a piece, store it, and return a line for the display.

    Raises:
        InputError: if the mixer fails, naming piece and fault.
    """
    begun = time.perf_counter()
    try:
        found = quality(piece, budget, sources) if piece.kind == "quality" else cost(piece, budget)
    except InputError:
        raise
    except Exception as fault:  # a user's own mixer may fail in any way
        raise InputError(f"{piece} failed: {type(fault).__name__}: {fault}") from fault
    found["elapsed"] = time.perf_counter() - begun
    write_text(piece.file(folder), json.dumps(found, indent=1) + "\n")
    if piece.kind == "cost":
        return ", ".join(f"{n}: {1e3 * t:.3g} ms" for n, t in found["seconds"].items())
    return ", ".join(f"{name} {value:.3g}" for name, value in found["metrics"].items())


def read_piece(folder: Path, piece: Piece) -> dict[str, Any]:
    """What a piece stored.

    Raises:
        InputError: if its file is not what a piece writes.
    """
    try:
        found: dict[str, Any] = json.loads(piece.file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise InputError(f"{piece.file(folder)} cannot be read ({fault}): remove it and run again") from None
    return found
