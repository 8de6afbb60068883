"""What a run found: every number, computed from the pieces in its folder."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyhead.errors import InputError
from manyhead.stocks.book import Book, hold
from manyhead.stocks.config import Config
from manyhead.stocks.evaluate import Grid, ModelSkill, ensemble, model_skill, models_of, skill_table
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.items import pieces_of, read_scores
from manyhead.stocks.panel import Panel
from manyhead.stocks.splits import Split, choose_splits

# every evaluation on a data set, beside the folders of the runs
LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        folder: where everything is kept.
        config: its settings.
        panel: its prices.
        splits: splits by index.
        scores: one row per split, model, seed, part, date and symbol.
        skill: one row per split, model and seed.
        models: skill of each model over all splits, Stockformer first.
        books: portfolio of each model.
        held: the configuration's other books: book -> model -> portfolio.
        warnings: what a reader must know of the prices.
    """

    folder: Path
    config: Config
    panel: Panel
    splits: dict[int, Split]
    scores: pl.DataFrame
    skill: pl.DataFrame
    models: list[ModelSkill]
    books: dict[str, Book]
    warnings: tuple[str, ...]
    held: dict[str, dict[str, Book]] = field(default_factory=dict)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return RunFolder(self.folder).report_file


def collect(folder: str | Path, config: Config | None = None) -> Result:
    """Compute every number of a run from the pieces in its folder.

    Args:
        folder: of the run.
        config: the run's settings with other ones for what happens after scoring: portfolio, and the
            leaks of masking, choice, fees and timing.

    Raises:
        InputError: if the folder holds no run, or pieces are missing.
    """
    place = RunFolder(Path(folder))
    config = place.config() if config is None else config
    panel, sectors = place.panel()
    pieces = pieces_of(config, panel)
    missing = [item for item in pieces if not item.done(place.path)]
    if missing:
        raise InputError(
            f"the run in {place.path} is not complete: {len(missing)} of {len(pieces)} pieces are missing, "
            f"such as {missing[0]}; `manyhead stocks run --resume --out {place.path}` continues it"
        )
    scores = read_scores(place.path, pieces)
    if config.leaks.label_masking:
        scores = label_masked(scores)
    names = models_of(scores)
    traded = panel.select(sorted(scores["symbol"].unique()))
    books = {name: _book(traded, scores, name, config) for name in names}
    grid = Grid(traded.dates, traded.symbols)
    held = {
        book: {
            name: hold(traded, ensemble(scores, name, grid), config, name, book, sectors)
            for name in (names if wanted.models == "all" else names[:1])
        }
        for book, wanted in config.books.items()
    }
    return Result(
        folder=place.path,
        config=config,
        panel=panel,
        splits=choose_splits(config, panel.days),
        scores=scores,
        skill=skill_table(scores),
        models=[model_skill(scores, name) for name in names],
        books=books,
        warnings=panel.warnings,
        held=held,
    )


def label_masked(scores: pl.DataFrame) -> pl.DataFrame:
    """Overwrite scores where the realised return is 0 or missing, as the released code does: a leak."""
    still = pl.col("earned").fill_null(0.0) == 0
    worst = pl.when(pl.col("choice") == "classification").then(0.0).otherwise(-1e9)
    return scores.with_columns(
        pl.when(still).then(-1e9).otherwise(pl.col("regression")).alias("regression"),
        pl.when(still).then(0.0).otherwise(pl.col("classification")).alias("classification"),
        pl.when(still).then(worst).otherwise(pl.col("score")).alias("score"),
    )


def _book(panel: Panel, scores: pl.DataFrame, model: str, config: Config) -> Book:
    """Hold a model's scores, averaged over seeds; the leaky choice looks at test results."""
    grid = Grid(panel.dates, panel.symbols)
    if not config.leaks.choice_on_test:
        return hold(panel, ensemble(scores, model, grid), config, model)
    own = scores.filter(pl.col("model") == model)
    variants = ["regression"] + (["classification"] if own["classification"].is_not_null().any() else [])
    tried = {name: hold(panel, ensemble(scores, model, grid, name), config, model) for name in variants}
    best = max(tried, key=lambda name: np.nan_to_num(tried[name].metrics["sharpe"], nan=-np.inf))
    book = tried[best]
    return replace(book, variant=f"{best}, chosen on the test Sharpe")


def metrics(result: Result) -> dict[str, Any]:
    """Every model's skill and portfolio as plain numbers."""
    return {
        skill.model: {
            "ic": skill.ic.estimate,
            "ic_low": skill.ic.low,
            "ic_high": skill.ic.high,
            "ic_se": skill.ic_se,
            "icir": skill.icir,
            "rank_ic": skill.rank_ic.estimate,
            "rank_ic_se": skill.rank_ic_se,
            "rank_icir": skill.rank_icir,
            "accuracy": skill.accuracy,
            "majority": skill.majority,
            "seed_ic": skill.seed_ic,
            "portfolio": result.books[skill.model].metrics,
            "books": {
                name: by_model[skill.model].metrics
                for name, by_model in result.held.items()
                if skill.model in by_model
            },
        }
        for skill in result.models
    }
