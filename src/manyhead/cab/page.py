"""The benchmark as a page: what each mixer costs and loses, use by use."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from manyhead.cab.result import REFERENCE
from manyhead.report.page import COLOURS, Cell, Page, escape

COLUMNS = (
    "composite index",
    "rank score",
    "step time",
    "time",
    "cheaper in time from",
    "memory",
    "in memory from",
    "parameters",
)


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def crossing(found: dict[str, Any] | None) -> str:
    """An efficiency length with the R^2 of the mixer's fit."""
    if found is None:
        return "–"
    return f"{number(found['length'], ',.0f') if found['length'] else 'never'} ({found['r2'][1]:.2f})"


def cells(row: dict[str, Any]) -> list[str]:
    """A mixer's row: each metric, then `COLUMNS`."""
    cost = row["cost"]
    metrics = [
        number(found["mean"], ".4g")
        + ("" if found["deviation"] is None else f" ± {number(found['deviation'], '.1g')}")
        for found in row["metrics"].values()
    ]
    return [
        *metrics,
        number(row["composite index"], "+.2f"),
        number(row["rank score"], ".2f"),
        number(row.get("step time over vanilla"), ".2f"),
        number(cost.get("time over vanilla"), ".2f"),
        crossing(cost.get("efficiency length, time")),
        number(cost.get("memory over vanilla"), ".2f"),
        crossing(cost.get("efficiency length, memory")),
        number(row.get("parameters over vanilla"), ".2f"),
    ]


def page(result: dict[str, Any]) -> Page:
    """Lay a summary out as a page."""
    tasks, settings = result["tasks"], result["settings"]
    budget = settings["budget"]
    made = Page(
        "Which attention, and what does it cost?",
        f"{len({mixer for task in tasks.values() for mixer in task['mixers']})} mixers, {len(tasks)} tasks, "
        f"{budget['steps']} steps each, {len(settings['seeds'])} seeds · {result['machine']}",
    )
    made.headline([_best(name, task) for name, task in tasks.items()])
    made.section(
        "Quality against time",
        "Every mixer trains as many steps. To the left is faster, up is better; softmax attention is at 1.",
    )
    made.chart(trade_off(tasks), "Composite index over the time of a training step.", 430 * _lines(tasks))
    for name, task in tasks.items():
        made.section(f"{name}: {task['use']}", _lead(task))
        rows: list[list[str | Cell]] = [
            [Cell(mixer, "strong" if mixer == REFERENCE else ""), *cells(row)]
            for mixer, row in task["mixers"].items()
        ]
        made.table(["mixer", *task["metrics"], *COLUMNS], rows, _caption(task))
    made.section("Cost over length", "A forward and a backward pass of one mixer, one sample.")
    made.chart(costs(tasks, "seconds", 1e3), "Processor time in milliseconds by tokens.", 400 * _lines(tasks))
    made.chart(costs(tasks, "bytes", 2**-20), "Peak memory in MiB by tokens.", 400 * _lines(tasks))
    made.section("How to read this")
    made.points(
        [
            "Composite index: metrics standardised over the mixers that ran, signed so that higher is "
            "better, averaged; one bad outlier widens the scale for all, so the rank score, the share of "
            "rivals beaten, stands beside it.",
            "Efficiency length: tokens from which the mixer costs less than softmax attention, by a parabola "
            "through softmax attention and a line through the mixer (R² of the line in brackets). Softmax "
            "attention here is fused and keeps no matrix of weights, so that its memory grows linearly and "
            "often no length saves any.",
            "Differences smaller than the deviation over seeds are no differences.",
            f"{result['core seconds'] / 60:.1f} core-minutes.",
        ]
    )
    return made


def _lines(tasks: dict[str, Any]) -> int:
    return -(-len(tasks) // 2)


def _best(name: str, task: dict[str, Any]) -> tuple[str, str, str]:
    mixer, row = next(iter(task["mixers"].items()))
    metric, found = next(iter(row["metrics"].items()))
    return f"best at {name}", mixer, f"{number(found['mean'], '.4g')} {metric}"


def _lead(task: dict[str, Any]) -> str:
    rows = task["mixers"]
    if REFERENCE not in rows:
        return "Softmax attention took no part; costs are not compared."
    place = list(rows).index(REFERENCE) + 1
    return f"Softmax attention is number {place} of {len(rows)}."


def _caption(task: dict[str, Any]) -> str:
    longest = max((row["cost"].get("longest", 0) for row in task["mixers"].values()), default=0)
    refused = [mixer for mixer, row in task["mixers"].items() if row["cost"]["refused"]]
    text = (
        "Times, memory and parameters are over softmax attention's: of a training step, and of a forward and "
        f"backward pass at {longest:,} tokens (the longest that a mixer takes)."
    )
    return text + (f" Not at every length: {', '.join(refused)}." if refused else "")


def _panels(tasks: dict[str, Any]) -> go.Figure:
    columns = min(2, len(tasks))
    titles = [escape(f"{name}: {task['use']}") for name, task in tasks.items()]
    return make_subplots(
        rows=_lines(tasks),
        cols=columns,
        subplot_titles=titles,
        vertical_spacing=0.34 / _lines(tasks),
        horizontal_spacing=0.11,
    )


def _place(n: int) -> dict[str, int]:
    return {"row": n // 2 + 1, "col": n % 2 + 1}


def _colours(tasks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A colour and a symbol of each mixer, the same in every panel."""
    symbols = ("circle", "diamond", "square", "triangle-up")
    names = dict.fromkeys(mixer for task in tasks.values() for mixer in task["mixers"])
    return {
        name: {"color": COLOURS[n % len(COLOURS)], "symbol": symbols[n // len(COLOURS) % len(symbols)]}
        for n, name in enumerate(names)
    }


def trade_off(tasks: dict[str, Any]) -> go.Figure:
    """Composite index over step time, a panel a task."""
    figure, looks = _panels(tasks), _colours(tasks)
    for n, task in enumerate(tasks.values()):
        for mixer, row in task["mixers"].items():
            figure.add_scatter(
                x=[row.get("step time over vanilla", row["seconds a step"])],
                y=[row["composite index"] or 0.0],
                mode="markers+text",
                text=[escape(mixer.rpartition(".")[2])],
                textposition="top center",
                textfont={"size": 11},
                marker={"size": 13 if mixer == REFERENCE else 9, **looks[mixer]},
                name=escape(mixer),
                showlegend=False,
                **_place(n),
            )
        figure.update_xaxes(title_text="step time over softmax attention's", type="log", **_place(n))
        figure.update_yaxes(title_text="composite index", **_place(n))
    return figure


def costs(tasks: dict[str, Any], kind: str, scale: float) -> go.Figure:
    """A cost over length, a panel a task's use."""
    figure, looks, shown = _panels(tasks), _colours(tasks), set()
    for n, task in enumerate(tasks.values()):
        for mixer, row in task["mixers"].items():
            found = row["cost"][kind]
            figure.add_scatter(
                x=[int(length) for length in found],
                y=[scale * value for value in found.values()],
                mode="lines+markers",
                marker={"size": 6, **looks[mixer]},
                line={"color": looks[mixer]["color"], "width": 3 if mixer == REFERENCE else 1.2},
                name=escape(mixer),
                legendgroup=mixer,
                showlegend=mixer not in shown,
                **_place(n),
            )
            shown.add(mixer)
        figure.update_xaxes(title_text="tokens", type="log", **_place(n))
        figure.update_yaxes(type="log", **_place(n))
    return figure
