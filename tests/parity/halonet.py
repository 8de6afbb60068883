"""halonet: timm's HaloAttn and the corrected public transcription by lucidrains."""

from typing import Any

import torch
from torch import Tensor

from manyhead.mixers.halo import HaloAttention
from tests.parity.compare import Golden


def timm_layer(case: dict[str, Any], options: dict[str, Any]) -> HaloAttention:
    """Build the layer that timm's options describe, with its weights."""
    weights = {key[2:]: torch.tensor(value) for key, value in case.items() if key.startswith("w/")}
    layer = HaloAttention(
        options["dim"],
        options["num_heads"],
        options["block_size"],
        options["halo_size"],
        head_dim=options["dim_head_qk"],
        out_channels=options.get("dim_out") or options["dim_head_v"] * options["num_heads"],
        stride=options.get("stride", 1),
        average=bool(options.get("avg_pool") or options.get("avg_down")),
        bias="q.bias" in weights,
        pad="attend",
        scale_positions=bool(options.get("scale_pos_embed")),
        stride_relative="sampled",
    )
    state = {name: weights[f"{name}.weight"].flatten(1) for name in ("q", "kv")}
    named: dict[str, Tensor] = {f"{name}.weight": value for name, value in state.items()}
    named |= {key: value for key, value in weights.items() if key.endswith(".bias")}
    named["height_relative"] = weights["pos_embed.height_rel"]
    named["width_relative"] = weights["pos_embed.width_rel"]
    layer.load_state_dict(named)
    return layer


def lucidrains(case: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """The corrected layer: relative term scaled, padding masked, an output projection behind."""
    heads, d = options["heads"], options["dim_head"]
    layer = HaloAttention(
        options["dim"],
        heads,
        options["block_size"],
        options["halo_size"],
        head_dim=d,
        out_channels=heads * d,
        scale_positions=True,
    )
    w = {key[2:]: torch.tensor(value) for key, value in case.items() if key.startswith("w/")}
    k, v = w["to_kv.weight"].unflatten(0, (2, heads, d))  # all keys, then all values
    layer.load_state_dict(
        {
            "q.weight": w["to_q.weight"],
            "kv.weight": torch.stack([k, v], 1).flatten(0, 2),
            "height_relative": w["rel_pos_emb.rel_height"],
            "width_relative": w["rel_pos_emb.rel_width"],
        }
    )
    out = layer(torch.tensor(case["x"]).movedim(1, -1))
    return (out @ w["to_out.weight"].T + w["to_out.bias"]).movedim(-1, 1)


def run(arrays: Golden) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, options in arrays["config"].items():
        if not isinstance(options, dict):
            continue
        case = arrays.group(name + "/")
        if name[0] == "t":
            x = torch.tensor(case["x"], requires_grad=True)
            y = timm_layer(case, options)(x.movedim(1, -1)).movedim(-1, 1)
            (y * torch.tensor(case["g"])).sum().backward()
            pairs |= {f"{name}/y": (y, case["y"]), f"{name}/dx": (x.grad, case["dx"])}
        elif name[0] == "l":
            pairs[f"{name}/y_corrected"] = (lucidrains(case, options), case["y_corrected"])
    return pairs
