"""Mixture of heads against the DiT class (two-stage router) and the LLaMA file (query norms)."""

from typing import Any

import numpy as np
import torch

from manyhead.mixers.moh import MixtureOfHeads
from manyhead.mixers.multihead import MultiHeadAttention


def dit(config: Any, arrays: Any) -> MixtureOfHeads:
    attention = MultiHeadAttention(
        config["dim"],
        config["heads"],
        head_dim=config["head_dim"],
        bias=config["qkv_bias"],
        qk_norm=config["qk_norm"],
        out_bias="w/proj.bias" in arrays,
    )
    layer = MixtureOfHeads(
        attention, config["shared_head"], config["routed_head"], gate_scale=config.get("gate_scale", "code")
    )
    weights = {}
    for kind in ("weight", "bias"):
        if f"w/qkv.{kind}" in arrays:
            for name, part in zip("qkv", np.split(arrays[f"w/qkv.{kind}"], 3), strict=True):
                weights[f"attention.{name}_proj.{kind}"] = part
        for ours, theirs in (("out_proj", "proj"), ("q_norm", "q_norm"), ("k_norm", "k_norm")):
            if f"w/{theirs}.{kind}" in arrays:
                weights[f"attention.{ours}.{kind}"] = arrays[f"w/{theirs}.{kind}"]
    routers = {"to_routed": "wg", "to_groups": "wg_0", "to_shared": "wg_1"}
    weights |= {
        f"router.{ours}.weight": arrays[f"w/{theirs}.weight"]
        for ours, theirs in routers.items()
        if getattr(layer.router, ours) is not None
    }
    layer.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    if config["qk_norm"]:
        attention.q_norm.eps = attention.k_norm.eps = config.get("norm_eps", 1e-5)
    return layer


def llama(config: Any, arrays: Any) -> MixtureOfHeads:
    attention = MultiHeadAttention(
        config["dim"],
        config["heads"],
        kv_heads=config["kv_heads"],
        head_dim=config["head_dim"],
        causal=config["causal"],
        bias=False,
        out_bias=False,
        rotary=1.0,
        rotary_base=config["rope_base"],
    )
    layer = MixtureOfHeads(attention, config["shared"], config["routed"], router="query_norm")
    names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
    layer.load_state_dict(
        {
            f"attention.{ours}.weight": torch.tensor(arrays[f"w/llama.{theirs}.weight"])
            for ours, theirs in names.items()
        }
    )
    return layer


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {}
    config = arrays["config"]
    for prefix, layer in (("", dit(config, arrays)), ("llama_", llama(config["llama"], arrays))):
        layer.eval()
        for sparse in (False, True):
            layer.sparse = sparse
            suffix = "/sparse" if sparse else ""
            x = torch.tensor(arrays[f"{prefix}x"], requires_grad=True)
            out = layer(x)
            out.backward(torch.tensor(arrays[f"{prefix}g"]))
            pairs[f"{prefix}out{suffix}"] = (out, arrays[f"{prefix}out"])
            pairs[f"{prefix}grad_x{suffix}"] = (x.grad, arrays[f"{prefix}grad_x"])
        decided = layer.gates(torch.tensor(arrays[f"{prefix}x"]))
        pairs[f"{prefix}gates"] = (decided.gates, arrays[f"{prefix}gates"])
        if not prefix and "l_aux" in arrays and layer.router.active:
            pairs["l_aux"] = (decided.balance_loss(), arrays["l_aux"])
    return pairs
