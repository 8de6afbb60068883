"""The released checkpoint (976,219 parameters, input width 363): what it is made of, and what it computes.

The file holds inputs, outputs, copied rows, and names, shapes and sums of the parameters with the
checkpoint's SHA-256, but no weights: those stay with their authors. Names and shapes are compared with those
of our network at the same sizes; sums, outputs and copies too where the environment variable
MANYHEAD_STOCKFORMER_CHECKPOINT names the checkpoint itself.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyhead.stocks.network import Stockformer, official_parameter_count, official_state_dict
from manyhead.stocks.published import read_published
from tests.parity.compare import Golden
from tests.parity.stockformer import OUTPUTS, inputs, watch

CHECKPOINT = "MANYHEAD_STOCKFORMER_CHECKPOINT"
NAMES = ("param_names", "parameter_names", "names", "state_names")
SHAPES = ("param_shapes", "parameter_shapes", "shapes", "state_shapes")
SUMS = ("param_sums", "parameter_sums", "sums", "state_sums")
DIGEST = ("sha256", "checkpoint_sha256", "file_sha256")


def field(arrays: Golden, names: tuple[str, ...]) -> Any:
    """An entry under one of its possible names, an array of its own or part of `config`; None if absent."""
    for holder in (arrays, arrays["config"]):
        for name in names:
            if name in holder:
                return holder[name]
    return None


def text(value: Any) -> str:
    """Text that may be stored as text, as bytes, or as an array of either."""
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    value = value.tobytes() if isinstance(value, np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else str(value)


def listed(value: Any) -> list[Any]:
    """A list that may be stored as an array or as JSON text."""
    if isinstance(value, np.ndarray) and (value.ndim == 0 or value.dtype == np.uint8):
        return list(json.loads(text(value)))
    return list(json.loads(value)) if isinstance(value, str) else list(value)


def shape(value: Any) -> tuple[int, ...]:
    """A shape that may be stored as text, as a list, or as a row padded with zeros or minus ones."""
    if isinstance(value, str | bytes | np.str_ | np.bytes_):
        return tuple(int(number) for number in re.findall(r"\d+", text(value)))
    return tuple(int(number) for number in value if int(number) > 0)


def declared(arrays: Golden) -> dict[str, tuple[tuple[int, ...], float | None]]:
    """Shape and sum of every parameter of the checkpoint by name, DataParallel's prefix dropped."""
    names, shapes, sums = (field(arrays, options) for options in (NAMES, SHAPES, SUMS))
    if isinstance(names, dict) or (names is None and isinstance(shapes, dict)):
        shapes = names if names is not None else shapes
        names, shapes = list(shapes), list(shapes.values())
    keys = [text(name) for name in listed(names)]
    if isinstance(sums, dict):
        sums = [sums[key] for key in keys]
    totals = [None] * len(keys) if sums is None else [float(total) for total in listed(sums)]
    forms = [shape(form) for form in listed(shapes)]
    return {
        key.removeprefix("module."): (form, total)
        for key, form, total in zip(keys, forms, totals, strict=True)
    }


def sized(arrays: Golden) -> Stockformer:
    """Our network with the file's sizes, its weights drawn anew."""
    config = arrays["config"]
    return Stockformer(
        features=config["infea"],
        dim=config["outfea"],
        layers=config["L"],
        input_days=config["T1"],
        output_days=config["T2"],
        classes=config.get("outfea_class", 2),
        head_dim=config["d"],
    ).eval()


def run(arrays: Golden) -> dict[str, tuple[Any, Any]]:
    theirs, network = declared(arrays), sized(arrays)
    ours = official_state_dict(network)
    pairs: dict[str, tuple[Any, Any]] = {
        "parameter names": (np.array(sorted(ours.keys() & theirs)), np.array(sorted(theirs))),
        "parameter shapes": tuple(  # type: ignore[dict-item]
            np.array([str(tuple(form)) for form in forms])
            for forms in (
                [ours[name].shape if name in ours else () for name in sorted(theirs)],
                [theirs[name][0] for name in sorted(theirs)],
            )
        ),
    }
    if "parameters" in arrays["config"]:
        counted = official_parameter_count(network), arrays["config"]["parameters"]
        pairs["parameter count"] = (np.array(counted[0]), np.array(counted[1]))
    path = os.environ.get(CHECKPOINT)
    if path:
        pairs |= computed(arrays, Path(path), theirs)
    return pairs


def computed(
    arrays: Golden, path: Path, theirs: dict[str, tuple[tuple[int, ...], float | None]]
) -> dict[str, tuple[Any, Any]]:
    """What the checkpoint itself gives: its digest, the sums of its parameters, outputs and copied rows."""
    pairs: dict[str, tuple[Any, Any]] = {}
    digest = field(arrays, DIGEST)
    if digest is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        pairs["sha256"] = (np.array(found), np.array(text(digest)))
    network = read_published(path).network
    state = official_state_dict(network)
    summed = {name: total for name, (_, total) in theirs.items() if total is not None}
    if summed:
        own = np.array([float(state[name].double().sum()) for name in summed])
        pairs["parameter sums"] = (own, np.array(list(summed.values())))
    given = inputs(arrays)
    seen = watch(network)
    with torch.no_grad():
        outputs = dict(zip(OUTPUTS, network(**given), strict=True))
    pairs |= {f"out_{name}": (outputs[name], arrays[f"out_{name}"]) for name in OUTPUTS}
    for name in arrays:
        plain = name.removeprefix("mid_")
        if plain.startswith("copy_layer"):
            pairs[name] = (seen[plain], arrays[name].astype(np.int32))
        elif name.startswith("mid_"):
            pairs[name] = (seen[plain], arrays[name])
    return pairs
