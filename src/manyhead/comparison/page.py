"""The page of a comparison: table, curves, angles between gradients, two tasks against each other, advice."""

import math
from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from manyhead.comparison.interference import Conflict, pairs
from manyhead.comparison.methods import SINGLE, Method
from manyhead.comparison.report import Report, table
from manyhead.comparison.result import Comparison
from manyhead.comparison.summary import Estimate
from manyhead.insight.conflict import WHOLE
from manyhead.report.page import COLOURS, Cell, Page, escape

DASHES = ("solid", "dash", "dot", "dashdot")


def comparison_page(found: Report, command: str, machine: str) -> Page:
    """Build the page."""
    comparison = found.comparison
    page = Page(
        "Tasks together: what sharing and balancing are worth",
        f"{comparison.data}: {len(comparison.tasks)} tasks, {len(comparison.seeds)} seeds, "
        f"{comparison.limits.epochs} epochs. {command}",
    )
    page.section("Recommendation")
    page.points(found.advice)
    _table(page, found)
    _pareto(page, found)
    _curves(page, found)
    _angles(page, comparison)
    if comparison.interference:
        _interference(page, found)
    page.section("How it was measured")
    page.points(_method_points(comparison, machine))
    return page


def _look(value: Estimate) -> str:
    return "good" if value.above else ("bad" if value.below else "")


def _table(page: Page, found: Report) -> None:
    page.section(
        "Relative change against single-task models",
        "Test part. Means over seeds ± half of Student's 95 % interval; bold colour where it excludes zero.",
    )
    headings, rows = table(found)
    entries = [*found.lines, *([found.branch] if found.branch else [])]
    tasks = found.comparison.tasks
    page.table(
        ["method", *(f"{task} %" for task in tasks), *headings[-5:-2]],
        [
            [
                row[0],
                *(Cell(row[3 + 2 * place], _look(entry.change[task])) for place, task in enumerate(tasks)),
                Cell(row[-5], _look(entry.mean_change)),
                Cell(row[-4], _look(entry.gain)),
                row[-3],
            ]
            for entry, row in zip(entries, rows, strict=True)
        ],
        "'over equal': mean change less that of equal weights under the same seed, in points.",
    )
    page.words(
        "Cost: processor time of training over that of equal weights for as many epochs. Below, the time, "
        "the scores, and the learning rates that validation chose."
    )
    scored = [2 + 2 * place for place in range(len(tasks))]
    columns = [0, 1, *scored, len(headings) - 2, len(headings) - 1]
    page.table([headings[place] for place in columns], [[row[place] for place in columns] for row in rows])


def _style(place: int) -> dict[str, str]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "dash": DASHES[place // len(COLOURS) % len(DASHES)],
    }


def _pareto(page: Page, found: Report) -> None:
    comparison = found.comparison
    first, second = comparison.tasks[:2]
    page.section(
        f"{first} against {second}",
        "Every method's test scores of two tasks: large marks are means over seeds, small ones the seeds.",
    )
    figure = go.Figure()
    for place, entry in enumerate([*found.lines, *([found.branch] if found.branch else [])]):
        one, two = entry.scores[first], entry.scores[second]
        if not one.values or not two.values:
            continue
        colour = COLOURS[place % len(COLOURS)]
        symbol = ("circle", "square", "diamond", "cross")[place // len(COLOURS) % 4]
        if len(one.values) == len(two.values):
            figure.add_scatter(
                x=one.values,
                y=two.values,
                mode="markers",
                marker={"color": colour, "size": 6, "opacity": 0.45, "symbol": symbol},
                showlegend=False,
                hovertext=f"{escape(entry.label)}, one seed",
            )
        figure.add_scatter(
            x=[one.mean],
            y=[two.mean],
            mode="markers+text",
            marker={"color": colour, "size": 14, "symbol": symbol},
            text=[escape(entry.label)],
            textposition="top center",
            name=escape(entry.label),
            showlegend=False,
        )
    better = [comparison.scores[task].better for task in (first, second)]
    figure.update_xaxes(
        title=f"{escape(first)}: {escape(comparison.scores[first].name)} ({better[0]} is better)"
    )
    figure.update_yaxes(
        title=f"{escape(second)}: {escape(comparison.scores[second].name)} ({better[1]} is better)"
    )
    best = [entry.label for entry in found.lines if not _dominated(entry.scores, found, (first, second))]
    page.chart(figure, f"No other method's means are better on both tasks: {', '.join(best)}.", height=520)


def _dominated(scores: dict[str, Estimate], found: Report, tasks: tuple[str, str]) -> bool:
    """Whether another method's means are at least as good on both tasks and better on one."""
    signs = [found.comparison.scores[task].sign for task in tasks]
    own = [sign * scores[task].mean for sign, task in zip(signs, tasks, strict=True)]
    for entry in found.lines:
        other = [sign * entry.scores[task].mean for sign, task in zip(signs, tasks, strict=True)]
        if all(b >= a for a, b in zip(own, other, strict=True)) and other != own:
            return True
    return False


def _mean_curve(comparison: Comparison, method: Method, column: str) -> list[float]:
    """A column of the history, averaged over the seeds that did not diverge."""
    runs = [comparison.outcome(method, seed) for seed in comparison.seeds]
    held = [[row[column] for row in run.history] for run in runs if not run.failed]
    return [fmean(values) for values in zip(*held, strict=True)] if held else []


def _curves(page: Page, found: Report) -> None:
    comparison = found.comparison
    page.section(
        "Curves by task", "Scores on validation after every epoch, means over seeds at each method's rate."
    )
    for task, score in comparison.scores.items():
        figure = go.Figure()
        own = next(method for method in comparison.singles if method.tasks == (task,))
        for place, (label, method) in enumerate(
            [(SINGLE, own), *((method.label, method) for method in comparison.methods)]
        ):
            values = _mean_curve(comparison, method, f"validation/{task}/{score.name}")
            figure.add_scatter(
                x=list(range(1, len(values) + 1)),
                y=values,
                name=escape(label),
                mode="lines",
                line=_style(place),
            )
        figure.update_xaxes(title="epoch")
        figure.update_yaxes(title=f"validation {escape(score.name)}")
        page.chart(figure, f"{task}: {score.better} is better.", height=420)


def _angle(cosine: float) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def _looks(comparison: Comparison, method: Method, group: str) -> tuple[list[int], list[list[float]]]:
    """Steps, and for each the cosines of all pairs and seeds that exist."""
    by_step: dict[int, list[float]] = {}
    for seed in comparison.seeds:
        for step, cosines in comparison.outcome(method, seed).looks:
            by_step.setdefault(step, []).extend(value for value in cosines[group] if value == value)
    steps = sorted(step for step, values in by_step.items() if values)
    return steps, [by_step[step] for step in steps]


def _angles(page: Page, comparison: Comparison) -> None:
    page.section(
        "Angles between the tasks' gradients",
        "Over the shared weights while training; above 90 degrees a step for one works against the other.",
    )
    figure = go.Figure()
    for place, method in enumerate(comparison.methods, 1):
        steps, cosines = _looks(comparison, method, WHOLE)
        angles = [_angle(fmean(values)) for values in cosines]
        figure.add_scatter(x=steps, y=angles, name=escape(method.label), mode="lines", line=_style(place))
    figure.add_hline(y=90, line={"dash": "dot", "color": "#8C8C8C"})
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="angle in degrees")
    named = ", ".join(f"{one} and {two}" for one, two in pairs(comparison))
    page.chart(figure, f"From the mean cosine over seeds of {named}.", height=420)


def _interference(page: Page, found: Report) -> None:
    comparison = found.comparison
    page.section(
        "Interference: where gradients conflict",
        "Equal weights: mean cosine of the tasks' gradients by layer and by attention head, and its course.",
    )
    _conflict_table(page, found.conflicts)
    page.chart(_course(comparison, found.conflicts), "Blue: tasks agree; orange: they conflict.", height=460)
    page.section(
        "Interference: a task left out",
        "Equal weights with and without each task, each at its own tuned rate, paired by seed.",
    )
    page.table(
        ["task", "left out", "loss with it", "loss without", "loss rises %", "score gains %"],
        [
            [
                row.task,
                row.without,
                row.together.text(4, signed=False),
                row.alone.text(4, signed=False),
                Cell(row.rise.text(), "bad" if row.rise.above else ("good" if row.rise.below else "")),
                Cell(row.change.text(), _look(row.change)),
            ]
            for row in found.left_out
        ],
        "Test part. What the other task's presence does to a task: a positive rise is harm.",
    )
    page.section(
        "Interference: a race at equal seconds",
        "Everyone stops after the processor seconds that equal weights take; single-task models share them.",
    )
    page.table(
        ["method", "epochs done", "mean change %", "over equal"],
        [
            [
                racer.label,
                "" if math.isnan(racer.epochs) else f"{racer.epochs:.1f}",
                Cell(racer.mean_change.text(), _look(racer.mean_change)),
                Cell("" if racer.label == comparison.equal.label else racer.gain.text(), _look(racer.gain)),
            ]
            for racer in found.racers
        ],
        "Mean change against single-task models that were trained to their end.",
    )
    figure = go.Figure()
    for place, racer in enumerate(found.racers):
        figure.add_scatter(
            x=[100 * share for share, _ in racer.curve],
            y=[None if math.isnan(value) else value for _, value in racer.curve],
            name=escape(racer.label),
            mode="lines",
            line=_style(place),
        )
    figure.update_xaxes(title="per cent of the seconds of equal weights")
    figure.update_yaxes(title="mean change %")
    page.chart(figure, "The test score of the epoch that was best on validation so far.", height=420)


def _conflict_table(page: Page, rows: Sequence[Conflict]) -> None:
    page.table(
        ["place", "layer", "head", "mean cosine", "looks below zero"],
        [
            [
                row.name,
                str(row.layer or ""),
                "" if row.head is None else str(row.head),
                Cell(row.cosine.text(3), _look(row.cosine)),
                "" if math.isnan(row.against) else f"{100 * row.against:.0f} %",
            ]
            for row in rows
        ],
    )


def _course(comparison: Comparison, rows: Sequence[Conflict]) -> go.Figure:
    """Heat maps of the cosine over training: layers above, heads below."""
    layers = [row for row in rows if row.head is None]
    heads = [row for row in rows if row.head is not None]
    parts = [part for part in (layers, heads) if part]
    figure = make_subplots(
        rows=len(parts),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[len(part) + 1 for part in parts],
    )
    for place, part in enumerate(parts, 1):
        columns = [_looks(comparison, comparison.equal, row.name) for row in part]
        figure.add_heatmap(
            x=columns[0][0],
            y=[escape(row.name) for row in part],
            z=[[fmean(values) for values in cosines] for _, cosines in columns],
            zmin=-1,
            zmax=1,
            colorscale=[[0, "#D55E00"], [0.5, "#f0f0f0"], [1, "#0072B2"]],
            showscale=place == 1,
            row=place,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    figure.update_xaxes(title="step", row=len(parts), col=1)
    return figure


def _method_points(comparison: Comparison, machine: str) -> list[str]:
    limits = comparison.limits
    rates = ", ".join(f"{rate:g}" for rate in limits.rates)
    return [
        f"Every method has {limits.epochs} epochs and {len(limits.rates)} learning rates ({rates}), tried on "
        "a seed that is not reported and chosen on its validation part; each single-task model too.",
        "Training, validation and test parts are the same for all methods under one seed. The epoch that "
        "counts is the one whose mean relative change on validation is best; the test part chooses nothing.",
        "Mean change: the mean over tasks of (score - single-task score) / single-task score, with the sign "
        "that makes better positive (Maninis et al., 2019).",
        "Cost is processor time of training, without validation and without looking at gradients.",
        "Intervals are over seeds; where one method is picked as the best of several, the recommendation "
        "corrects for that (Bonferroni).",
        machine,
    ]
