"""Price the leaks: what does each fault of the released pipeline add to the result, on these prices?

The pipeline runs clean, then with each fault alone, then with all of them, over the same splits and seeds.
Faults of information (graph, scaler, universe, label as a factor) train anew; faults of bookkeeping
(masking, choice, fees, timing) are laid over the clean run's scores. Differences are paired by seed.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from manyhead.files import write_text
from manyhead.report.page import COLOURS, Page
from manyhead.stocks.book import hold
from manyhead.stocks.config import Config, Leaks, build
from manyhead.stocks.evaluate import Grid, ensemble
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.items import STOCKFORMER
from manyhead.stocks.metrics import daily_ic
from manyhead.stocks.pipeline import run
from manyhead.stocks.result import Result, collect
from manyhead.stocks.words import LEAKS
from manyhead.system import interval

# faults that change what a model learns from; the others only change what is done with its scores
TRAINED = ("graph_all_dates", "scaler_all_dates", "universe_all_dates", "label_as_factor")
MEASURES = ("ic", "annual_return", "sharpe")


@dataclass(frozen=True)
class Price:
    """What one fault adds.

    Attributes:
        leak: its name, 'clean' or 'all'.
        ic, annual_return, sharpe: mean over seeds.
        added: measure -> mean difference to the clean run.
        low, high: measure -> 95 % interval of that difference over seeds, NaN with one seed.
    """

    leak: str
    ic: float
    annual_return: float
    sharpe: float
    added: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def price_leaks(
    config: Config,
    folder: str | Path,
    *,
    resume: bool = False,
    workers: int = 1,
    ray: str | None = None,
    progress: bool = True,
) -> list[Price]:
    """Run clean, with each fault, and with all; write leaks.json and leaks.html.

    Args:
        config: settings; baselines are left out. Where factors are scaled within each day a scaler over all
            dates can change nothing, so scaling on training rows is used throughout.
        folder: where the runs are kept, each in a folder of its own.
        resume: continue what is there.
        workers: local processes.
        ray: address of a Ray cluster.
        progress: show what is running.

    Raises:
        InputError: as `pipeline.run`.
    """
    folder = Path(folder)
    base = build(
        config.model_dump(),
        {"baselines": {"names": ()}, "factors": {"scaling": "training"}, "leaks": Leaks().model_dump()},
    )
    names = list(Leaks.model_fields)

    def variant(leaks: Sequence[str]) -> Config:
        return build(base.model_dump(), {"leaks": dict.fromkeys(leaks, True)})

    def trained(name: str, leaks: Sequence[str]) -> Path:
        place = folder / name
        resuming = resume and (place / "config.toml").exists()
        run(variant(leaks), place, resume=resuming, workers=workers, ray=ray, progress=progress)
        return place

    clean = trained("clean", [])
    measured = {"clean": per_seed(collect(clean))}
    for name in names:
        if name in TRAINED:
            measured[name] = per_seed(collect(trained(name, [name])))
        else:
            measured[name] = per_seed(collect(clean, variant([name])))
    everything = trained("all", [name for name in names if name in TRAINED])
    measured["all"] = per_seed(collect(everything, variant(names)))
    prices = [_price(name, found, measured["clean"]) for name, found in measured.items()]
    RunFolder(folder).write_json("leaks.json", [asdict(price) for price in prices])
    write_leaks_page(folder / "leaks.html", prices, collect(clean))
    return prices


def per_seed(result: Result) -> dict[int, dict[str, float]]:
    """Mean daily IC, annual return after costs and Sharpe ratio of Stockformer, by seed."""
    own = result.scores.filter((pl.col("model") == STOCKFORMER) & (pl.col("part") == "test"))
    panel = result.panel.select(sorted(own["symbol"].unique()))
    grid = Grid(panel.dates, panel.symbols)
    found = {}
    for seed in result.config.training.seeds:
        mine = own.filter(pl.col("seed") == seed)
        daily = daily_ic(grid.matrix(mine, "score"), grid.matrix(mine, "earned"))
        columns = ["score"]
        if result.config.leaks.choice_on_test:
            columns = ["regression", "classification"]
        books = [
            hold(panel, ensemble(mine, STOCKFORMER, grid, column), result.config, STOCKFORMER).metrics
            for column in columns
            if mine[column].is_not_null().any()
        ]
        best = max(books, key=lambda book: np.nan_to_num(book["sharpe"], nan=-np.inf))
        found[seed] = {
            "ic": float(np.nanmean(daily)),
            "annual_return": best["annual_return"],
            "sharpe": best["sharpe"],
        }
    return found


def _price(name: str, found: dict[int, dict[str, float]], clean: dict[int, dict[str, float]]) -> Price:
    added, low, high = {}, {}, {}
    for measure in MEASURES:
        differences = [found[seed][measure] - clean[seed][measure] for seed in clean]
        span = interval(differences) or (math.nan, math.nan)
        added[measure] = float(np.mean(differences))
        low[measure], high[measure] = span
    means: dict[str, float] = {
        measure: float(np.mean([seed[measure] for seed in found.values()])) for measure in MEASURES
    }
    return Price(name, **means, added=added, low=low, high=high)


def leak_rows(prices: Sequence[Price]) -> list[list[str]]:
    """The table: what each fault adds to IC, return and Sharpe, with intervals."""

    def cell(price: Price, measure: str, form: str, scale: float = 1.0) -> str:
        value, low, high = (scale * part[measure] for part in (price.added, price.low, price.high))
        span = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
        return f"{value:{form}}{span}"

    rows = []
    for price in prices:
        if price.leak == "clean":
            rows.append(
                ["clean", f"{price.ic:+.4f}", f"{100 * price.annual_return:+.1f} %", f"{price.sharpe:+.2f}"]
            )
        else:
            rows.append(
                [
                    price.leak,
                    cell(price, "ic", "+.4"),
                    cell(price, "annual_return", "+.1", 100) + " %",
                    cell(price, "sharpe", "+.2"),
                ]
            )
    return rows


HEADINGS = ["fault", "IC", "return a year", "Sharpe"]


def write_leaks_page(path: Path, prices: Sequence[Price], clean: Result) -> None:
    """Write the bar chart and the table as a page."""
    page = Page(
        "What do the leaks pay?",
        f"{len(clean.splits)} splits, seeds {', '.join(map(str, clean.config.training.seeds))}",
    )
    page.section(
        "What each fault adds",
        "The clean pipeline's figures, then the difference that each fault of the released pipeline makes, "
        "alone and "
        "all together. Intervals: 95 %, Student, over seeds, paired. A fault that pays nothing here is "
        "still a fault.",
    )
    page.chart(
        bars(prices), "Added to the mean daily IC, the annual return after costs and the Sharpe ratio.", 560
    )
    page.table(HEADINGS, leak_rows(prices), "First line: the clean run. Others: difference to it.")
    page.section("What each fault is")
    page.points([f"{name}: {text}." for name, text in LEAKS.items()])
    write_text(path, page.html())


def bars(prices: Sequence[Price]) -> go.Figure:
    """Three bar charts side by side, one a measure."""
    from plotly.subplots import make_subplots

    titles = {"ic": "IC", "annual_return": "return a year", "sharpe": "Sharpe"}
    figure = make_subplots(1, 3, subplot_titles=list(titles.values()), shared_yaxes=True)
    faults = [price for price in prices if price.leak != "clean"]
    for column, measure in enumerate(MEASURES, 1):
        values: list[Any] = [price.added[measure] for price in faults]
        plus = [_finite(price.high[measure] - price.added[measure]) for price in faults]
        minus = [_finite(price.added[measure] - price.low[measure]) for price in faults]
        figure.add_bar(
            x=values,
            y=[price.leak for price in faults],
            orientation="h",
            marker_color=[COLOURS[4] if value > 0 else COLOURS[0] for value in values],
            error_x={"type": "data", "symmetric": False, "array": plus, "arrayminus": minus},
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    return figure


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
