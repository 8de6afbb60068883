"""Where tasks disturb each other, what leaving one out changes, who wins at equal seconds, and what to do.

Measured on the runs of a comparison: the cosines of task gradients under equal weights, runs without each
task, and runs that share only the layers below the first that conflicts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from torch import nn

from manyhead.comparison.epochs import chosen, relative
from manyhead.comparison.methods import SINGLE
from manyhead.comparison.result import TUNING_SEED, Comparison
from manyhead.comparison.summary import Estimate, changes, estimate, training_seconds
from manyhead.comparison.taskset import Score, TaskSet
from manyhead.insight.conflict import Group, groups


@dataclass(frozen=True)
class Conflict:
    """How the tasks' gradients lie to each other in one place, under equal weights.

    Args:
        name: of the layer or head.
        layer: its place in depth, from 1; 0 for the whole network.
        head: number of the head, None for a layer.
        cosine: mean over pairs and looks, over seeds.
        against: share of looks at pairs whose cosine is negative, mean over seeds.
    """

    name: str
    layer: int
    head: int | None
    cosine: Estimate
    against: float


@dataclass(frozen=True)
class Fork:
    """Where the network should branch.

    Args:
        layer: name of the first layer whose gradients conflict.
        shared_layers: layers below it.
        children: children of the sequential network below it.
    """

    layer: str
    shared_layers: int
    children: int


def compared_groups(comparison: Comparison, task_set: TaskSet) -> list[Group]:
    """Layers and heads of the compared network."""
    model = task_set.model(comparison.tasks)
    return groups(model.network, model.shared_parameters())


def conflict_table(comparison: Comparison, compared: Sequence[Group]) -> list[Conflict]:
    """Conflict by layer and head over the reported seeds."""
    rows = []
    for group in compared:
        means, shares = [], []
        for seed in comparison.seeds:
            looks = comparison.outcome(comparison.equal, seed).looks
            held = [value for _, cosines in looks for value in cosines[group.name] if value == value]
            if held:
                means.append(fmean(held))
                shares.append(fmean(value < 0 for value in held))
        against = fmean(shares) if shares else math.nan
        rows.append(Conflict(group.name, group.layer, group.head, estimate(means), against))
    return rows


def first_conflict(rows: Sequence[Conflict]) -> Conflict | None:
    """The lowest layer whose mean cosine lies below zero with its whole interval over seeds."""
    return next((row for row in rows if row.layer and row.head is None and row.cosine.below), None)


def fork_depth(comparison: Comparison, task_set: TaskSet) -> Fork | None:
    """Where to branch: below the first conflicting layer, if that is inside a sequential network."""
    found = first_conflict(conflict_table(comparison, compared_groups(comparison, task_set)))
    network = task_set.model(comparison.tasks).network
    if found is None or not isinstance(network, nn.Sequential):
        return None
    names = [name for name, _ in network.named_children()]
    children = names.index(found.name.split(".")[0])
    return Fork(found.name, found.layer - 1, children) if children else None


@dataclass(frozen=True)
class LeftOut:
    """What a task's absence does to another.

    Args:
        task: the task that stays.
        without: the task that is left out.
        together: its test loss with all tasks.
        alone: its test loss without that one.
        rise: what the other task's presence adds to the loss, in per cent of the loss without it.
        change: what it adds to the score, in per cent, positive is better.
    """

    task: str
    without: str
    together: Estimate
    alone: Estimate
    rise: Estimate
    change: Estimate


def left_out_table(comparison: Comparison) -> list[LeftOut]:
    """Every task with and without every other, equal weights, paired by seed."""
    rows = []
    for without, method in comparison.left_out.items():
        for task in method.tasks:
            with_it, without_it, rises, gains = [], [], [], []
            score = comparison.scores[task]
            for seed in comparison.seeds:
                all_tasks = chosen(comparison, comparison.equal, seed)
                fewer = chosen(comparison, method, seed)
                if all_tasks is None or fewer is None:
                    continue
                place, judged = f"test/{task}/loss", f"test/{task}/{score.name}"
                with_it.append(all_tasks[place])
                without_it.append(fewer[place])
                rises.append(-100 * relative(all_tasks[place], fewer[place], Score()))
                gains.append(100 * relative(all_tasks[judged], fewer[judged], score))
            rows.append(
                LeftOut(
                    task,
                    without,
                    estimate(with_it),
                    estimate(without_it),
                    estimate(rises),
                    estimate(gains),
                )
            )
    return rows


@dataclass(frozen=True)
class Racer:
    """One method when everyone has the processor seconds that equal weights took.

    Args:
        label: its name.
        epochs: epochs it finished in that time, mean over seeds (of single tasks: of each model).
        mean_change: mean relative change on the test part, per cent; without seeds where it finished none.
        gain: that less equal weights'.
        curve: (share of the time, mean change) pairs; NaN until every seed has an epoch.
    """

    label: str
    epochs: float
    mean_change: Estimate
    gain: Estimate
    curve: list[tuple[float, float]]


POINTS = 24  # of a racer's curve


def race(comparison: Comparison) -> list[Racer]:
    """Everyone stops after the seconds of equal weights; single-task models share these equally."""
    entries = [(SINGLE, comparison.singles), *((method.label, [method]) for method in comparison.methods)]
    racers = []
    for label, methods in entries:
        ends, gains, done = [], [], []
        along: list[list[float]] = [[] for _ in range(POINTS)]
        for seed in comparison.seeds:
            if any(comparison.outcome(method, seed).failed for method in methods):
                continue
            whole = training_seconds(comparison, [comparison.equal], seed)
            for place in range(POINTS):
                within = whole * (place + 1) / POINTS / len(methods)
                found = [
                    value
                    for method in methods
                    for value in changes(comparison, method, seed, within).values()
                ]
                along[place].append(fmean(found))
            ends.append(along[-1][-1])
            equal = changes(comparison, comparison.equal, seed)
            gains.append(ends[-1] - fmean(equal.values()))
            counted = []
            for method in methods:
                spent, number = 0.0, 0
                for row in comparison.outcome(method, seed).history:
                    spent += row["cpu"]
                    number += spent <= whole / len(methods)
                counted.append(number)
            done.append(fmean(counted))
        curve = [
            ((place + 1) / POINTS, fmean(values) if values else math.nan)
            for place, values in enumerate(along)
        ]
        epochs = fmean(done) if done else math.nan
        racers.append(Racer(label, epochs, estimate(ends), estimate(gains), curve))
    return racers


def pairs(comparison: Comparison) -> list[tuple[str, str]]:
    """Pairs of tasks in the order of a look's cosines."""
    return list(combinations(comparison.tasks, 2))


__all__ = [
    "TUNING_SEED",
    "Conflict",
    "Fork",
    "LeftOut",
    "Racer",
    "compared_groups",
    "conflict_table",
    "first_conflict",
    "fork_depth",
    "left_out_table",
    "pairs",
    "race",
]
