"""Alpha360, Alpha158 and the labels against Qlib's own handlers; every factor is an output of its own."""

from typing import Any

import numpy as np

from manyhead.stocks.factors import Factors, alpha158, alpha360
from manyhead.stocks.labels import next_return
from manyhead.stocks.panel import Panel
from manyhead.stocks.preprocess import (
    FillMissing,
    InfiniteToMean,
    Pipeline,
    TrainingZScore,
    learn_labels,
)

FIELDS = ("open", "high", "low", "close", "vwap", "volume")


def run(arrays: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare each column alone: among 360, a wrong small one would not show beside a large one."""
    dates = arrays["dates"].astype("datetime64[D]")
    symbols = tuple(arrays["symbols"].tolist())
    panel = Panel(dates, symbols, {name: arrays[f"in_{name}"] for name in FIELDS})
    rows = arrays["rows"]
    fit = range(
        int(np.searchsorted(dates, np.datetime64(arrays["config"]["fit_start"]))),
        int(np.searchsorted(dates, np.datetime64(arrays["config"]["fit_end"]), side="right")),
    )
    lagged, rolling = alpha360(panel), alpha158(panel)
    infer = Pipeline((InfiniteToMean(), TrainingZScore(), FillMissing())).fit(lagged, fit).apply(lagged)
    label = next_return(panel["close"])
    return {
        "names360": (np.array(lagged.names), arrays["names360"].astype(str)),
        "names158": (np.array(rolling.names), arrays["names158"].astype(str)),
        **_columns("alpha360_raw", lagged, lagged.values[rows], arrays["alpha360_raw"]),
        **_columns(
            "alpha360_infer",
            lagged,
            np.stack([infer.rows(row, row + 1)[0] for row in rows]),
            arrays["alpha360_infer"],
        ),
        **_columns("alpha158_raw", rolling, rolling.values[rows], arrays["alpha158_raw"]),
        "label_raw": (label, arrays["label_raw"]),
        "label_learn": (learn_labels(label, fit, qlib_compat=True), arrays["label_learn"]),
    }


def _columns(kind: str, source: Factors, ours: Any, official: Any) -> dict[str, tuple[Any, Any]]:
    if ours.shape != official.shape:
        return {kind: (ours, official)}
    return {
        f"{kind}/{name}": (ours[..., column], official[..., column])
        for column, name in enumerate(source.names)
    }
