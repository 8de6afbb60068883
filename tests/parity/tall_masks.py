"""TALL-masks, TIES and Consensus against the authors' functions (nik-dim/tall_masks)."""

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead.merging.masks import consensus_mask, magnitude_mask, tall_mask, usage
from manyhead.merging.ties import combine, elect, trim
from manyhead.merging.vectors import flatten, merged_keys, task_vectors, total

Pair = tuple[Any, Any]


def same_but_for_ties(
    ours: Tensor, official: NDArray[np.bool_], left: Tensor, right: Tensor
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A comparison may fall either way where both of its sides agree to 1e-6."""
    near = ((left - right).abs() <= 1e-6 * torch.maximum(left, right)).numpy()
    return np.where(near, official, ours.numpy()), official


def run(arrays: Any) -> dict[str, Pair]:
    config = arrays["config"]
    tasks = range(config["n_tasks"])
    base = {key: torch.from_numpy(value) for key, value in arrays.group("ptm/").items()}
    models = [{key: torch.from_numpy(value) for key, value in arrays.group(f"ft{t}/").items()} for t in tasks]
    keys = merged_keys(base)
    vectors = task_vectors(base, models)
    trimmed = trim(vectors, config["ties_K"])
    signs = elect(trimmed)
    start = flatten(base, keys)
    pairs: dict[str, Pair] = {
        "key_order": (np.array(json.dumps(keys)), arrays["key_order"]),
        "flat_ptm": (start, arrays["flat_ptm"]),
        "tv": (vectors, arrays["tv"]),
        "ta_vector": (total(vectors), arrays["ta_vector"]),
        "ties/trimmed": (trimmed, arrays["ties/trimmed"]),
        "ties/sign": (signs, arrays["ties/sign"]),
    }
    for how in ("mean", "sum", "max"):
        pairs[f"ties/dis-{how}"] = (combine(trimmed, signs, how), arrays[f"ties/dis-{how}"])
    for name, merged in {"ta": total(vectors), "ties": combine(trimmed, signs, "sum")}.items():
        for lam in config["lambdas"]:
            official = arrays[f"mask/{name}/lambda={lam}"]
            for t in tasks:
                pairs[f"mask/{name}/lambda={lam}/{t}"] = same_but_for_ties(
                    tall_mask(vectors[t], merged, lam),
                    official[t],
                    vectors[t].abs(),
                    lam * (merged - vectors[t]).abs(),
                )
        masks = [tall_mask(vectors[t], merged, config["selected_lambda"][t]) for t in tasks]
        rebuilt = torch.stack([start + mask * merged for mask in masks])
        pairs[f"recon/{name}"] = (rebuilt, arrays[f"recon/{name}"])
        pairs[f"count/{name}"] = (usage(masks), arrays[f"count/{name}"])
        for k in config["consensus_k"]:
            mask = consensus_mask(masks, k)
            where = f"consensus/{name}/k={k}"
            pairs[f"{where}/mask"] = (mask, arrays[f"{where}/mask"])
            pairs[f"{where}/merged_vector"] = (mask * merged, arrays[f"{where}/merged_vector"])
    chosen = torch.stack([magnitude_mask(row, config["mag_K"]) for row in vectors])
    pairs["mag_mask"] = (chosen, arrays["mag_mask"])
    return pairs


LIMITS = {"": 1e-6}
