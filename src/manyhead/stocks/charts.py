"""The charts of a stock report: the time line, the splits, daily skill, intervals, deciles."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from manyhead.report.page import COLOURS
from manyhead.stocks import words
from manyhead.stocks.result import Result


def time_line(result: Result) -> go.Figure:
    lag = 0 if result.config.leaks.one_day_early else 1
    entry = f"close of day r+{lag}" if lag else "close of day r (a leak)"
    steps: list[tuple[str, float, float, str]] = [
        ("known at", -2, 0, "prices up to the close of day r"),
        ("decided at", 0, 0.12, "after the close of day r"),
        ("traded at", lag, lag + 0.12, entry),
        ("earned over", lag, lag + 1, f"close of r+{lag} to close of r+{lag + 1}"),
    ]
    figure = go.Figure()
    for (name, start, stop, text), colour in zip(steps, COLOURS, strict=False):
        figure.add_bar(
            x=[stop - start],
            base=[start],
            y=[name],
            orientation="h",
            marker_color=colour,
            showlegend=False,
            hovertext=text,
            hoverinfo="text",
        )
        figure.add_annotation(x=stop, y=name, text=text, showarrow=False, xanchor="left", xshift=8)
    ticks = [-2, -1, 0, 1, 2, 3]
    figure.update_xaxes(
        tickvals=ticks, ticktext=[f"r{day:+d}" if day else "r" for day in ticks], range=[-2.1, 4.4]
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def split_picture(result: Result) -> go.Figure:
    figure = go.Figure()
    dates = result.panel.dates
    for part, colour in (("train", COLOURS[6]), ("validation", COLOURS[1]), ("test", COLOURS[0])):
        for place, (index, split) in enumerate(result.splits.items()):
            rows: range = getattr(split, part)
            first, last = dates[rows.start], dates[min(rows.stop, len(dates)) - 1]
            figure.add_scatter(
                x=[str(first), str(last)],
                y=[f"split {index}"] * 2,
                mode="lines",
                name=part,
                legendgroup=part,
                line={"color": colour, "width": 7},
                showlegend=place == 0,
            )
    figure.update_yaxes(autorange="reversed")
    return figure


def daily_ic(own: Any) -> go.Figure:
    figure = go.Figure()
    figure.add_bar(x=days(own.dates), y=rounded(own.daily_ic), name="daily IC", marker_color=COLOURS[5])
    window = 20
    known = np.nan_to_num(own.daily_ic)
    if len(known) >= window:
        smooth = np.convolve(known, np.ones(window) / window, mode="valid")
        figure.add_scatter(
            x=days(own.dates[window - 1 :]),
            y=rounded(smooth),
            name="mean of 20 days",
            line={"color": COLOURS[4], "width": 2.5},
        )
    return figure


def intervals(result: Result) -> go.Figure:
    figure = go.Figure()
    labels = [words.name(model.model) for model in result.models]
    for offset, (title, attribute) in enumerate((("IC", "ic"), ("RankIC", "rank_ic"))):
        spans = [getattr(model, attribute) for model in result.models]
        figure.add_scatter(
            x=rounded([span.estimate for span in spans]),
            y=np.arange(len(labels)) + 0.16 * (2 * offset - 1),
            mode="markers",
            name=title,
            marker={"size": 9, "color": COLOURS[offset]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": rounded([span.high - span.estimate for span in spans]),
                "arrayminus": rounded([span.estimate - span.low for span in spans]),
            },
        )
    figure.add_vline(x=0, line_width=1, line_color=COLOURS[6])
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels, autorange="reversed")
    return figure


def deciles(result: Result) -> go.Figure:
    figure = go.Figure()
    for colour, model in zip(COLOURS, result.models, strict=False):
        figure.add_bar(
            x=[f"{place}" for place in range(1, len(model.deciles) + 1)],
            y=rounded(1e4 * model.deciles),
            name=words.name(model.model),
            marker_color=colour,
            visible=True if model is result.models[0] else "legendonly",
        )
    figure.update_xaxes(title="score decile (10 = best scores)", type="category")
    figure.update_yaxes(title="mean return a day, basis points")
    return figure


def pieces(result: Result) -> list[tuple[int, int]]:
    return [(index, seed) for index in result.splits for seed in result.config.training.seeds]


def days(dates: Any) -> list[str]:
    return [str(day) for day in dates]


def rounded(values: Any) -> Any:
    """Six significant digits: what a chart can show, at a third of the file's size."""
    array = np.asarray(values, np.float64)
    if array.ndim == 2:
        return [rounded(row) for row in array]
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in array]
