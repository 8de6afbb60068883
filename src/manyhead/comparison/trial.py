"""One training run of the comparison, resumable on its own."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from manyhead.comparison.methods import Method
from manyhead.comparison.taskset import Part, Source, TaskSet, load_tasks
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.insight.conflict import ConflictWatch
from manyhead.tasks import Losses
from manyhead.training import fit
from manyhead.training.seeds import seeded
from manyhead.training.settings import NonFiniteLoss

LOOKS = 25  # looks at the tasks' gradients over a run
EVALUATED = 500  # samples of a batch where nothing is learnt


@dataclass(frozen=True)
class Trial:
    """One method at one learning rate under one seed."""

    method: Method
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its files: readable, and different for different trials."""
        text = f"{self.method.key} rate={self.rate:g} seed={self.seed}"
        short = re.sub(r"[^a-z0-9.]+", "-", text.lower())[:80].strip("-")
        return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        which = f" {self.method.tasks[0]}" if len(self.method.tasks) == 1 else ""
        return f"{self.method.label}{which}, rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Setting:
    """What all trials of a comparison share."""

    source: Source
    budget: str
    epochs: int
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What a trial left.

    Args:
        history: one dict an epoch: 'validation/<task>/<score>', 'test/<task>/<score>', 'train/<task>' and
            'cpu', the processor seconds of training it, without validation and looks.
        looks: (step, cosines by group and pair) of the tasks' gradients.
        steps: optimizer steps.
        parameters: weights of the network and its heads.
        failed: why it ended early; '' where it did not.
    """

    history: list[dict[str, float]]
    looks: list[tuple[int, dict[str, list[float]]]] = field(default_factory=list)
    steps: int = 0
    parameters: int = 0
    failed: str = ""


def result_file(folder: Path, trial: Trial) -> Path:
    """Where a finished trial's numbers are."""
    return folder / "runs" / f"{trial.name}.json"


def load_outcome(folder: Path, trial: Trial) -> Outcome:
    """Read a finished trial."""
    held = json.loads(result_file(folder, trial).read_text("utf-8"))
    looks = [(step, cosines) for step, cosines in held["looks"]]
    return Outcome(held["history"], looks, held["steps"], held["parameters"], held["failed"])


def batches(data: Any) -> list[Any]:
    """A data set in batches for evaluation."""
    return [data.batch(rows) for rows in torch.arange(len(data)).split(EVALUATED)]


def check_labels(part: str, names: Sequence[str], rows: Sequence[Any]) -> None:
    """Refuse labels from which no score can tell anything.

    Raises:
        InputError: if a task has no label, or all of its integer labels are one class.
    """
    for name in names:
        held = [batch["targets"][name].flatten() for batch in rows if name in batch["targets"]]
        labels = torch.cat(held) if held else torch.zeros(0)
        there = ~torch.isnan(labels) if labels.is_floating_point() else labels >= 0
        if not there.any():
            raise InputError(f"{part} has no label of task {name!r}")
        classes = labels[there].unique()
        if not labels.is_floating_point() and len(classes) == 1:
            raise InputError(
                f"{part} has a single class of task {name!r}, {int(classes)}: nothing to tell apart"
            )


class Measure:
    """Scores after every epoch, and the processor time of training alone.

    Args:
        task_set: the data.
        names: the tasks trained.
        watch: whose looks are not counted as training.
    """

    def __init__(self, task_set: TaskSet, names: Sequence[str], watch: ConflictWatch | None) -> None:
        self.names, self.watch = tuple(names), watch
        self.scores = task_set.scores
        self.parts = {
            part: batches(Part(getattr(task_set, part), self.names)) for part in ("validation", "test")
        }
        for part, rows in self.parts.items():
            check_labels(part, self.names, rows)
        self.started: float | None = None
        self.looked = 0.0

    def _looked(self) -> float:
        return 0.0 if self.watch is None else self.watch.seconds

    def losses(self, model: Any, batch: Any) -> Losses:
        """The losses of a batch; the clock starts with the first one of an epoch."""
        if self.started is None:
            self.started, self.looked = time.process_time(), self._looked()
        found: Losses = model.losses(batch)
        return found

    def __call__(self, model: Any) -> dict[str, float]:
        """Numbers for the history, in `fit`'s form."""
        row = {"cpu": time.process_time() - (self.started or 0.0) - (self._looked() - self.looked)}
        for part, rows in self.parts.items():
            found = model.evaluate(rows)
            for task in self.names:
                for score in dict.fromkeys(("loss", self.scores[task].name)):
                    if f"{task}/{score}" not in found:
                        known = sorted(found) or ["none"]
                        raise InputError(
                            f"{part} has no {score!r} of task {task!r}; it has {', '.join(known)}"
                        )
                    row[f"{part}/{task}/{score}"] = found[f"{task}/{score}"]
        self.started = None
        return row


def run_trial(setting: Setting, trial: Trial) -> str:
    """Train one trial, or go on with it, and keep its numbers; a finished one is left alone."""
    target = result_file(setting.folder, trial)
    if target.exists():
        shutil.rmtree(target.with_suffix(""), ignore_errors=True)  # of a kill just before it was removed
        return "done before"
    task_set = load_tasks(setting.source, trial.seed, setting.budget)
    method, folder = trial.method, target.with_suffix("")
    with seeded(trial.seed):
        model = method.model(task_set)
        balancer = method.build(task_set)
    train = Part(task_set.train, method.tasks)
    watch = None
    if len(method.tasks) > 1:
        steps = setting.epochs * (len(train) // task_set.batch_size)
        watch = ConflictWatch(balancer, model.network, every=max(1, steps // LOOKS))
    measure = Measure(task_set, method.tasks, watch)
    failed, history, steps_done = "", [], 0
    try:
        fitted = fit(
            model,
            train,
            losses=measure.losses,
            batch_size=min(task_set.batch_size, len(train)),
            epochs=setting.epochs,
            validate=measure,
            balancer=watch or balancer,
            optimizer=partial(torch.optim.Adam, lr=trial.rate),
            drop_last=True,
            seed=trial.seed,
            folder=folder,
            resume=True,
            logs=(),
        )
        history, steps_done = fitted.history, fitted.steps
    except NonFiniteLoss as fault:  # a rate that is too high is a result, not the end of the comparison
        failed = str(fault).split("; ")[0]
    weights = sum(parameter.numel() for parameter in model.parameters())
    looks = [] if watch is None else [(look.step, look.cosines) for look in watch.looks]
    kept = {"history": history, "looks": looks, "steps": steps_done, "parameters": weights, "failed": failed}
    write_text(target, json.dumps({"trial": str(trial), **kept}) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    return failed or "trained"
