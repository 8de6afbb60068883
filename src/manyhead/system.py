"""A system is one paper: its parts put together, its claim, and a demonstration that measures it."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "not seen", "opposite", "undecided", "reported"]


@dataclass(frozen=True)
class Measurement:
    """One number of one demonstration under one seed, beside what the paper says.

    Args:
        what: the quantity, in words; equal over seeds, so that runs can be joined by it.
        paper: the paper's own figure or claim, as text.
        baseline: the number it is compared with in the same run, or None where the claim is a bound.
        here: the number measured.
        holds: whether the claim is met in this run (direction, or bound); None for a number without a claim.
        better: which direction the paper claims for `here` against `baseline`.
        unit: unit of both numbers, for the table.
    """

    what: str
    paper: str
    baseline: float | None
    here: float
    holds: bool | None
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""


@dataclass(frozen=True)
class System:
    """One paper in the catalogue.

    Args:
        slug: short name, as in the file `systems/<slug>.py`.
        title: the paper's title.
        year: year of publication.
        arxiv: arXiv identifier, empty where there is none.
        claim: the claim that the demonstration measures, in one sentence.
        demo: `demo(seed, budget)` runs the demonstration in about `budget` seconds and returns what
            it measured; it asserts nothing.
        budget: seconds that one seed of the demonstration needs on two cores.
        notes: Markdown for the system's page: which reading is followed where paper and code
            disagree, what data are used, what falls short.
    """

    slug: str
    title: str
    year: int
    arxiv: str
    claim: str
    demo: Callable[[int, float], list[Measurement]]
    budget: float = 120.0
    notes: str = ""


@dataclass(frozen=True)
class Finding:
    """One quantity over all seeds: means, a 95 % interval of the advantage, and the verdict."""

    what: str
    paper: str
    baseline: float | None
    here: float
    interval: tuple[float, float] | None
    seeds: int
    verdict: Verdict
    unit: str


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None for fewer than two finite values."""
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return None
    from scipy.stats import t  # scipy.stats is slow to import, and only reports need it

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def judge(runs: Sequence[Measurement]) -> Finding:
    """Join the measurements of one quantity over seeds into a finding.

    With a baseline the verdict rests on the paired difference, signed so that positive is what the
    paper claims: 'holds' if its 95 % interval lies above zero and every run meets the claim, 'opposite'
    if it lies below zero, 'undecided' with fewer than three seeds or where some runs meet a stricter
    claim, else 'not seen'. Without a baseline the claim is a bound: it holds if every run meets it.
    Numbers without a claim are 'reported'.

    Raises:
        ValueError: if `runs` is empty or mixes quantities.
    """
    if not runs or len({run.what for run in runs}) != 1:
        raise ValueError("judge() takes the runs of exactly one quantity")
    first = runs[0]
    sign = 1.0 if first.better == "higher" else -1.0
    here = statistics.fmean(run.here for run in runs)
    met = sum(bool(run.holds) for run in runs)
    verdict: Verdict
    if any(run.baseline is None for run in runs):
        baseline, span = None, interval([run.here for run in runs])
        verdict = "holds" if met == len(runs) else ("not seen" if met == 0 else "undecided")
    else:
        differences = [sign * (run.here - run.baseline) for run in runs if run.baseline is not None]
        baseline = statistics.fmean(run.baseline for run in runs if run.baseline is not None)
        span = interval(differences)
        if span is None:
            verdict = "undecided"
        elif span[0] > 0:
            verdict = "holds" if met == len(runs) else "undecided"
        elif span[1] < 0:
            verdict = "opposite"
        else:
            verdict = "not seen" if len(runs) >= 3 else "undecided"
    if all(run.holds is None for run in runs):
        verdict = "reported"
    return Finding(first.what, first.paper, baseline, here, span, len(runs), verdict, first.unit)
