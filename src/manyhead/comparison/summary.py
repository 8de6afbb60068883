"""The table of a comparison: relative change by task, its mean, the gain over equal weights, the price."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from manyhead.comparison.epochs import chosen, references, relative
from manyhead.comparison.methods import SINGLE, Method
from manyhead.comparison.result import Comparison
from manyhead.system import interval


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with half the width of Student's 95 % interval.

    Args:
        mean: NaN without values.
        half: NaN for fewer than two values.
        values: one a seed.
    """

    mean: float
    half: float
    values: tuple[float, ...]

    @property
    def above(self) -> bool:
        """Whether the interval lies above zero."""
        return self.mean - self.half > 0

    @property
    def below(self) -> bool:
        """Whether the interval lies below zero."""
        return self.mean + self.half < 0

    def text(self, digits: int = 2, signed: bool = True) -> str:
        """'+0.40 ± 0.31', or '' without values."""
        if math.isnan(self.mean):
            return ""
        mean = f"{self.mean:{'+' if signed else ''}.{digits}f}"
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Join one value a seed; values that are not finite are left out."""
    held = tuple(value for value in values if math.isfinite(value))
    if not held:
        return Estimate(math.nan, math.nan, ())
    span = interval(held)
    return Estimate(fmean(held), math.nan if span is None else (span[1] - span[0]) / 2, held)


@dataclass(frozen=True)
class Line:
    """One method over all seeds.

    Args:
        label: its name.
        rates: learning rates chosen, one a model.
        scores: task -> test score at the epoch chosen on validation.
        change: task -> change against its single-task model in per cent, positive is better.
        mean_change: the mean over tasks.
        gain: mean change less that of equal weights under the same seed, in points.
        seconds: processor seconds of training all models of the method once.
        cost: that over equal weights, for as many epochs.
        parameters: weights of all its models.
        epochs: the epochs chosen, by seed (a mean over single-task models).
        failed: seeds under which it diverged.
    """

    label: str
    rates: tuple[float, ...]
    scores: dict[str, Estimate]
    change: dict[str, Estimate]
    mean_change: Estimate
    gain: Estimate
    seconds: Estimate
    cost: float
    parameters: int
    epochs: tuple[float, ...]
    failed: tuple[int, ...] = field(default=())


def changes(comparison: Comparison, method: Method, seed: int, within: float = math.inf) -> dict[str, float]:
    """Change of every task of a method against its single-task model on the test part, in per cent."""
    row = chosen(comparison, method, seed, within)
    if row is None:
        return dict.fromkeys(method.tasks, math.nan)
    against = references(comparison, seed, "test")
    return {
        task: 100
        * relative(row[f"test/{task}/{comparison.scores[task].name}"], against[task], comparison.scores[task])
        for task in method.tasks
    }


def training_seconds(comparison: Comparison, methods: Sequence[Method], seed: int) -> float:
    """Processor seconds of training some models, all their epochs."""
    rows = [row for method in methods for row in comparison.outcome(method, seed).history]
    return math.fsum(row["cpu"] for row in rows) if rows else math.nan


def line(comparison: Comparison, label: str, methods: Sequence[Method]) -> Line:
    """The line of one method, or of the single-task models together."""
    scores: dict[str, list[float]] = {task: [] for task in comparison.tasks}
    change: dict[str, list[float]] = {task: [] for task in comparison.tasks}
    means, gains, seconds, prices, epochs, failed = [], [], [], [], [], []
    for seed in comparison.seeds:
        found: dict[str, float] = {}
        picked = []
        for method in methods:
            row = chosen(comparison, method, seed)
            if row is None:
                continue
            picked.append(row["epoch"])
            found |= changes(comparison, method, seed)
            for task in method.tasks:
                scores[task].append(row[f"test/{task}/{comparison.scores[task].name}"])
        if len(found) < len(comparison.tasks):
            failed.append(seed)
            continue
        for task, value in found.items():
            change[task].append(value)
        equal = changes(comparison, comparison.equal, seed)
        means.append(fmean(found.values()))
        gains.append(means[-1] - fmean(equal.values()))
        epochs.append(fmean(picked))
        seconds.append(training_seconds(comparison, methods, seed))
        prices.append(seconds[-1] / training_seconds(comparison, [comparison.equal], seed))
    held = [price for price in prices if math.isfinite(price)]
    return Line(
        label=label,
        rates=tuple(comparison.rates[method.key] for method in methods),
        scores={task: estimate(values) for task, values in scores.items()},
        change={task: estimate(values) for task, values in change.items()},
        mean_change=estimate(means),
        gain=estimate(gains),
        seconds=estimate(seconds),
        cost=fmean(held) if held else math.nan,
        parameters=sum(comparison.outcome(method, comparison.seeds[0]).parameters for method in methods),
        epochs=tuple(epochs),
        failed=tuple(failed),
    )


def summary(comparison: Comparison) -> list[Line]:
    """Single-task models first, then every method in the order asked for."""
    lines = [line(comparison, SINGLE, comparison.singles)]
    return lines + [line(comparison, method.label, [method]) for method in comparison.methods]
