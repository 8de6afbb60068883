"""The tables of a stock report: models, portfolios, splits, luck, and two runs side by side."""

import numpy as np
import polars as pl

from manyhead.report.page import Cell
from manyhead.stocks import words
from manyhead.stocks.portfolio.verdict import Verdict
from manyhead.stocks.result import Result

Table = tuple[list[str], list[list[str | Cell]], str]


def comparison(result: Result) -> Table:
    """Skill of every model."""
    headings = ["model", "IC", "± SE", "ICIR", "RankIC", "± SE", "RankICIR", "direction", "majority"]
    rows: list[list[str | Cell]] = [
        [
            _main(model.model),
            f"{model.ic.estimate:+.4f}",
            f"{model.ic_se:.4f}",
            f"{model.icir:+.3f}",
            f"{model.rank_ic.estimate:+.4f}",
            f"{model.rank_ic_se:.4f}",
            f"{model.rank_icir:+.3f}",
            words.percent(model.accuracy),
            words.percent(model.majority),
        ]
        for model in result.models
    ]
    return headings, rows, "Skill over all test days. SE: Newey-West over days."


def earnings(result: Result) -> Table:
    """Portfolio of every model after costs, equal weights last."""
    headings = [
        "portfolio",
        "return a year",
        "excess",
        "volatility",
        "Sharpe",
        "drawdown",
        "turnover",
        "costs",
    ]
    bench = words.equal_weight(result)
    rows: list[list[str | Cell]] = []
    for model in result.models:
        book = result.books[model.model].metrics
        rows.append(
            [
                _main(model.model),
                *_earned(book, words.percent(book["annual_return"] - bench["annual_return"])),
                *_traded(book),
            ]
        )
    rows.append(
        [
            words.name("equal_weight"),
            *_earned(bench, ""),
            "",
            "",
        ]
    )
    return headings, rows, "Portfolios after costs; excess over equal weights, turnover a day, costs a year."


def other_books(result: Result) -> Table:
    """The configuration's other ways to hold the same scores, after costs."""
    headings = [
        "book",
        "scores of",
        "return a year",
        "excess",
        "volatility",
        "Sharpe",
        "drawdown",
        "turnover",
        "costs",
        "borrowing",
        "exposure",
    ]
    bench = words.equal_weight(result)["annual_return"]
    rows: list[list[str | Cell]] = []
    for name, by_model in result.held.items():
        for model, book in by_model.items():
            measures = book.metrics
            wanted = result.config.books[name]
            two_sided = wanted.kind in ("long_short", "sector_neutral") and wanted.short > 0
            rows.append(
                [
                    Cell(name, "strong"),
                    words.name(model),
                    *_earned(measures, "" if two_sided else words.percent(measures["annual_return"] - bench)),
                    *_traded(measures),
                    words.percent(float(book.report["borrow"].to_numpy().mean()) * 252),
                    words.percent(float(book.report["gross"].to_numpy().mean())),
                ]
            )
    caption = (
        "The same scores held in other ways, after costs. Costs a year, borrowing being part of them; "
        "turnover a day; exposure: long and short holdings together, as a share of the account. A book with "
        "a short side is to be compared with zero, not with equal weights."
    )
    return headings, rows, caption


def _earned(measures: dict[str, float], excess: str) -> list[str]:
    """Return a year, excess, volatility, Sharpe, drawdown."""
    return [
        words.percent(measures["annual_return"]),
        excess,
        words.percent(measures["volatility"]),
        f"{measures['sharpe']:.2f}",
        words.percent(measures["max_drawdown"]),
    ]


def _traded(measures: dict[str, float]) -> list[str]:
    """Turnover a day and costs a year."""
    return [words.percent(measures["daily_turnover"]), words.percent(measures["annual_cost"])]


def _main(model: str) -> Cell:
    return Cell(words.name(model), "strong" if model == "stockformer" else "")


def by_split(result: Result) -> Table:
    """Mean IC of each model in each split, over seeds, with the standard error over days."""
    models = [model.model for model in result.models]
    rows: list[list[str | Cell]] = []
    for index, split in result.splits.items():
        first = result.panel.dates[split.validation_end]
        last = result.panel.dates[min(split.test_end, result.panel.days) - 1]
        row: list[str | Cell] = [f"split {index}: {first} to {last}"]
        for model in models:
            own = result.skill.filter((pl.col("split") == index) & (pl.col("model") == model))
            ic, error = own["ic"].to_numpy().mean(), own["ic_se"].to_numpy().mean()
            row.append(f"{ic:+.4f} ± {error:.4f}")
        rows.append(row)
    return (
        ["test days", *[words.name(model) for model in models]],
        rows,
        "Mean daily IC and its standard error, by split.",
    )


def luck_table(counted: Verdict, result: Result) -> Table:
    """Deflated Sharpe, overfitting, break-even cost and the samples that would have been needed."""

    def number(value: float, form: str) -> str:
        return "n/a" if not np.isfinite(value) else format(value, form)

    paid = 1e4 * (result.config.portfolio.open_cost + result.config.portfolio.close_cost) / 2
    rows: list[list[str | Cell]] = [
        [
            "evaluations on these prices",
            str(counted.trials),
            Cell("different models and settings so far", "text"),
        ],
        [
            "Sharpe ratio",
            number(counted.sharpe, ".2f"),
            Cell(f"the best of so many without skill: {number(counted.sharpe_of_luck, '.2f')}", "text"),
        ],
        [
            "deflated Sharpe ratio",
            words.percent(counted.deflated_sharpe),
            Cell("probability that the true ratio exceeds that of luck; 95 % would convince", "text"),
        ],
        [
            "probability of overfitting",
            words.percent(counted.overfitting),
            Cell("how often the best model of one half of the days is below the median in the other", "text"),
        ],
        [
            "break-even cost",
            f"{number(counted.break_even_excess, '.1f')} bp",
            Cell(f"a side, at which no excess over equal weights is left; {paid:g} were charged", "text"),
        ],
        [
            "days to show this excess return",
            number(counted.sample_return, ",.0f"),
            Cell(f"for a 95 % test with 80 % power; {counted.days} were tested", "text"),
        ],
        [
            "days to show this IC",
            number(counted.sample_ic, ",.0f"),
            Cell("likewise, for the mean daily IC", "text"),
        ],
    ]
    return ["", "", ""], rows, ""


def against(result: Result, other: Result) -> Table:
    """Two runs side by side, model by model."""
    headings = [
        "model",
        "IC here",
        "IC there",
        "difference",
        "Sharpe here",
        "Sharpe there",
        "return here",
        "return there",
    ]
    theirs = {model.model: model for model in other.models}
    rows: list[list[str | Cell]] = []
    for model in result.models:
        if model.model not in theirs:
            continue
        there = theirs[model.model]
        ours, leaky = result.books[model.model].metrics, other.books[model.model].metrics
        rows.append(
            [
                words.name(model.model),
                f"{model.ic.estimate:+.4f}",
                f"{there.ic.estimate:+.4f}",
                f"{there.ic.estimate - model.ic.estimate:+.4f}",
                f"{ours['sharpe']:.2f}",
                f"{leaky['sharpe']:.2f}",
                words.percent(ours["annual_return"]),
                words.percent(leaky["annual_return"]),
            ]
        )
    return headings, rows, ""


def attention_table(links: pl.DataFrame, received: pl.DataFrame, result: Result) -> Table:
    """The stocks that receive most attention, with those that look at them hardest."""
    rows: list[list[str | Cell]] = []
    for stock, weight in received.head(10).iter_rows():
        looking = links.filter((pl.col("attended") == stock) & (pl.col("attender") != stock))
        first = looking.sort(["weight", "attender"], descending=[True, False]).head(5)
        rows.append([stock, f"{weight:.2f}", Cell(", ".join(first["attender"]), "text")])
    return ["stock", "attention received", "looked at hardest by"], rows, ""
