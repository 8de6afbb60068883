"""What a comparison found, in one value: for JSON, the terminal and the page."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from manyhead.comparison.interference import (
    Conflict,
    LeftOut,
    Racer,
    compared_groups,
    conflict_table,
    left_out_table,
    race,
)
from manyhead.comparison.recommendation import recommendation
from manyhead.comparison.result import Comparison
from manyhead.comparison.summary import Line, line, summary
from manyhead.comparison.taskset import Source, load_tasks
from manyhead.training.seeds import seeded


@dataclass(frozen=True)
class Report:
    """The findings of a comparison.

    Args:
        comparison: what was trained.
        lines: single-task models, equal weights, balancers.
        branch: equal weights above a branching, where that was measured.
        conflicts: by layer and head, under equal weights.
        left_out: by pair of tasks; empty without the interference report.
        racers: everyone at the seconds of equal weights; empty likewise.
        advice: sentences.
    """

    comparison: Comparison
    lines: list[Line]
    branch: Line | None
    conflicts: list[Conflict]
    left_out: list[LeftOut]
    racers: list[Racer]
    advice: list[str]


def report(comparison: Comparison, source: Source) -> Report:
    """Join the runs of a comparison."""
    task_set = load_tasks(source, comparison.seeds[0], comparison.budget)
    with seeded(0):
        compared = compared_groups(comparison, task_set)
    conflicts = conflict_table(comparison, compared)
    wanted, forked = comparison.interference, comparison.forked
    return Report(
        comparison=comparison,
        lines=summary(comparison),
        branch=None if forked is None else line(comparison, forked.label, [forked]),
        conflicts=conflicts,
        left_out=left_out_table(comparison) if wanted else [],
        racers=race(comparison) if wanted else [],
        advice=recommendation(comparison, conflicts if wanted else None),
    )


def as_dict(found: Report, command: str, machine: str) -> dict[str, Any]:
    """For JSON: numbers that do not exist are null."""
    comparison = found.comparison
    plain = {
        "command": command,
        "machine": machine,
        "data": comparison.data,
        "budget": comparison.budget,
        "epochs": comparison.limits.epochs,
        "rates": list(comparison.limits.rates),
        "seeds": list(comparison.seeds),
        "scores": {task: asdict(score) for task, score in comparison.scores.items()},
        "lines": [asdict(line) for line in found.lines],
        "branch": None if found.branch is None else asdict(found.branch),
        "tried": [
            {
                "method": method.label,
                "tasks": list(method.tasks),
                "validation": [[rate, value] for rate, value in comparison.tried[method.key].items()],
            }
            for method in (*comparison.singles, *comparison.methods)
        ],
        "conflicts": [asdict(row) for row in found.conflicts],
        "left_out": [asdict(row) for row in found.left_out],
        "race": [asdict(row) for row in found.racers],
        "recommendation": found.advice,
    }
    cleaned: dict[str, Any] = _finite(plain)
    return cleaned


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(held) for held in value]
    return value


def table(found: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the main table."""
    comparison = found.comparison
    headings = ["method", "rate"]
    for task, score in comparison.scores.items():
        headings += [f"{task} {score.name}", "change %"]
    headings += ["mean change %", "over equal", "cost", "seconds", "weights"]
    rows = []
    for entry in (*found.lines, *([found.branch] if found.branch else [])):
        rates = "/".join(f"{rate:g}" for rate in dict.fromkeys(entry.rates))
        row = [entry.label, rates]
        for task in comparison.tasks:
            row += [entry.scores[task].text(4, signed=False), entry.change[task].text()]
        gain = "" if entry.label == comparison.equal.label else entry.gain.text()
        cost = "" if math.isnan(entry.cost) else f"{entry.cost:.2f}x"
        row += [entry.mean_change.text(), gain, cost, entry.seconds.text(1, signed=False)]
        row.append(f"{entry.parameters:,}")
        if entry.failed:
            row[0] += f" (diverged on seed {', '.join(map(str, entry.failed))})"
        rows.append(row)
    return headings, rows
