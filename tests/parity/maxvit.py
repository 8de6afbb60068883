"""maxvit: timm's TensorFlow-compatible partition attention, MBConv and a small network."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.layers.convolution import MBConv
from manyhead.layers.residual import FeedForward
from manyhead.mixers.block import BlockAttention, GridAttention
from manyhead.networks.maxvit import maxvit
from manyhead.networks.pyramid import Residual
from tests.parity.compare import Golden

State = dict[str, Tensor]


def weights(case: dict[str, Any]) -> State:
    return {key[2:]: torch.tensor(value) for key, value in case.items() if key.startswith("w/")}


def renamed(state: State) -> State:
    """timm's names to ours, within any block."""
    rules = [
        (r"attn\.rel_pos\.relative_position_bias_table", "attn.table"),
        (r"shortcut\.expand\.", "expand."),
        (r"^stem\.conv1\.", "stem.inner.0."),
        (r"^stem\.norm1\.", "stem.inner.1."),
        (r"^stem\.conv2\.", "stem.inner.3."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.conv\.", r"stages.\1.\2.conv.inner."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.attn_block\.", r"stages.\1.\2.attention.0."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.attn_grid\.", r"stages.\1.\2.attention.1."),
        (r"^head\.norm\.", "head.0."),
        (r"^head\.pre_logits\.fc\.", "head.1."),
        (r"^head\.fc\.", "head.3."),
    ]
    out = {}
    for name, value in state.items():
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        out[name] = value
    return out


def sides(table: Tensor) -> list[int]:
    """Sides of the block that a bias table is made for."""
    return [(size + 1) // 2 for size in table.shape[1:]]


def build(options: dict[str, Any], state: State) -> nn.Module:
    if options["cls"] == "PartitionAttentionCl":
        mixer = BlockAttention if options["partition_type"] == "block" else GridAttention
        dim = options["dim"]
        attention = mixer(dim, dim // options["dim_head"], options["size"], relative=True)
        return Residual(attention, dim, feed_forward=FeedForward(dim, options["mlp_ratio"], "tanh"))
    if options["cls"] == "MbConvBlock":
        return MBConv(options["in_chs"], options["out_chs"], options["stride"])
    return maxvit(
        classes=options["num_classes"],
        stem=options["stem"],
        widths=options["embed_dim"],
        depths=options["depths"],
        head_dim=options["dim_head"],
        window=sides(state["stages.0.blocks.0.attn_block.attn.rel_pos.relative_position_bias_table"]),
        lattice=sides(state["stages.0.blocks.0.attn_grid.attn.rel_pos.relative_position_bias_table"]),
    )


def run(arrays: Golden) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, options in arrays["config"].items():
        if not isinstance(options, dict) or "cls" not in options:
            continue
        case = arrays.group(name + "/")
        network = build(options, weights(case))
        network.load_state_dict(renamed(weights(case)))
        network.eval()
        x = torch.tensor(case["x"], requires_grad=True)
        y = network(x)
        (y * torch.tensor(case["g"])).sum().backward()
        pairs |= {f"{name}/y": (y, case["y"]), f"{name}/dx": (x.grad, case["dx"])}
    return pairs
