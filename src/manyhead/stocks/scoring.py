"""Score new days with the models of a finished run."""

from pathlib import Path

import numpy as np
import polars as pl

from manyhead.errors import InputError
from manyhead.stocks import learn
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.items import STOCKFORMER, Item, read_facts
from manyhead.stocks.panel import Panel
from manyhead.stocks.prepare import prepare
from manyhead.stocks.preprocess.daily import standardised
from manyhead.stocks.prices import read_prices
from manyhead.stocks.splits import Split, choose_splits
from manyhead.work import torch_threads


@torch_threads()
def predict(folder: str | Path, prices: str | None = None, days: int = 1) -> pl.DataFrame:
    """Score the newest days with the newest split's Stockformer models, averaged over seeds.

    Args:
        folder: a run.
        prices: newer prices, which must contain the training days of the run; the run's own if left out.
        days: how many of the newest days to score.

    Returns:
        date, symbol, score (standardised within the day), rank (1 is best), forecast (next return, mean over
        seeds) and probability (of a rise); symbols without a price that day are left out.

    Raises:
        InputError: if there is no trained model, or the prices do not contain its days and symbols.
    """
    if days < 1:
        raise InputError(f"days must be at least 1, got {days}")
    place = RunFolder(Path(folder))
    config = place.config()
    trained_on, sectors = place.panel()
    index, split = max(choose_splits(config, trained_on.days).items())
    panel = trained_on if prices is None else read_prices(prices, start=config.data.start)
    split = moved_split(split, trained_on, panel)
    scores, forecasts, chances = [], [], []
    for seed in config.training.seeds:
        item = Item(index, STOCKFORMER, seed)
        selector, symbols = learn.load(item.folder(place.path), config)
        prepared = prepare(panel, split, config, sectors, seed, symbols=symbols, nodes=selector.nodes.numpy())
        last = prepared.panel.days
        rows = np.arange(max(prepared.windows.reach, last - days), last)
        scored = learn.score(selector, prepared, rows, config)
        chosen = scored.variants()[read_facts(place.path, item)["choice"]]
        scores.append(standardised(chosen.astype(np.float64)))
        forecasts.append(scored.regression)
        chances.append(scored.regression if scored.probability is None else scored.probability)
    width = len(symbols)
    table = pl.DataFrame(
        {
            "date": np.repeat(prepared.panel.dates[rows], width),
            "symbol": list(symbols) * len(rows),
            "score": np.mean(scores, axis=0).reshape(-1),
            "forecast": np.mean(forecasts, axis=0).reshape(-1).astype(np.float64),
            "probability": np.mean(chances, axis=0).reshape(-1).astype(np.float64),
        }
    )
    return (
        table.filter(pl.col("score").is_finite())
        .with_columns(
            pl.col("score").rank("ordinal", descending=True).over("date").cast(pl.Int32).alias("rank")
        )
        .sort("date", "rank")
        .select(pl.col("date").cast(pl.Date), "symbol", "score", "rank", "forecast", "probability")
    )


def moved_split(split: Split, old: Panel, new: Panel) -> Split:
    """Find a split's days in newer prices; its test span runs to their end."""
    wanted = old.dates[[split.start, split.train_end, split.validation_end]]
    rows = np.searchsorted(new.dates, wanted)
    if (rows >= new.days).any() or (new.dates[np.minimum(rows, new.days - 1)] != wanted).any():
        raise InputError(
            f"the prices must contain the run's training and validation days from {wanted[0]} on; "
            f"these run from {new.dates[0]} to {new.dates[-1]}"
        )
    return Split(int(rows[0]), int(rows[1]), int(rows[2]), new.days)
