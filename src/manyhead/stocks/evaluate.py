"""From one table of scores to every number about skill: daily IC, its intervals, accuracy, deciles.

The table is long, one row per split, model, seed, date and symbol (see `items.read_scores`), so that each
number of a report can be computed again from one Parquet file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.stocks.intervals import Interval, bootstrap, mean, ratio, standard_error
from manyhead.stocks.metrics import (
    Skill,
    daily_ic,
    daily_rank_ic,
    direction_accuracy,
    group_returns,
    information_ratio,
    majority_rate,
    skill,
)
from manyhead.stocks.preprocess.daily import standardised

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """The dates and symbols that scores are laid out on."""

    dates: NDArray[np.datetime64]
    symbols: tuple[str, ...]

    def matrix(self, scores: pl.DataFrame, column: str) -> Series:
        """Lay one column of a long table out as (days, symbols), NaN where it has no row or is null."""
        values = np.full((len(self.dates), len(self.symbols)), np.nan)
        columns = pl.DataFrame({"symbol": list(self.symbols), "column": np.arange(len(self.symbols))})
        placed = scores.select("date", "symbol", column).join(columns, on="symbol")
        rows = np.searchsorted(self.dates, placed["date"].to_numpy().astype("datetime64[D]"))
        values[rows, placed["column"].to_numpy()] = (
            placed[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
        )
        return values


def grid_of(scores: pl.DataFrame) -> Grid:
    """Return the dates and symbols that occur in a score table, both sorted."""
    dates = scores["date"].unique().sort().to_numpy().astype("datetime64[D]")
    return Grid(dates, tuple(scores["symbol"].unique().sort()))


@dataclass(frozen=True)
class ModelSkill:
    """A model's skill over all test days of all splits; daily series are means over seeds.

    Attributes:
        dates: (days,) test days.
        daily_ic, daily_rank_ic: (days,) mean over seeds.
        ic, rank_ic: means with 95 % block-bootstrap intervals.
        ic_se, rank_ic_se: Newey-West standard errors of the means.
        icir, rank_icir: mean over standard deviation of the daily series.
        accuracy, majority: share of right directions, and that of always naming the more frequent one.
        deciles: (10,) mean daily return by score decile, lowest scores first.
        seed_ic: mean IC of each seed.
        seeds: how many.
    """

    model: str
    dates: NDArray[np.datetime64]
    daily_ic: Series
    daily_rank_ic: Series
    ic: Interval
    rank_ic: Interval
    icir_interval: Interval
    ic_se: float
    rank_ic_se: float
    icir: float
    rank_icir: float
    accuracy: float
    majority: float
    deciles: Series
    seed_ic: list[float]

    @property
    def seeds(self) -> int:
        return len(self.seed_ic)


def directions(regression: Series, classification: Series) -> NDArray[np.int64]:
    """Return predicted directions: the classifier's where there is one, else the sign; -1 without score."""
    up = np.where(np.isfinite(classification), classification > 0.5, regression > 0)
    return np.where(np.isfinite(regression), up, -1).astype(np.int64)


def model_skill(scores: pl.DataFrame, model: str) -> ModelSkill:
    """Summarise one model's test scores over all splits and seeds."""
    own = scores.filter((pl.col("model") == model) & (pl.col("part") == "test"))
    grid = grid_of(own)
    earned = grid.matrix(own, "earned")
    pearson, spearman, accuracies, deciles = [], [], [], []
    for _, group in sorted(own.group_by("seed"), key=lambda pair: pair[0]):
        score = grid.matrix(group, "score")
        pearson.append(daily_ic(score, earned))
        spearman.append(daily_rank_ic(score, earned))
        predicted = directions(grid.matrix(group, "regression"), grid.matrix(group, "classification"))
        accuracies.append(direction_accuracy(predicted, earned))
        deciles.append(_mean_over_days(group_returns(score, earned, 10)))
    daily, daily_rank = mean_over_seeds(pearson), mean_over_seeds(spearman)
    return ModelSkill(
        model=model,
        dates=grid.dates,
        daily_ic=daily,
        daily_rank_ic=daily_rank,
        ic=bootstrap(daily, mean),
        rank_ic=bootstrap(daily_rank, mean),
        icir_interval=bootstrap(daily, ratio),
        ic_se=standard_error(daily, None),
        rank_ic_se=standard_error(daily_rank, None),
        icir=information_ratio(daily),
        rank_icir=information_ratio(daily_rank),
        accuracy=float(np.mean(accuracies)),
        majority=majority_rate(earned),
        deciles=mean_over_seeds(deciles),
        seed_ic=[
            float(np.nanmean(series)) if np.isfinite(series).any() else float("nan") for series in pearson
        ],
    )


def skill_table(scores: pl.DataFrame) -> pl.DataFrame:
    """Return one row of skill per split, model and seed, over its test days."""
    rows = []
    tested = scores.filter(pl.col("part") == "test")
    for key, own in sorted(tested.group_by("split", "model", "seed"), key=lambda pair: pair[0]):
        grid = grid_of(own)
        predicted = directions(grid.matrix(own, "regression"), grid.matrix(own, "classification"))
        found: Skill = skill(grid.matrix(own, "score"), grid.matrix(own, "earned"), predicted, lags=None)
        split, model, seed = key
        rows.append({"split": split, "model": model, "seed": seed} | vars(found))
    return pl.DataFrame(rows)


def ensemble(scores: pl.DataFrame, model: str, grid: Grid, column: str = "score") -> Series:
    """Average a model's test scores over seeds after standardising each day: (days, symbols).

    Seeds differ in the scale of their scores and may have chosen different variants; within a day only
    the order and relative distance of scores matter.
    """
    own = scores.filter((pl.col("model") == model) & (pl.col("part") == "test"))
    tables = []
    for _, group in sorted(own.group_by("seed"), key=lambda pair: pair[0]):
        tables.append(standardised(grid.matrix(group, column)))
    return mean_over_seeds(tables)


def models_of(scores: pl.DataFrame) -> list[str]:
    """Return the models of a table, Stockformer first, the others by name."""
    return sorted(scores["model"].unique(), key=lambda name: (name != "stockformer", name))


def mean_over_seeds(tables: Sequence[Series]) -> Series:
    """Mean over equal arrays, cell by cell, NaN only where every one is NaN."""
    stacked = np.stack(tables)
    known = np.isfinite(stacked)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _mean_over_days(table: Series) -> Series:
    return mean_over_seeds(list(table))
