"""Baselines that were fitted, kept in a run and used on later days.

What a baseline learnt is numbers, arrays, trees or the weights of a network; each is stored as such, in one
safetensors file with its settings beside them. Nothing in it is executed when it is read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from manyhead.errors import InputError, optional
from manyhead.files import write_bytes
from manyhead.stocks.baselines import Inputs
from manyhead.stocks.baselines.base import Baseline
from manyhead.stocks.baselines.tuning import baseline

WEIGHTS = "model.safetensors"


def by_day(model: Baseline, inputs: Inputs, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Forecast each decision row by itself, (rows, N): its bits must not depend on the days beside it."""
    if not len(rows):
        return np.empty((0, inputs.stocks), np.float32)
    return np.concatenate([model.predict(inputs, rows[place : place + 1]) for place in range(len(rows))])


def save_baseline(model: Baseline, inputs: Inputs, symbols: tuple[str, ...], folder: Path) -> None:
    """Write a fitted baseline with the symbols and factors that it was fitted on.

    Args:
        model: fitted.
        inputs: what it was fitted on.
        symbols: columns of `inputs`, in order.
        folder: of the piece of work.

    Raises:
        TypeError: if the baseline holds something that has no such form.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    facts: dict[str, Any] = {
        "choice": model.choice,
        "seed": model.seed,
        "symbols": list(symbols),
        "factors": list(inputs.windows.factors.names),
        "width": inputs.width,
        "days": inputs.windows.alignment.input_days,
        "numbers": numbers,
    }
    for name, value in vars(model).items():
        if name in ("choice", "seed"):
            continue
        if isinstance(value, nn.Module):
            facts["network"] = {"name": name, "scale": value.scale, "step": value.step}
            tensors |= {key: weight.contiguous() for key, weight in value.state_dict().items()}
        elif isinstance(value, np.ndarray):
            tensors[f"array/{name}"] = torch.from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, bool | int | float):
            numbers[name] = value
        elif hasattr(value, "model_to_string"):
            facts["trees"] = {"name": name, "text": value.model_to_string()}
        else:
            raise TypeError(f"{type(model).__name__}.{name} is a {type(value).__name__} and cannot be kept")
    write_bytes(folder / WEIGHTS, save(tensors, {"manyhead": json.dumps(facts)}))


def load_baseline(name: str, folder: Path) -> tuple[Baseline, list[str]]:
    """Read a fitted baseline and the symbols that it was fitted on.

    Args:
        name: which baseline it is.
        folder: of the piece of work.

    Raises:
        InputError: if the file is missing, damaged, or of another baseline.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    try:
        with safe_open(file, framework="pt") as stored:
            facts = json.loads((stored.metadata() or {})["manyhead"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        model = baseline(name)(facts["choice"], facts["seed"])
        vars(model).update(facts["numbers"])
        for key, value in tensors.items():
            if key.startswith("array/"):
                setattr(model, key.removeprefix("array/"), value.numpy())
        if "trees" in facts:
            trees = facts["trees"]
            setattr(model, trees["name"], optional("lightgbm", "stocks").Booster(model_str=trees["text"]))
        if "network" in facts:
            setattr(model, facts["network"]["name"], _network(model, facts, tensors))
    except FileNotFoundError:
        raise InputError(
            f"there is no fitted model {file}: this run was made before models were kept"
        ) from None
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as fault:
        raise InputError(f"{file} is not a {name} of this run: {fault}") from None
    return model, list(facts["symbols"])


def _network(model: Baseline, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> nn.Module:
    from manyhead.stocks.baselines.sequence import Sequence, Unit

    if not isinstance(model, Sequence):
        raise KeyError(f"{type(model).__name__} has no network")
    stored = facts["network"]
    unit = Unit(model.network(facts["width"], facts["days"]), stored["scale"], stored["step"])
    unit.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("array/")})
    return unit.eval()
