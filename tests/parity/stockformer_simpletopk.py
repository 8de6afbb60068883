"""The back-test of Stockformer's released notebook."""

from typing import Any

import numpy as np

from manyhead.stocks.portfolio import simple_topk

LIMITS = {"": 1e-6}


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {}
    for index, (k, fee) in enumerate(arrays["config"]["runs"]):
        result = simple_topk(arrays["in_close"], arrays["in_score"], int(k), fee)
        pairs[f"nav{index}"] = (result.nav, arrays[f"nav{index}"])
        pairs[f"turnover{index}"] = (result.turnover, arrays[f"turnover{index}"])
        for name, ours, official in zip(
            result.metrics, result.metrics.values(), arrays[f"metrics{index}"], strict=True
        ):
            pairs[f"metrics{index}/{name}"] = (np.float64(ours), official)
    return pairs
