"""LAMA against a third party's encoder."""

from typing import Any

import torch

from manyhead.mixers.lama import LowRankAttentionPooling

LIMITS = {"": 2e-6}


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    layer = LowRankAttentionPooling(
        config["dim"],
        config["heads"],
        context=config["context"],
        activation=config["activation"],
        l2_over=config["l2_over"],
        output_dim=config["output_dim"],
    )
    weights = {name: torch.tensor(arrays[f"w/_attention._{name}"])[None] for name in "pq"}
    if layer.context is not None:
        weights["context"] = torch.tensor(arrays["w/_attention._c"])
    if layer.projection is not None:
        for kind in ("weight", "bias"):
            weights[f"projection.{kind}"] = torch.tensor(arrays[f"w/projection_layer.{kind}"])
    layer.load_state_dict(weights)
    x, mask = torch.tensor(arrays["x"], requires_grad=True), torch.tensor(arrays["mask"])
    pooled = layer(x, mask)
    pooled.output.backward(torch.tensor(arrays["g"]))
    return {
        "scores": (layer.scores(x, mask), arrays["scores"]),
        "attn": (pooled.weights, arrays["attn"]),
        "sse": (pooled.matrix, arrays["sse"]),
        "out": (pooled.output, arrays["out"]),
        "grad_x": (x.grad, arrays["grad_x"]),
    }
