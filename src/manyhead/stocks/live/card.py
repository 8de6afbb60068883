"""The model card of a run: what the models are and are for, how good they were, whether that still holds.

`model_card.json` and `model_card.md`, written at the end of a run and again by every update. Nothing in them
is a date of writing, so that the same state gives the same files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.files import write_text
from manyhead.stocks import words
from manyhead.stocks.config import Config
from manyhead.stocks.evaluate import ModelSkill, grid_of, mean_over_seeds, model_skill, models_of
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.holding import MAIN, words_of
from manyhead.stocks.live import drift
from manyhead.stocks.metrics import daily_ic
from manyhead.stocks.panel import Panel
from manyhead.stocks.splits import Split

CARD = "model_card.json"

USE = (
    "Ranking the stocks of its universe against each other for the next trading day's close to the close "
    "after, as research on whether these prices hold such a signal.",
    "Daily scores and orders for a book that somebody answers for, as long as no alarm below is on.",
)
LIMITS = (
    "A score ranks; its level is no forecast of a price, and it says nothing of stocks outside the universe.",
    "Test figures include the luck of one history; their intervals count the days' noise, not another "
    "regime.",
    "Costs are those of the configuration; orders large against the day's volume would pay more.",
    "The universe is as good as the prices: without point-in-time membership it holds survivors.",
    "Not investment advice.",
)


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        facts: everything in it, as written to `model_card.json`.
        alarms: sentences; empty if nothing has drifted.
    """

    facts: dict[str, Any]
    alarms: list[str]


def write_card(
    place: RunFolder,
    config: Config,
    trained_on: Panel,
    split: Split,
    symbols: list[str],
    scores: pl.DataFrame,
    inputs: dict[str, Any] | None,
    before: Mapping[str, Any] | None = None,
) -> Card:
    """Write the model card of a run.

    Args:
        place: folder of the run.
        config: its settings.
        trained_on: its prices.
        split: its newest split, whose models score new days.
        symbols: their universe.
        scores: with what was earned; parts validation, test and, after updates, live.
        inputs: what `drift.input_drift` found, None if it was not looked at.
        before: an earlier card's facts; its figures of validation and test, which stay, are taken over.
    """
    names = models_of(scores)
    newest = scores["split"].max()
    own = scores.filter(pl.col("split") == newest)
    figures: dict[str, Any] = {}
    for name in names:
        known = before["figures"][name] if before else {}
        figures[name] = {
            "validation": known["validation"] if known else _figures(own, name, "validation"),
            "test": known["test"] if known else _figures(scores, name, "test"),
            "since": _figures(scores, name, "live"),
        }
    main = names[0]
    test, since = _daily(scores, main, "test"), _daily(scores, main, "live")
    skill = drift.skill_drift(test, since)
    said = drift.alarms(inputs, skill)
    data, dates = place.read_json("data.json"), trained_on.dates
    live = scores.filter(pl.col("part") == "live")["date"]
    facts: dict[str, Any] = {
        "model": {
            "main": main,
            "others": names[1:],
            "preset": config.preset,
            "seeds": list(config.training.seeds),
            "network": config.model.model_dump(mode="json"),
            "factors": config.factors.model_dump(mode="json"),
            "book": words_of(config, MAIN),
        },
        "trained": {
            "first": str(dates[split.start]),
            "last": str(dates[split.train_end - 1]),
            "validated until": str(dates[split.validation_end - 1]),
            "tested until": str(dates[-1]),
        },
        "universe": {"symbols": symbols, "rule": config.universe.model_dump(mode="json")},
        "data": {name: data[name] for name in ("source", "sha256", "first", "last", "fields", "warnings")},
        "leaks": config.leaks.on(),
        "use": list(USE),
        "limits": list(LIMITS),
        "figures": figures,
        "portfolio": place.read_json("metrics.json")[main]["portfolio"],
        "drift": {"inputs": inputs, "skill": skill, "days": drift.DRIFT_DAYS},
        "live": {"days": live.n_unique(), "last": str(live.max()) if len(live) else None},
        "alarms": said,
    }
    place.write_json(CARD, facts)
    write_text(place.path / "model_card.md", markdown(facts))
    return Card(facts, said)


def _part(scores: pl.DataFrame, part: str) -> pl.DataFrame:
    """One part of the scores as if it were the test."""
    return scores.filter((pl.col("part") == part) & pl.col("earned").is_not_null()).with_columns(
        pl.lit("test").alias("part")
    )


def _figures(scores: pl.DataFrame, model: str, part: str) -> dict[str, Any] | None:
    own = _part(scores.filter(pl.col("model") == model), part)
    if own["date"].n_unique() < 2:
        return None
    found: ModelSkill = model_skill(own, model)

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        "first": str(found.dates[0]),
        "last": str(found.dates[-1]),
        "days": len(found.dates),
        "ic": number(found.ic.estimate),
        "ic_low": number(found.ic.low),
        "ic_high": number(found.ic.high),
        "rank_ic": number(found.rank_ic.estimate),
        "accuracy": number(found.accuracy),
        "majority": number(found.majority),
    }


def _daily(scores: pl.DataFrame, model: str, part: str) -> NDArray[np.float64]:
    """Daily IC of a part, mean over seeds."""
    own = _part(scores.filter(pl.col("model") == model), part)
    if not own.height:
        return np.empty(0)
    grid = grid_of(own)
    earned = grid.matrix(own, "earned")
    groups = sorted(own.group_by("seed"), key=lambda pair: pair[0])
    return mean_over_seeds([daily_ic(grid.matrix(group, "score"), earned) for _, group in groups])


def markdown(facts: dict[str, Any]) -> str:
    """Lay a card's facts out for readers."""
    model, trained, universe = facts["model"], facts["trained"], facts["universe"]["symbols"]
    seeds = len(model["seeds"])
    lines = [
        f"# Model card: {words.name(model['main'])}",
        "",
        *(f"> **Alarm:** {said}." for said in facts["alarms"]),
        *([] if facts["alarms"] else ["> No alarm."]),
        "",
        "## What it is",
        "",
        f"{words.name(model['main'])} ({seeds} seed{'s' * (seeds != 1)}, preset {model['preset']}, width "
        f"{model['network']['dim']}, {model['network']['layers']} layer(s), {model['network']['input_days']} "
        f"days of {' + '.join(model['factors']['sets'])})"
        + (f", beside {', '.join(map(words.name, model['others']))}" if model["others"] else "")
        + f". Trained on {trained['first']} to {trained['last']}, chosen on days until "
        f"{trained['validated until']}, tested until {trained['tested until']}.",
        "",
        f"Universe: {len(universe)} symbols, {', '.join(universe[:12])}"
        f"{' ...' if len(universe) > 12 else ''}. Prices: {facts['data']['source']}, "
        f"{facts['data']['first']} to {facts['data']['last']} (SHA-256 {facts['data']['sha256'][:16]}).",
        "",
        "## What it is for",
        "",
        *(f"- {sentence}" for sentence in facts["use"]),
        "",
        "## What it cannot do",
        "",
        *(f"- Leak '{leak}' is on: for comparison only." for leak in facts["leaks"]),
        *(f"- {sentence}" for sentence in facts["limits"]),
        *(f"- {warning}." for warning in facts["data"]["warnings"]),
        "",
        "## How good it was",
        "",
        "Mean daily IC with its 95 % block-bootstrap interval; direction: share right, beside always naming "
        "the more frequent one. Validation days chose epoch and settings, so their figures flatter.",
        "",
        "| model | days | | IC | 95 % | direction | majority |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parts in facts["figures"].items():
        for part, label in (("validation", "validation"), ("test", "test"), ("since", "since the run")):
            found = parts[part]
            if found is not None:
                lines.append(
                    f"| {words.name(name)} | {label} {found['first']} to {found['last']} | {found['days']} | "
                    f"{_signed(found['ic'])} | {_signed(found['ic_low'])} to {_signed(found['ic_high'])} | "
                    f"{_share(found['accuracy'])} | {_share(found['majority'])} |"
                )
    book = facts["portfolio"]
    lines += [
        "",
        f"Held as {model['book']}, after costs over the test: {100 * book['annual_return']:.1f} % a year, "
        f"Sharpe {book['sharpe']:.2f}, deepest loss {100 * book['max_drawdown']:.1f} %; equal weights "
        f"without costs {100 * book['benchmark_annual']:.1f} %.",
        "",
        "## Does it still hold?",
        "",
        "\n\n".join(drift_points(facts)),
        *_drifted(facts),
    ]
    return "\n".join(lines) + "\n"


def drift_points(facts: dict[str, Any]) -> list[str]:
    """Say what was compared, and how near to an alarm it is."""
    inputs, skill = facts["drift"]["inputs"], facts["drift"]["skill"]
    points = ["Inputs: not compared."]
    if inputs is not None:
        points = [
            f"Inputs of {inputs['first']} to {inputs['last']} ({inputs['days']} days) against the training "
            f"days: {len(inputs['drifted'])} of {inputs['inputs']} drifted; nearest to its threshold: "
            f"{inputs['nearest']['input']} at {inputs['nearest']['share of its threshold']:.2f} of it. The "
            "measure is the population stability index over training deciles; an input may reach twice what "
            "60-day stretches of the training span reached against the rest of it, and 0.25 at least: the "
            "customary 0.25 alone is for independent cases, which market days are not."
        ]
    if skill["low"] is None:
        points.append(
            f"Skill: {skill['days']} decided days since the run; {drift.FEWEST_DAYS} are needed to judge."
        )
    else:
        points.append(
            f"Skill: mean daily IC of the last {skill['days']} decided days {_signed(skill['mean'])}; "
            f"stretches of the test as long have {_signed(skill['low'])} to {_signed(skill['high'])} (95 %)."
        )
    return points


def _drifted(facts: dict[str, Any]) -> list[str]:
    """The inputs that drifted, worst first, as a table."""
    inputs = facts["drift"]["inputs"]
    if inputs is None or not inputs["drifted"]:
        return []
    rows = [f"| {one['input']} | {one['index']:.2f} | {one['threshold']:.2f} |" for one in inputs["drifted"]]
    return ["", "| input | index | alarm above |", "|---|---|---|", *rows[:20]]


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.4f}"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"
