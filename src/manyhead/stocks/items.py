"""One piece of a stock run: one model with one seed on one split, trained, scored and stored.

A piece lives in a folder of its own and is done when `item.json` is there, which is written last. A piece
that was killed is run again; Stockformer resumes from its last checkpoint.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.files import atomic, write_text
from manyhead.stocks.config import Config
from manyhead.stocks.metrics import daily_ic
from manyhead.stocks.panel import Panel
from manyhead.stocks.splits import choose_splits

STOCKFORMER = "stockformer"
Floats = NDArray[np.float32]


@dataclass(frozen=True, order=True)
class Item:
    """One model with one seed on one split."""

    split: int
    model: str
    seed: int

    def __str__(self) -> str:
        return f"split {self.split} {self.model} seed {self.seed}"

    def folder(self, run: Path) -> Path:
        """Folder of this piece inside a run's folder."""
        return run / "items" / f"split-{self.split:03d}" / f"{self.model}-{self.seed}"

    def done(self, run: Path) -> bool:
        """Whether this piece has been completed."""
        return (self.folder(run) / "item.json").exists()


@dataclass(frozen=True)
class Scored:
    """Scores of some decision rows, in up to two variants.

    Args:
        rows: (days,) calendar rows.
        regression: (days, N) score; for Stockformer the forecast return.
        probability: (days, N) probability of a rise, or None for a model without classes.
    """

    rows: NDArray[np.int64]
    regression: Floats
    probability: Floats | None

    def variants(self) -> dict[str, Floats]:
        """Score tables by variant name."""
        both = {"regression": self.regression}
        return both if self.probability is None else both | {"classification": self.probability}


def choose(validation: Scored, flow: Floats, wanted: str) -> tuple[str, dict[str, float]]:
    """Choose the variant of the score by its mean daily IC on validation days.

    Args:
        validation: scores of validation rows.
        flow: (rows of the calendar, N) next returns.
        wanted: 'validation' chooses; the name of a variant takes it where the model has it.

    Returns:
        the variant's name and each variant's validation IC.
    """
    skill: dict[str, float] = {}
    for name, scores in validation.variants().items():
        daily = daily_ic(scores, flow[validation.rows])
        known = daily[np.isfinite(daily)]
        skill[name] = float(known.mean()) if len(known) else float("-inf")
    if wanted in skill:
        return wanted, skill
    return max(skill, key=lambda name: skill[name]), skill


def table(
    scored: Scored, part: str, dates: NDArray[np.datetime64], symbols: Sequence[str], flow: Floats
) -> pl.DataFrame:
    """Lay scores out as a long table: date, symbol, part, both variants, and what the decision earned.

    Cells without a score (the symbol has no price that day) are left out; `earned` is null where it is not
    known.
    """
    days, width = scored.regression.shape
    inside = scored.rows < len(flow)
    earned = np.where(inside[:, None], flow[np.minimum(scored.rows, len(flow) - 1)], np.nan)
    probability = np.full((days, width), np.nan) if scored.probability is None else scored.probability
    long = pl.DataFrame(
        {
            "date": np.repeat(dates[scored.rows], width),
            "symbol": list(symbols) * days,
            "regression": scored.regression.reshape(-1).astype(np.float64),
            "classification": probability.reshape(-1).astype(np.float64),
            "earned": earned.reshape(-1).astype(np.float64),
        }
    )
    return (
        long.with_columns(pl.lit(part).alias("part"), pl.col("date").cast(pl.Date))
        .filter(pl.col("regression").is_finite())
        .with_columns(pl.col("classification", "earned").fill_nan(None))
        .select("part", "date", "symbol", "regression", "classification", "earned")
    )


def store(
    run: Path,
    item: Item,
    scores: pl.DataFrame,
    facts: dict[str, Any],
    history: list[dict[str, float]],
    started: float,
) -> None:
    """Write a piece's scores, then `item.json`, which marks it done."""
    folder = item.folder(run)
    with atomic(folder / "scores.parquet") as stream:
        scores.write_parquet(stream)
    record = asdict(item) | facts | {"history": history, "seconds": time.perf_counter() - started}
    write_text(folder / "item.json", json.dumps(record, indent=1) + "\n")


def read_facts(run: Path, item: Item) -> dict[str, Any]:
    """Read what a completed piece recorded."""
    facts: dict[str, Any] = json.loads((item.folder(run) / "item.json").read_text(encoding="utf-8"))
    return facts


def read_scores(run: Path, items: Sequence[Item]) -> pl.DataFrame:
    """Read the scores of completed pieces as one table, with columns split, model and seed in front.

    `score` is the variant that the piece chose on validation, which `choice` names.
    """
    tables = []
    for item in sorted(items):
        choice = read_facts(run, item)["choice"]
        tables.append(
            pl.read_parquet(item.folder(run) / "scores.parquet").select(
                pl.lit(item.split, pl.Int32).alias("split"),
                pl.lit(item.model).alias("model"),
                pl.lit(item.seed, pl.Int32).alias("seed"),
                pl.all(),
                pl.lit(choice).alias("choice"),
                pl.col(choice).alias("score"),
            )
        )
    return pl.concat(tables)


def pieces_of(config: Config, panel: Panel) -> list[Item]:
    """List the pieces of a run, split by split; only models with randomness are repeated over seeds."""
    from manyhead.stocks.baselines import is_random

    pieces = []
    for split in choose_splits(config, panel.days):
        for seed in config.training.seeds:
            pieces.append(Item(split, STOCKFORMER, seed))
            pieces += [
                Item(split, name, seed)
                for name in config.baselines.names
                if is_random(name) or seed == config.training.seeds[0]
            ]
    return pieces
