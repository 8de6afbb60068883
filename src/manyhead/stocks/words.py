"""The sentences and tables of a stock report, shared by the page and the terminal."""

import numpy as np
import polars as pl

from manyhead.report.page import Cell
from manyhead.stocks.config import Config
from manyhead.stocks.evaluate import ModelSkill
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.portfolio import performance
from manyhead.stocks.result import Result

Table = tuple[list[str], list[list[str | Cell]], str]

NAMES = {
    "stockformer": "Stockformer",
    "ridge": "ridge",
    "lightgbm": "LightGBM",
    "lstm": "LSTM",
    "gru": "GRU",
    "tcn": "TCN",
    "transformer": "Transformer",
    "reversal": "20-day reversal",
    "momentum": "12-1 momentum",
    "equal_weight": "equal weight",
}

# what each fault of the released pipeline does, and in which direction it is expected to push
LEAKS = {
    "graph_all_dates": "the graph is built from all days, so that a stock's neighbours are chosen by how "
    "they move together in the test span",
    "scaler_all_dates": "factors are scaled with means and deviations of all days, test days included",
    "universe_all_dates": "stocks are chosen by their trading at the end of the data: which ones will be "
    "traded most is known in advance",
    "label_as_factor": "the label of the input rows is one of the factors; where inputs end at the "
    "decision day it is the answer itself, with the official alignment it is known by then",
    "label_masking": "scores are overwritten where the realised return of the decision is 0 or missing, "
    "which avoids stocks that will be suspended",
    "choice_on_test": "of the regression and the classification score the one with the better test Sharpe "
    "is kept",
    "zero_fees": "trading is free",
    "one_day_early": "scores are traded at the very close from which they are computed",
}


def name(model: str) -> str:
    """A model's name for readers."""
    return NAMES.get(model, model)


def percent(value: float, digits: int = 1) -> str:
    """A share as per cent."""
    return "n/a" if not np.isfinite(value) else f"{100 * value:.{digits}f} %"


def title(result: Result) -> str:
    """Heading of the report."""
    return "Stockformer: does it select stocks?"


def span(result: Result) -> str:
    """First and last test day."""
    dates = result.models[0].dates
    return f"tested {dates[0]} to {dates[-1]}"


def equal_weight(result: Result) -> dict[str, float]:
    """Performance of the benchmark over the main model's days."""
    return performance(result.books[result.models[0].model].report["bench"].to_numpy())


def skilled(model: ModelSkill) -> str:
    """What the interval of the mean IC says."""
    if model.ic.low > 0:
        return "skill above zero"
    if model.ic.high < 0:
        return "skill below zero"
    return "no skill that differs from zero"


def verdict(result: Result) -> str:
    """The answer in one or two sentences."""
    own = result.models[0]
    book = result.books[own.model].metrics
    excess = book["annual_return"] - equal_weight(result)["annual_return"]
    ranking = {
        "skill above zero": "Yes, it ranked stocks better than chance",
        "skill below zero": "No: it ranked stocks worse than chance",
        "no skill that differs from zero": "Not shown: its ranking cannot be told from chance",
    }[skilled(own)]
    money = "more" if excess > 0 else "less"
    leaks = (
        " These figures contain known leaks and are for comparison only." if result.config.leaks.on() else ""
    )
    return (
        f"{ranking} (mean daily IC {own.ic.estimate:+.4f}, 95 % interval {own.ic.low:+.4f} to "
        f"{own.ic.high:+.4f}, "
        f"{len(own.dates)} test days). Held as a portfolio it earned {percent(abs(excess))} a year {money} "
        "than "
        f"equal weights after costs.{leaks}"
    )


def reading(result: Result) -> list[str]:
    """How to read the headline."""
    own = result.models[0]
    rivals = [model for model in result.models[1:] if np.isfinite(model.ic.estimate)]
    points = [
        "The interval of the IC comes from a block bootstrap over days, which keeps their autocorrelation; "
        "with "
        f"{len(own.dates)} days a mean IC must be about {1.96 * own.ic_se:.3f} away from zero to be seen.",
        f"Direction: {percent(own.accuracy)} right, while always naming the more frequent direction gets "
        f"{percent(own.majority)}; only a difference above zero is worth anything.",
    ]
    if rivals:
        best = max(rivals, key=lambda model: model.ic.estimate)
        points.append(
            f"The best simple model on the same inputs is {name(best.model)} with IC "
            f"{best.ic.estimate:+.4f}; "
            f"Stockformer minus it: {own.ic.estimate - best.ic.estimate:+.4f}."
        )
    if own.seeds > 1:
        listed = ", ".join(f"{value:+.4f}" for value in own.seed_ic)
        points.append(f"Mean IC of each seed: {listed}. The portfolio holds the seeds' average score.")
    else:
        points.append(
            "One seed was run: another seed gives another result. --seeds 0,1,2 shows how far they spread."
        )
    return [*points, what_would_change(result)]


def what_would_change(result: Result) -> str:
    """Which further evidence could turn the answer, with the number of days that it takes."""
    own = result.models[0]
    days, se = len(own.dates), own.ic_se
    if not np.isfinite(se) or se <= 0:
        return "What would change this: more test days; on so few nothing can be said."
    # days for a two-sided 95 % test to find a true IC with 80 % power: days * ((1.96 + 0.84) se / IC)^2
    needed = days * ((1.96 + 0.84) * se / 0.02) ** 2
    if skilled(own) == "no skill that differs from zero":
        seen = (
            "What would change this: at this day-to-day noise, a true IC of 0.02 needs about "
            f"{needed:,.0f} test days ({needed / 252:.1f} years) to be seen in four of five tries; "
            f"{days:,} were tested"
        )
        if needed < days:
            least = 0.02 * np.sqrt(needed / days)
            return (
                f"{seen}. An IC of {least:.4f} would likely have been seen: what is left to find is smaller, "
                "and takes other inputs or a wider universe rather than more days."
            )
        return f"{seen}. More splits (--splits all) add days; a wider universe makes each day less noisy."
    return (
        "What would change this: a later test span in which the IC falls back to zero, a leak that "
        "`manyhead stocks canary` finds, or more settings tried on these prices than the ledger has counted."
    )


def facts(result: Result) -> list[tuple[str, str]]:
    """What was run, as pairs."""
    config, data = result.config, RunFolder(result.folder).read_json("data.json")
    tested = result.scores.filter(pl.col("part") == "test")
    width = tested.group_by("date", "model", "seed").len()["len"].to_numpy()
    low, high = int(width.min()), int(width.max())
    lags = f", lags {', '.join(map(str, config.factors.lags))}" if config.factors.lags else ", all lags"
    scaling = (
        "cleaned, neutralised and scaled across stocks within each day"
        if config.factors.scaling == "cross_section"
        else "scaled with training rows"
    )
    return [
        (
            "prices",
            f"{data['source']}: {data['symbols']} symbols, {data['days']} days, {data['first']} to "
            f"{data['last']}",
        ),
        ("fields", ", ".join(data["fields"])),
        (
            "universe",
            f"{config.universe.count} most traded over the {config.universe.window} days before each "
            "training end; "
            f"{low} to {high} scored a day",
        ),
        (
            "factors",
            f"{' + '.join(config.factors.sets)}{lags if 'alpha360' in config.factors.sets else ''}; "
            f"{scaling}",
        ),
        (
            "relations",
            f"{config.relations.kind} on training rows"
            if not config.leaks.graph_all_dates
            else f"{config.relations.kind} on all rows (a leak)",
        ),
        (
            "network",
            f"width {config.model.dim}, {config.model.layers} layer(s), {config.model.input_days} days in, "
            f"{config.model.output_days} out, alignment '{config.model.alignment}'",
        ),
        (
            "training",
            f"up to {config.training.epochs} epochs, batch {config.training.batch_size}, best epoch by "
            "validation "
            f"{config.training.monitor}, seeds {', '.join(map(str, config.training.seeds))}, "
            f"{config.training.precision}",
        ),
        (
            "splits",
            f"{config.splits.train} train, {config.splits.validation} validation, {config.splits.test} "
            "test days",
        ),
    ]


def biases(result: Result) -> list[str]:
    """What may make the result look better, or different, than it would have been."""
    notes = list(result.warnings)
    if result.config.data.membership is None:
        notes.append(
            "Survivorship: the symbols are those of the price file. If it lists today's members of an "
            "index, names "
            "that failed or left are missing, and returns of every long portfolio, the equal-weight "
            "benchmark "
            "included, are too high. Compare with the benchmark, not with zero."
        )
    for leak in result.config.leaks.on():
        notes.append(f"Leak '{leak}' is on: {LEAKS[leak]}.")
    return notes


def strategy(result: Result) -> str:
    """How scores are held."""
    config, wanted = result.config, result.config.portfolio
    when = "at the close of the score's own day" if config.leaks.one_day_early else "at the next day's close"
    fees = (
        "free of costs"
        if config.leaks.zero_fees
        else f"{1e4 * wanted.open_cost:g} basis points on purchases, {1e4 * wanted.close_cost:g} on sales"
    )
    if wanted.strategy == "simple_topk":
        return f"The {wanted.topk} best names in equal weights, rebalanced every day {when}, {fees}."
    return (
        f"TopK-Dropout: hold the best {wanted.topk} names, exchange at most {wanted.n_drop} a day, "
        f"traded {when}, {fees}."
    )


def portfolio_caption(result: Result) -> str:
    """What the portfolio chart shows."""
    book = result.books[result.models[0].model]
    cost = percent(book.metrics["annual_cost"])
    return (
        f"Score variant: {book.variant}. Costs took {cost} a year; "
        f"{percent(book.metrics['daily_turnover'])} of the "
        "account is traded on a day. The benchmark holds all scored names in equal weights without costs."
    )


def daily_ic_caption(own: ModelSkill) -> str:
    """What the daily IC chart shows."""
    good = float((own.daily_ic[np.isfinite(own.daily_ic)] > 0).mean())
    return f"IC of each test day, Stockformer: above zero on {percent(good)} of days, ICIR {own.icir:.3f}."


def decile_caption(result: Result) -> str:
    """What the decile chart shows."""
    deciles = result.models[0].deciles
    spread = 1e4 * (deciles[-1] - deciles[0])
    return (
        "Mean next-day return of stocks grouped by score each day, before costs. Best minus worst decile: "
        f"{spread:+.1f} basis points a day. A useful score climbs from left to right; click a name to add it."
    )


def training_caption(shown: int, trained: int) -> str:
    """What the learning curves show."""
    newest = f", the newest {shown} of {trained} trainings" if shown < trained else ""
    return (
        f"Stockformer only{newest}. Validation days are later than training days and earlier than test days; "
        "no test day is seen before the model is fixed."
    )


def against_lead(result: Result, other: Result) -> str:
    """Which run is which."""
    return (
        f"This run ({result.config.preset}) beside {other.folder.name} ({other.config.preset}), on the "
        "same prices. "
        "Whatever the second one adds was not there to be earned."
    )


def differences(here: Config, there: Config) -> list[str]:
    """What the other run does differently, setting by setting, leaks explained."""
    points = [f"Leak '{leak}': {LEAKS[leak]}." for leak in there.leaks.on() if leak not in here.leaks.on()]
    for section in ("universe", "splits", "factors", "relations", "model", "training", "portfolio"):
        ours, theirs = getattr(here, section), getattr(there, section)
        for key, value in theirs:
            mine = getattr(ours, key)
            if mine != value:
                points.append(f"{section}.{key}: {mine} here, {value} there.")
    return points
