"""Train Stockformer on one split and score its validation and test days."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead.errors import InputError
from manyhead.files import atomic, write_bytes
from manyhead.stocks.config import Config
from manyhead.stocks.dataset import Batch, Samples
from manyhead.stocks.items import Scored
from manyhead.stocks.metrics import daily_ic
from manyhead.stocks.prepare import Prepared
from manyhead.stocks.selector import Selector, build_selector
from manyhead.stocks.wavelet import wavelet_split
from manyhead.tasks.balancers import Balancer, balancer_by_name
from manyhead.training import Fitted, fit
from manyhead.training.schedules import plateau

Floats = NDArray[np.float32]

WEIGHTS = "model.safetensors"
# days over which attention is averaged for the report, and links kept for each symbol
ATTENTION_DAYS = 8
ATTENTION_LINKS = 20


def train(
    prepared: Prepared, config: Config, seed: int, folder: Path | None = None, progress: bool = False
) -> tuple[Selector, Fitted]:
    """Train Stockformer; the best epoch on validation rows is kept.

    Args:
        prepared: one split.
        config: settings of the run.
        seed: of weights, sample order and dropout.
        folder: where checkpoints go; a run found there is resumed.
        progress: show a bar.

    Returns:
        the trained selector in evaluation mode, and what the training did.

    Raises:
        InputError: if the split leaves no labelled window to train or to validate on.
    """
    settings, windows, split = config.training, prepared.windows, prepared.split
    within = config.splits.within
    training = windows.decision_rows(split.train, within=within, labelled=True)
    validation = windows.decision_rows(split.validation, within=within, labelled=True)
    for name, rows, span in (("train", training, split.train), ("validation", validation, split.validation)):
        if not len(rows):
            raise InputError(
                f"splits.{name} of {len(span)} days leaves no window of {config.model.input_days} input and "
                f"{config.model.output_days} output days"
            )
    selector = build_selector(config, len(windows.factors.names), prepared.nodes, seed)
    mode: Literal["min", "max"] = "max" if settings.monitor == "ic" else "min"
    fitted = fit(
        selector,
        Samples(windows, training),
        losses=_losses,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        validate=partial(_validate, prepared=prepared, rows=validation),
        monitor=settings.monitor,
        mode=mode,
        patience=settings.patience or None,
        balancer=_balancer(config),
        optimizer=partial(torch.optim.Adam, lr=settings.learning_rate),
        schedule=plateau(factor=0.1, patience=20, mode=mode, threshold=1e-3, min_lr=2e-6),
        clip_norm=settings.clip_norm,
        seed=seed,
        precision=settings.precision,
        accelerator=settings.device,
        folder=folder,
        resume=folder is not None,
        progress=progress,
    )
    return selector.eval(), fitted


def score(selector: Selector, prepared: Prepared, rows: NDArray[np.int64], config: Config) -> Scored:
    """Score decision rows with a trained selector, in the variants that it was trained for."""
    regression, probability = selector.score(prepared.windows, rows)
    if "regression" not in config.model.tasks:
        return masked(probability, None, prepared, rows)
    if "classification" not in config.model.tasks:
        return masked(regression, None, prepared, rows)
    return masked(regression, probability, prepared, rows)


def masked(
    regression: Floats,
    probability: Floats | None,
    prepared: Prepared,
    rows: NDArray[np.int64],
) -> Scored:
    """Take scores away from symbols without a price that day."""
    absent = ~prepared.tradable[rows]
    missing = np.float32(np.nan)
    return Scored(
        rows,
        np.where(absent, missing, regression),
        None if probability is None else np.where(absent, missing, probability),
    )


def attention(selector: Selector, prepared: Prepared, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return who attends to whom, averaged over rows, days, layers and branches: (N, N), rows sum to 1.

    Row n holds what symbol n receives from each other symbol.
    """
    batch = prepared.windows.batch(rows)
    low, high = wavelet_split(batch.returns, wave=selector.wavelet)
    with torch.no_grad():
        weights = selector.network.spatial_attention(
            low, high, batch.time, batch.factors, batch.trend, selector.nodes
        )
    return np.asarray(weights.mean((0, 1)).cpu().numpy(), np.float32)


def save(selector: Selector, prepared: Prepared, folder: Path) -> None:
    """Write the trained weights with what is needed to use them: symbols and factor names, in order."""
    from safetensors.torch import save as to_bytes

    facts = {"symbols": list(prepared.panel.symbols), "factors": list(prepared.windows.factors.names)}
    weights = {name: value.contiguous() for name, value in selector.state_dict().items()}
    write_bytes(folder / WEIGHTS, to_bytes(weights, {"manyhead": json.dumps(facts)}))


def load(folder: Path, config: Config) -> tuple[Selector, list[str]]:
    """Read a trained selector and the symbols it was trained for.

    Raises:
        InputError: if the file is missing or damaged, or belongs to other settings.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    try:
        with safe_open(file, framework="pt") as stored:
            facts = json.loads((stored.metadata() or {})["manyhead"])
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        selector = build_selector(config, len(facts["factors"]), weights["nodes"].numpy(), seed=0)
        selector.load_state_dict(weights)
    except FileNotFoundError:
        raise InputError(f"there is no trained model {file}") from None
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as fault:
        raise InputError(f"{file} is not a model of this run: {fault}") from None
    return selector.eval(), list(facts["symbols"])


def save_attention(selector: Selector, prepared: Prepared, rows: NDArray[np.int64], folder: Path) -> None:
    """Write the strongest links of the spatial attention over some days: attender, attended, weight."""
    sample = rows[:: max(1, len(rows) // ATTENTION_DAYS)][:ATTENTION_DAYS]
    weights = attention(selector, prepared, sample)
    count = min(ATTENTION_LINKS, weights.shape[1])
    strongest = np.argsort(-weights, axis=1, kind="stable")[:, :count]
    symbols = np.array(prepared.panel.symbols)
    links = pl.DataFrame(
        {
            "attender": np.repeat(symbols, count),
            "attended": symbols[strongest].reshape(-1),
            "weight": np.take_along_axis(weights, strongest, axis=1).reshape(-1),
        }
    )
    with atomic(folder / "attention.parquet") as stream:
        links.write_parquet(stream)


def discard_checkpoints(folder: Path) -> None:
    """Remove the resumable state of a training that is complete; weights are kept elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)


def _losses(model: Selector, batch: Batch) -> dict[str, Tensor]:
    return model.losses(batch.to(model.nodes.device))


def _balancer(config: Config) -> Balancer:
    name = config.training.balancer
    if name == "fixed":
        weights = {"regression": 1.0, "classification": config.training.classification_weight}
        return balancer_by_name("fixed", weights={task: weights[task] for task in config.model.tasks})
    return balancer_by_name(name)


def _validate(model: Any, prepared: Prepared, rows: NDArray[np.int64]) -> dict[str, float]:
    """Mean absolute error of the return and mean daily IC of the scores on validation rows."""
    regression, probability = model.score(prepared.windows, rows)
    flow = prepared.windows.targets[rows]
    known = np.isfinite(flow) & (flow != 0)
    error = float(np.abs(regression - flow)[known].mean()) if known.any() else float("nan")
    skills = []
    for task, scores in (("regression", regression), ("classification", probability)):
        if task in model.tasks:
            daily = daily_ic(np.where(prepared.tradable[rows], scores, np.nan), flow)
            skills.append(float(np.nanmean(daily)) if np.isfinite(daily).any() else 0.0)
    return {"mae": error, "ic": float(np.mean(skills))}
