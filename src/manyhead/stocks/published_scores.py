"""Scores of a published network on any panel, in the released pipeline's terms and without its leaks."""

import copy

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.calendar import FIRST_DAY, YEAR, running_index
from manyhead.stocks.config import Config, build
from manyhead.stocks.dataset import Windows
from manyhead.stocks.factors import Chosen, Factors, LaggedAlpha360, join
from manyhead.stocks.labels import Alignment, next_return
from manyhead.stocks.network import Stockformer
from manyhead.stocks.panel import Panel
from manyhead.stocks.prepare import HISTORY, choose_universe, relate, standardise
from manyhead.stocks.published import LABEL, Published
from manyhead.stocks.selector import Selector
from manyhead.stocks.splits import Split

# training and validation rows of a released sub-dataset: what the graph and the scaler see
KNOWN, FEWEST = 567, 60


def score_published(
    model: Published,
    panel: Panel,
    *,
    days: int = 60,
    universe: int | str = "all",
    nodes: NDArray[np.float32] | None = None,
) -> pl.DataFrame:
    """Score the newest days of a panel with a published network.

    Factors are scaled, the universe chosen and the node vectors made on the (at most 567) rows before these
    days, so that no score sees a later day.

    Args:
        model: the network.
        panel: prices.
        days: decision days, the newest ones.
        universe: how many of the most traded symbols, or 'all'.
        nodes: (N, dim) node vectors in the order of the panel's symbols, for the released ones;
            made as the released code does, by the order of the symbols, if left out. Needs `universe='all'`.

    Returns:
        date, symbol, score (the forecast return), probability (of a rise); best of a day first.

    Raises:
        InputError: if the prices are too short, or the node vectors do not fit.
    """
    network = model.network
    config = _settings(network, universe)
    if days < 1:
        raise InputError(f"days must be at least 1, got {days}")
    before = panel.days - days
    if before < FEWEST:
        raise InputError(
            f"the prices cover {panel.days} days; to score {days} at least {FEWEST + days} are needed"
        )
    split = Split(max(0, before - KNOWN), before, before, panel.days)
    symbols, _ = choose_universe(panel, split, config)
    first = max(0, split.start - HISTORY)
    shown = panel.select(symbols).rows(first, panel.days)
    moved = Split(*(row - first for row in vars(split).values()))
    flow = next_return(shown["close"].astype(np.float64)).astype(np.float32)
    held = Factors((LABEL,), flow[..., None])
    raw = Chosen(join([LaggedAlpha360(shown), held]), model.factors)
    factors = standardise(raw, shown, moved, config, None)
    if nodes is None:
        nodes = relate(shown, flow, moved, config, seed=0)
    elif nodes.shape != (len(panel.symbols), network.dim):
        raise InputError(
            f"nodes must be ({len(panel.symbols)}, {network.dim}), a row for each symbol, got {nodes.shape}"
        )
    else:
        place = {symbol: row for row, symbol in enumerate(panel.symbols)}
        nodes = np.asarray(nodes[[place[symbol] for symbol in shown.symbols]], np.float32)
    alignment = Alignment("official", network.input_days, network.output_days)
    # the counter begins with the first row of a sub-dataset
    time = running_index(shown.days + network.output_days, (FIRST_DAY - moved.start) % YEAR)
    windows = Windows(flow, factors, time, alignment)
    rows = windows.decision_rows(moved.test)
    regression, probability = Selector(_silenced(model), torch.from_numpy(nodes)).score(windows, rows)
    absent = ~np.isfinite(shown["close"][rows])
    return (
        pl.DataFrame(
            {
                "date": np.repeat(shown.dates[rows], len(shown.symbols)),
                "symbol": list(shown.symbols) * len(rows),
                "score": np.where(absent, np.nan, regression).reshape(-1).astype(np.float64),
                "probability": probability.reshape(-1).astype(np.float64),
            }
        )
        .with_columns(pl.col("date").cast(pl.Date))
        .filter(pl.col("score").is_finite())
        .sort(["date", "score", "symbol"], descending=[False, True, False])
    )


def _silenced(model: Published) -> Stockformer:
    """A copy that takes nothing from columns that were zero in training."""
    network = copy.deepcopy(model.network)
    columns = [2 + model.factors.index(name) for name in model.untrained]
    with torch.no_grad():
        network.start.first.weight[:, columns] = 0.0
    return network.eval()


def _settings(network: Stockformer, universe: int | str) -> Config:
    """Settings of the released pipeline for one sub-dataset: factors scaled by what is known beforehand."""
    return build(
        {
            "universe": {"count": universe},
            "factors": {"lags": (), "outliers": "none", "neutralise": False, "scaling": "training"},
            "relations": {"kind": "official_order"},
            "model": {
                "dim": network.dim,
                "layers": len(network.encoder),
                "input_days": network.input_days,
                "output_days": network.output_days,
                "alignment": "official",
                "calendar": "counter",
            },
        }
    )
