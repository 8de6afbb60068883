"""A small synthetic market for end-to-end tests: prices as a file that `read_prices` takes."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

# settings small enough to train in a second or two
SMALL: dict[str, Any] = {
    "universe": {"count": 8, "window": 60, "presence": 0.5},
    "splits": {"train": 110, "validation": 40, "test": 40, "count": 1, "step": 40},
    "factors": {"lags": [0, 1, 4]},
    "relations": {"neighbours": 3},
    "model": {"dim": 8, "layers": 1, "input_days": 8},
    "training": {"epochs": 2, "batch_size": 16},
    "baselines": {"names": ["ridge", "momentum"], "trials": 2},
    "portfolio": {"topk": 3, "n_drop": 1},
}
DAYS, SYMBOLS = 300, 11


def market(seed: int = 0, days: int = DAYS, symbols: int = SYMBOLS) -> pl.DataFrame:
    """Daily bars of random walks with a common factor; some bars are missing."""
    random = np.random.default_rng(seed)
    common = random.normal(0, 0.008, (days, 1))
    close = 50 * np.exp(np.cumsum(common + random.normal(0, 0.015, (days, symbols)), axis=0))
    opening = close * np.exp(random.normal(0, 0.004, close.shape))
    high = np.maximum(close, opening) * (1 + random.uniform(0, 0.01, close.shape))
    low = np.minimum(close, opening) * (1 - random.uniform(0, 0.01, close.shape))
    volume = np.round(np.exp(random.normal(11, 0.5, close.shape)) * np.linspace(1, 3, symbols))
    dates = np.busday_offset("2020-01-01", np.arange(days), roll="forward")
    table = pl.DataFrame(
        {
            "date": np.repeat(dates, symbols),
            "symbol": [f"S{column:02d}" for column in range(symbols)] * days,
            "open": opening.reshape(-1),
            "high": high.reshape(-1),
            "low": low.reshape(-1),
            "close": close.reshape(-1),
            "volume": volume.reshape(-1),
        }
    ).with_columns(pl.col("date").cast(pl.Date))
    absent = random.random(table.height) < 0.01
    return table.filter(~pl.Series(absent))


def written(table: pl.DataFrame, path: Path) -> str:
    """Write a table as Parquet and return its path."""
    table.write_parquet(path)
    return str(path)
