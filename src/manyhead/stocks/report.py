"""The report of a stock run: one HTML file that says what was found, how sure that is, and why."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from manyhead.report.page import COLOURS, Cell, Page
from manyhead.stocks import words
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.items import STOCKFORMER, Item, read_facts
from manyhead.stocks.portfolio.ledger import Ledger, data_hash
from manyhead.stocks.portfolio.verdict import Verdict, count_luck

if TYPE_CHECKING:
    from manyhead.stocks.pipeline import Result

# symbols shown in the attention picture
SHOWN = 30


def write_report(result: "Result", against: "Result | None" = None) -> Path:
    """Write `report.html` into the run's folder.

    Args:
        result: the run.
        against: another run on the same prices to be compared with, such as the leaky preset.
    """
    page = Page(
        words.title(result),
        f"{result.config.preset} preset · {len(result.splits)} rolling splits · "
        f"{len(result.config.training.seeds)} seed(s) · {words.span(result)}",
    )
    _headline(page, result)
    _what_was_run(page, result)
    _skill(page, result)
    _portfolio(page, result)
    _baselines(page, result)
    _luck(page, result)
    if against is not None:
        _against(page, result, against)
    _training(page, result)
    _attention(page, result)
    _reproduce(page, result)
    return page.save(result.report)


def _headline(page: Page, result: "Result") -> None:
    own, book = result.models[0], result.books[result.models[0].model]
    measures = book.metrics
    page.section("In short", words.verdict(result))
    page.headline(
        [
            ("Mean daily IC", f"{own.ic.estimate:+.4f}", f"95 %: {own.ic.low:+.4f} to {own.ic.high:+.4f}"),
            (
                "RankIC",
                f"{own.rank_ic.estimate:+.4f}",
                f"95 %: {own.rank_ic.low:+.4f} to {own.rank_ic.high:+.4f}",
            ),
            ("Direction", words.percent(own.accuracy), f"always the majority: {words.percent(own.majority)}"),
            ("Annual return", words.percent(measures["annual_return"]), "after costs"),
            (
                "Equal weight",
                words.percent(words.equal_weight(result)["annual_return"]),
                "same names, no costs",
            ),
            (
                "Sharpe",
                f"{measures['sharpe']:.2f}",
                f"deepest loss {words.percent(measures['max_drawdown'])}",
            ),
        ]
    )
    page.points(words.reading(result))


def _what_was_run(page: Page, result: "Result") -> None:
    page.section("What was run", "Data, universe, time line, and what may bias the result.")
    page.table(["", ""], [[name, Cell(value, "text")] for name, value in words.facts(result)])
    for warning in words.biases(result):
        page.note(warning, "warn")
    page.chart(
        _time_line(result),
        "The time line of one decision: what is known when the score is computed, when it is traded, and the "
        "day's return that it is measured by.",
        height=230,
    )
    page.chart(
        _split_picture(result), "Each split trains, chooses its epoch, and is tested on later days only.", 250
    )


def _time_line(result: "Result") -> go.Figure:
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


def _split_picture(result: "Result") -> go.Figure:
    figure = go.Figure()
    dates = result.panel.dates
    shown = list(result.splits.items())[-24:]
    for part, colour in (("train", COLOURS[6]), ("validation", COLOURS[1]), ("test", COLOURS[0])):
        for place, (index, split) in enumerate(shown):
            rows: range = getattr(split, part)
            first, last = dates[rows.start], dates[min(rows.stop, len(dates)) - 1]
            figure.add_scatter(
                x=[str(first), str(last)],
                y=[f"split {index}"] * 2,
                mode="lines",
                name=part,
                legendgroup=part,
                line={"color": colour, "width": 11},
                showlegend=place == 0,
            )
    figure.update_yaxes(autorange="reversed")
    return figure


def _skill(page: Page, result: "Result") -> None:
    page.section(
        "Does it rank stocks?",
        "The information coefficient (IC) is the correlation, across stocks within a day, of the score "
        "with what "
        "a decision on that day earned. RankIC uses ranks. Around zero means no skill; 0.03 sustained is a "
        "lot.",
    )
    own = result.models[0]
    figure = make_subplots(1, 2, subplot_titles=("cumulative IC", "cumulative RankIC"))
    for colour, model in zip(COLOURS, result.models, strict=False):
        for column, daily in ((1, model.daily_ic), (2, model.daily_rank_ic)):
            figure.add_scatter(
                x=_days(model.dates),
                y=_rounded(np.nancumsum(daily)),
                name=words.name(model.model),
                legendgroup=model.model,
                showlegend=column == 1,
                row=1,
                col=column,
                line={"color": colour, "width": 2.5 if model is own else 1.3},
            )
    page.chart(figure, "A steady climb is skill; a random walk around zero is luck.")
    page.chart(_daily_ic(own), words.daily_ic_caption(own), 300)
    page.chart(
        _intervals(result),
        "Mean IC and RankIC with 95 % block-bootstrap intervals: skill that may be zero "
        "has an interval that crosses the line.",
        120 + 42 * len(result.models),
    )
    page.chart(_deciles(result), words.decile_caption(result), 320)
    page.table(
        ["model", "direction right", "always the majority", "difference"],
        [
            [
                words.name(model.model),
                words.percent(model.accuracy),
                words.percent(model.majority),
                _signed(100 * (model.accuracy - model.majority), "{:+.2f} points"),
            ]
            for model in result.models
        ],
        "Share of right directions, beside the share that always naming the more frequent direction gets.",
    )


def _daily_ic(own: Any) -> go.Figure:
    figure = go.Figure()
    figure.add_bar(x=_days(own.dates), y=_rounded(own.daily_ic), name="daily IC", marker_color=COLOURS[5])
    window = 20
    known = np.nan_to_num(own.daily_ic)
    if len(known) >= window:
        smooth = np.convolve(known, np.ones(window) / window, mode="valid")
        figure.add_scatter(
            x=_days(own.dates[window - 1 :]),
            y=_rounded(smooth),
            name="mean of 20 days",
            line={"color": COLOURS[4], "width": 2.5},
        )
    return figure


def _intervals(result: "Result") -> go.Figure:
    figure = go.Figure()
    labels = [words.name(model.model) for model in result.models]
    for offset, (title, attribute) in enumerate((("IC", "ic"), ("RankIC", "rank_ic"))):
        spans = [getattr(model, attribute) for model in result.models]
        figure.add_scatter(
            x=_rounded([span.estimate for span in spans]),
            y=np.arange(len(labels)) + 0.16 * (2 * offset - 1),
            mode="markers",
            name=title,
            marker={"size": 9, "color": COLOURS[offset]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": _rounded([span.high - span.estimate for span in spans]),
                "arrayminus": _rounded([span.estimate - span.low for span in spans]),
            },
        )
    figure.add_vline(x=0, line_width=1, line_color=COLOURS[6])
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels, autorange="reversed")
    return figure


def _deciles(result: "Result") -> go.Figure:
    figure = go.Figure()
    for colour, model in zip(COLOURS, result.models, strict=False):
        figure.add_bar(
            x=[f"{place}" for place in range(1, len(model.deciles) + 1)],
            y=_rounded(1e4 * model.deciles),
            name=words.name(model.model),
            marker_color=colour,
            visible=True if model is result.models[0] else "legendonly",
        )
    figure.update_xaxes(title="score decile (10 = best scores)", type="category")
    figure.update_yaxes(title="mean return a day, basis points")
    return figure


def _portfolio(page: Page, result: "Result") -> None:
    own = result.books[result.models[0].model]
    page.section("What would it have earned?", words.strategy(result))
    figure = make_subplots(
        3,
        1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        row_heights=[0.5, 0.25, 0.25],
        subplot_titles=("value of 1 invested, after costs", "drawdown", "turnover a day"),
    )
    for colour, (name, book) in zip(COLOURS, result.books.items(), strict=False):
        curve = np.cumprod(1 + book.report["net_return"].to_numpy())
        days = book.report["date"].dt.to_string("%Y-%m-%d").to_list()
        main = book is own
        line = {"color": colour, "width": 2.5 if main else 1.2}
        figure.add_scatter(
            x=days, y=_rounded(curve), name=words.name(name), legendgroup=name, line=line, row=1, col=1
        )
        if main:
            drawdown = curve / np.maximum.accumulate(np.maximum(curve, 1.0)) - 1
            figure.add_scatter(
                x=days, y=_rounded(drawdown), showlegend=False, line=line, fill="tozeroy", row=2, col=1
            )
            figure.add_bar(
                x=days,
                y=_rounded(book.report["turnover"].to_numpy()),
                showlegend=False,
                marker_color=colour,
                row=3,
                col=1,
            )
            figure.add_scatter(
                x=days,
                y=_rounded(np.cumprod(1 + book.report["bench"].to_numpy())),
                name="equal weight",
                line={"color": COLOURS[6], "width": 2, "dash": "dash"},
                row=1,
                col=1,
            )
    figure.update_yaxes(tickformat=".0%", row=2, col=1)
    figure.update_yaxes(tickformat=".0%", row=3, col=1)
    page.chart(figure, words.portfolio_caption(result), 620)
    for warning in own.warnings:
        if warning not in result.warnings:
            page.note(warning, "warn")


def _baselines(page: Page, result: "Result") -> None:
    page.section(
        "Against simple models",
        "Every model sees the same inputs and days, was tuned on validation with the same number of "
        "trials, and is "
        "traded in the same way.",
    )
    page.table(*words.comparison(result))
    page.table(*words.earnings(result))
    page.table(*words.by_split(result))


def _luck(page: Page, result: "Result") -> None:
    counted = luck(result)
    if counted is None:
        return
    page.section(
        "How much of it is luck?",
        "Many trials make one of them look good. Every evaluation on these prices is entered in a ledger "
        "beside "
        "the runs; these figures count what is entered there.",
    )
    page.table(*words.luck_table(counted, result))


def luck(result: "Result") -> Verdict | None:
    """Count luck for the main model, from the ledger beside the run; None without a full back-test."""
    from manyhead.stocks.pipeline import LEDGER

    own = result.models[0]
    book = result.books[own.model].backtest
    if book is None or np.ptp(book.net_returns) == 0:
        return None
    ledger = Ledger(result.folder.parent / LEDGER)
    sharpes = ledger.metric(data_hash(result.panel), "sharpe_daily") if ledger.path.exists() else []
    # the models of this run, over the days that all of them traded
    returns = [other.report.select("date", "net_return") for other in result.books.values()]
    joined = returns[0]
    for place, table in enumerate(returns[1:]):
        joined = joined.join(table, on="date", suffix=f"_{place}")
    tried = joined.drop("date").to_numpy() if len(returns) > 1 and joined.height >= 40 else None
    return count_luck(
        book,
        trials=None if len(sharpes) > 1 else max(1, len(sharpes)),
        sharpes=sharpes if len(sharpes) > 1 else None,
        tried=tried,
        daily_ic=own.daily_ic,
    )


def _against(page: Page, result: "Result", other: "Result") -> None:
    page.section(f"Against the {other.config.preset} pipeline", words.against_lead(result, other))
    page.table(*words.against(result, other))
    page.points(words.differences(result.config, other.config))


def _training(page: Page, result: "Result") -> None:
    page.section("Training", "Loss and validation measure by epoch; the marked epoch was kept.")
    figure = make_subplots(
        1, 2, subplot_titles=("training loss", f"validation {result.config.training.monitor}")
    )
    monitor = result.config.training.monitor
    for place, (index, seed) in enumerate(_pieces(result)[:12]):
        facts = read_facts(result.folder, Item(index, STOCKFORMER, seed))
        history = facts["history"]
        epochs = [row["epoch"] for row in history]
        loss = [sum(value for key, value in row.items() if key.startswith("train/")) for row in history]
        label, line = f"split {index} seed {seed}", {"color": COLOURS[place % len(COLOURS)], "width": 1.5}
        figure.add_scatter(x=epochs, y=_rounded(loss), name=label, legendgroup=label, line=line, row=1, col=1)
        figure.add_scatter(
            x=epochs,
            y=_rounded([row[monitor] for row in history]),
            name=label,
            legendgroup=label,
            line=line,
            showlegend=False,
            row=1,
            col=2,
        )
        if facts["best_epoch"]:
            kept = [row for row in history if row["epoch"] == facts["best_epoch"]]
            figure.add_scatter(
                x=[row["epoch"] for row in kept],
                y=_rounded([row[monitor] for row in kept]),
                mode="markers",
                marker={"size": 10, "color": line["color"], "symbol": "star"},
                showlegend=False,
                legendgroup=label,
                row=1,
                col=2,
            )
    figure.update_xaxes(title="epoch")
    page.chart(figure, words.training_caption(result), 340)


def _attention(page: Page, result: "Result") -> None:
    index, seed = _pieces(result)[-1]
    folder = Item(index, STOCKFORMER, seed).folder(result.folder)
    links = pl.read_parquet(folder / "attention.parquet")
    page.section(
        "Who attends to whom",
        "The spatial attention of the newest split, averaged over days, layers and both frequencies: a row "
        "is the "
        "stock that looks, a column the stock it looks at. It shows what the network uses, not what causes "
        "what.",
    )
    received = (
        links.group_by("attended")
        .agg(pl.col("weight").sum())
        .sort(["weight", "attended"], descending=[True, False])
    )
    names = received["attended"].to_list()[:SHOWN]
    place = {name: position for position, name in enumerate(names)}
    weights = np.zeros((len(names), len(names)))
    for attender, attended, weight in links.iter_rows():
        if attender in place and attended in place:
            weights[place[attender], place[attended]] = weight
    figure = go.Figure(
        go.Heatmap(z=_rounded(weights), x=names, y=names, colorscale="Blues", colorbar={"title": "weight"})
    )
    figure.update_xaxes(side="top", tickangle=-60, type="category")
    figure.update_yaxes(autorange="reversed", type="category")
    page.chart(figure, f"The {len(names)} stocks that receive most attention.", 620)
    page.table(*words.attention_table(links, received, result))


def _reproduce(page: Page, result: "Result") -> None:
    place = RunFolder(result.folder)
    versions, data = place.read_json("versions.json"), place.read_json("data.json")
    page.section("To repeat this", "The folder of the run holds its settings, scores, weights and this page.")
    rows = [[key, Cell(str(value), "text")] for key, value in versions.items() if value]
    page.table(["made with", ""], [*rows, ["data SHA-256", Cell(data["sha256"], "text")]])


def _pieces(result: "Result") -> list[tuple[int, int]]:
    return [(index, seed) for index in result.splits for seed in result.config.training.seeds]


def _days(dates: Any) -> list[str]:
    return [str(day) for day in dates]


def _rounded(values: Any) -> Any:
    """Six significant digits: what a chart can show, at a third of the file's size."""
    array = np.asarray(values, np.float64)
    if array.ndim == 2:
        return [_rounded(row) for row in array]
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in array]


def _signed(value: float, form: str) -> Cell:
    look = "good" if value > 0 else "bad" if value < 0 else ""
    return Cell(form.format(value), look)


Rows = Sequence[Sequence[str | Cell]]
