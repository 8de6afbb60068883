"""Shifted group attention, set to half of the heads and no sinks, against the released forward."""

from typing import Any

import torch

from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.shifted_groups import ShiftedGroupAttention


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    attention = MultiHeadAttention(
        config["dim"],
        config["heads"],
        kv_heads=config["kv_heads"],
        head_dim=config["head_dim"],
        causal=True,
        bias=False,
        out_bias=False,
        rotary=1.0,
        rotary_base=config["rope_base"],
    )
    names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
    attention.load_state_dict(
        {f"{ours}.weight": torch.tensor(arrays[f"w/{theirs}.weight"]) for ours, theirs in names.items()}
    )
    layer = ShiftedGroupAttention(
        attention,
        config["group_size"],
        shift_frac=config["shift_frac"],
        sinks=config["sinks"],
        mask_wrap=config["mask_wrap"],
    )
    x = torch.tensor(arrays["x"], requires_grad=True)
    out = layer(x)
    out.backward(torch.tensor(arrays["g"]))
    return {"out": (out, arrays["out"]), "grad_x": (x.grad, arrays["grad_x"])}
