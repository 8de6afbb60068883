"""Which epoch of a run counts: the best on validation, by the mean relative change against single tasks."""

import math
from collections.abc import Mapping, Sequence

from manyhead.comparison.methods import Method
from manyhead.comparison.result import Comparison
from manyhead.comparison.taskset import Score
from manyhead.comparison.trial import Outcome

Row = Mapping[str, float]


def relative(value: float, reference: float, score: Score) -> float:
    """Change against a reference as a share of it, positive where it is better.

    Maninis et al., 'Attentive Single-Tasking of Multiple Tasks', 2019, arXiv 1904.08918, equation 4: its mean
    over tasks is what the literature calls Delta m.
    """
    return score.sign * (value - reference) / abs(reference) if reference else math.nan


def progress(
    row: Row,
    part: str,
    tasks: Sequence[str],
    scores: Mapping[str, Score],
    against: Mapping[str, float] | None,
) -> float:
    """How good an epoch is on one part of the data, higher is better.

    Args:
        row: an epoch of a history.
        part: 'validation' or 'test'.
        tasks: the tasks of the run.
        scores: how they are judged.
        against: task -> score of its single-task model, for the mean relative change; None for a single
            task, whose own score decides.
    """
    values = [row[f"{part}/{task}/{scores[task].name}"] for task in tasks]
    if against is None:
        return scores[tasks[0]].sign * values[0]
    changes = [
        relative(value, against[task], scores[task]) for task, value in zip(tasks, values, strict=True)
    ]
    return math.fsum(changes) / len(changes)


def best_epoch(
    outcome: Outcome,
    tasks: Sequence[str],
    scores: Mapping[str, Score],
    against: Mapping[str, float] | None,
    within: float = math.inf,
) -> int:
    """Place in the history of the epoch that is best on validation; the first of equals.

    Args:
        outcome: a run that did not diverge.
        tasks, scores, against: as in `progress`.
        within: processor seconds of training; later epochs do not count.

    Returns:
        the place, or -1 where not even the first epoch is done in that time.
    """
    best, found, spent = -math.inf, -1, 0.0
    for place, row in enumerate(outcome.history):
        spent += row["cpu"]
        if spent > within:
            break
        value = progress(row, "validation", tasks, scores, against)
        if found < 0 or value > best:
            best, found = (-math.inf if math.isnan(value) else value), place
    return found


def references(comparison: Comparison, seed: int, part: str) -> dict[str, float]:
    """Score of every single-task model on one part, at its epoch that is best on validation."""
    found = {}
    for method in comparison.singles:
        (task,) = method.tasks
        outcome = comparison.outcome(method, seed)
        if outcome.failed:
            found[task] = math.nan
            continue
        row = outcome.history[best_epoch(outcome, method.tasks, comparison.scores, None)]
        found[task] = row[f"{part}/{task}/{comparison.scores[task].name}"]
    return found


def chosen(comparison: Comparison, method: Method, seed: int, within: float = math.inf) -> Row | None:
    """The epoch of a run that counts; None where it diverged or none was done in time."""

    outcome = comparison.outcome(method, seed)
    if outcome.failed:
        return None
    against = None if len(method.tasks) == 1 else references(comparison, seed, "validation")
    place = best_epoch(outcome, method.tasks, comparison.scores, against, within)
    return None if place < 0 else outcome.history[place]
