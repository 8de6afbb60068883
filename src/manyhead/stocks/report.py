"""The report of a stock run: one HTML file that says what was found, how sure that is, and why."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from manyhead.report.page import COLOURS, Cell, Page
from manyhead.stocks import charts, comparisons, words
from manyhead.stocks.controls_page import controls_section
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.holding import words_of
from manyhead.stocks.items import STOCKFORMER, Item, read_facts
from manyhead.stocks.live.card import CARD, drift_points
from manyhead.stocks.portfolio.ledger import Ledger, data_hash
from manyhead.stocks.portfolio.verdict import Verdict, count_luck
from manyhead.stocks.result import LEDGER, Result

# symbols shown in the attention picture
SHOWN = 30
CURVES = 12  # trainings whose curves are drawn


def write_report(result: Result, against: Result | None = None) -> Path:
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
    _other_books(page, result)
    _baselines(page, result)
    _luck(page, result)
    controls_section(page, result)
    if against is not None:
        _against(page, result, against)
    _training(page, result)
    _attention(page, result)
    _still(page, result)
    _reproduce(page, result)
    return page.save(result.report)


def _headline(page: Page, result: Result) -> None:
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


def _what_was_run(page: Page, result: Result) -> None:
    page.section("What was run", "Data, universe, time line, and what may bias the result.")
    page.table(["", ""], [[name, Cell(value, "text")] for name, value in words.facts(result)])
    for warning in words.biases(result):
        page.note(warning, "warn")
    page.chart(
        charts.time_line(result),
        "The time line of one decision: what is known when the score is computed, when it is traded, and the "
        "day's return that it is measured by.",
        height=230,
    )
    page.chart(
        charts.split_picture(result),
        "Each split trains, chooses its epoch, and is tested on later days only.",
        max(210, 90 + 11 * len(result.splits)),
    )


def _skill(page: Page, result: Result) -> None:
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
                x=charts.days(model.dates),
                y=charts.rounded(np.nancumsum(daily)),
                name=words.name(model.model),
                legendgroup=model.model,
                showlegend=column == 1,
                row=1,
                col=column,
                line={"color": colour, "width": 2.5 if model is own else 1.3},
            )
    page.chart(figure, "A steady climb is skill; a random walk around zero is luck.")
    page.chart(charts.daily_ic(own), words.daily_ic_caption(own), 300)
    page.chart(
        charts.intervals(result),
        "Mean IC and RankIC with 95 % block-bootstrap intervals: skill that may be zero "
        "has an interval that crosses the line.",
        120 + 42 * len(result.models),
    )
    page.chart(charts.deciles(result), words.decile_caption(result), 320)
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


def _portfolio(page: Page, result: Result) -> None:
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
            x=days, y=charts.rounded(curve), name=words.name(name), legendgroup=name, line=line, row=1, col=1
        )
        if main:
            drawdown = curve / np.maximum.accumulate(np.maximum(curve, 1.0)) - 1
            figure.add_scatter(
                x=days, y=charts.rounded(drawdown), showlegend=False, line=line, fill="tozeroy", row=2, col=1
            )
            figure.add_bar(
                x=days,
                y=charts.rounded(book.report["turnover"].to_numpy()),
                showlegend=False,
                marker_color=colour,
                row=3,
                col=1,
            )
            figure.add_scatter(
                x=days,
                y=charts.rounded(np.cumprod(1 + book.report["bench"].to_numpy())),
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


def _other_books(page: Page, result: Result) -> None:
    if not result.held:
        return
    page.section(
        "Held in other ways",
        "Whether a score earns anything depends on how it is held. Each way tried counts as a trial below.",
    )
    page.points([f"{name}: {words_of(result.config, name)}." for name in result.held])
    figure = go.Figure()
    for colour, (name, by_model) in zip(COLOURS, result.held.items(), strict=False):
        model, book = next(iter(by_model.items()))
        figure.add_scatter(
            x=book.report["date"].dt.to_string("%Y-%m-%d").to_list(),
            y=charts.rounded(np.cumprod(1 + book.report["net_return"].to_numpy())),
            name=f"{name} ({words.name(model)})",
            line={"color": colour, "width": 2},
        )
    page.chart(figure, "Value of 1 invested in each book, after costs.", 340)
    page.table(*comparisons.other_books(result))
    every = [book for by_model in result.held.values() for book in by_model.values()]
    for warning in sorted({warning for book in every for warning in book.warnings} - {*result.warnings}):
        page.note(warning, "warn")


def _baselines(page: Page, result: Result) -> None:
    page.section(
        "Against simple models",
        "Every model sees the same inputs and days, was tuned on validation with the same number of "
        "trials, and is "
        "traded in the same way.",
    )
    page.table(*comparisons.comparison(result))
    page.table(*comparisons.earnings(result))
    page.table(*comparisons.by_split(result))


def _luck(page: Page, result: Result) -> None:
    counted = luck(result)
    if counted is None:
        return
    page.section(
        "How much of it is luck?",
        "Many trials make one of them look good. Every evaluation on these prices is entered in a ledger "
        "beside "
        "the runs; these figures count what is entered there.",
    )
    page.table(*comparisons.luck_table(counted, result))


def luck(result: Result) -> Verdict | None:
    """Count luck for the main model, from the ledger beside the run; None without a full back-test."""
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


def _against(page: Page, result: Result, other: Result) -> None:
    page.section(f"Against the {other.config.preset} pipeline", words.against_lead(result, other))
    page.table(*comparisons.against(result, other))
    page.points(words.differences(result.config, other.config))


def _training(page: Page, result: Result) -> None:
    page.section("Training", "Loss and validation measure by epoch; the marked epoch was kept.")
    figure = make_subplots(
        1, 2, subplot_titles=("training loss", f"validation {result.config.training.monitor}")
    )
    monitor = result.config.training.monitor
    trained = charts.pieces(result)
    shown = trained[-CURVES:]
    for place, (index, seed) in enumerate(shown):
        facts = read_facts(result.folder, Item(index, STOCKFORMER, seed))
        history = facts["history"]
        epochs = [row["epoch"] for row in history]
        loss = [sum(value for key, value in row.items() if key.startswith("train/")) for row in history]
        label, line = f"split {index} seed {seed}", {"color": COLOURS[place % len(COLOURS)], "width": 1.5}
        figure.add_scatter(
            x=epochs, y=charts.rounded(loss), name=label, legendgroup=label, line=line, row=1, col=1
        )
        figure.add_scatter(
            x=epochs,
            y=charts.rounded([row[monitor] for row in history]),
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
                y=charts.rounded([row[monitor] for row in kept]),
                mode="markers",
                marker={"size": 10, "color": line["color"], "symbol": "star"},
                showlegend=False,
                legendgroup=label,
                row=1,
                col=2,
            )
    figure.update_xaxes(title="epoch")
    if len(shown) > 6:  # a legend of many rows would cover the titles; names show under the pointer
        figure.update_layout(showlegend=False)
    page.chart(figure, words.training_caption(len(shown), len(trained)), 340)


def _attention(page: Page, result: Result) -> None:
    index, seed = charts.pieces(result)[-1]
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
        go.Heatmap(
            z=charts.rounded(weights), x=names, y=names, colorscale="Blues", colorbar={"title": "weight"}
        )
    )
    figure.update_xaxes(side="top", tickangle=-60, type="category")
    figure.update_yaxes(autorange="reversed", type="category")
    page.chart(figure, f"The {len(names)} stocks that receive most attention.", 620)
    page.table(*comparisons.attention_table(links, received, result))


def _still(page: Page, result: Result) -> None:
    place = RunFolder(result.folder)
    if not (place.path / CARD).exists():
        return
    facts = place.read_json(CARD)
    page.section(
        "Will it hold tomorrow?",
        "manyhead stocks update scores new days with the newest split's models and watches for drift; "
        "model_card.md, beside this page, says what they are for and is kept up to date.",
    )
    page.points(drift_points(facts))
    for alarm in facts["alarms"]:
        page.note(alarm, "warn")


def _reproduce(page: Page, result: Result) -> None:
    place = RunFolder(result.folder)
    versions, data = place.read_json("versions.json"), place.read_json("data.json")
    page.section("To repeat this", "The folder of the run holds its settings, scores, weights and this page.")
    rows = [[key, Cell(str(value), "text")] for key, value in versions.items() if value]
    page.table(["made with", ""], [*rows, ["data SHA-256", Cell(data["sha256"], "text")]])


def _signed(value: float, form: str) -> Cell:
    look = "good" if value > 0 else "bad" if value < 0 else ""
    return Cell(form.format(value), look)


Rows = Sequence[Sequence[str | Cell]]
