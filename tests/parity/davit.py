"""davit: the official channel and window attention, both blocks and a small network."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.mixers.block import BlockAttention
from manyhead.mixers.channel import ChannelGroupAttention
from manyhead.networks.davit import DualBlock, davit
from tests.parity.compare import Golden

State = dict[str, Tensor]


def renamed(state: State) -> State:
    """Official names to ours; blocks of a stage are numbered one after the other behind its embedding."""
    out = {}
    for name, value in state.items():
        name = re.sub(r"^patch_embeds\.(\d+)\.", r"stages.\1.0.", name)
        block = re.match(r"^main_blocks\.(\d+)\.(\d+)\.(\d+)\.", name)
        if block:
            stage, layer, kind = map(int, block.groups())
            name = f"stages.{stage}.{1 + 2 * layer + kind}." + name[block.end() :]
        name = re.sub(r"^norms\.", "head.0.", name)
        name = re.sub(r"^head\.(weight|bias)$", r"head.1.\1", name)
        out[name] = value
    return out


def build(options: dict[str, Any], state: State) -> nn.Module:
    kind = options["cls"]
    if kind == "DaViT":
        return davit(
            classes=options["num_classes"],
            image_channels=options["in_chans"],
            window=options["window_size"],
            patch=options["patch_size"],
            ratio=options["mlp_ratio"],
            overlapped=state["patch_embeds.1.proj.weight"].shape[-1] == 3,
            widths=options["embed_dims"],
            heads=options["num_heads"],
            depths=options["depths"],
        )
    if kind in ("ChannelAttention", "ChannelBlock"):
        mixer: Any = ChannelGroupAttention(options["dim"], options["num_heads"])
    else:
        mixer = BlockAttention(options["dim"], options["num_heads"], options["window_size"], padding="attend")
    if kind.endswith("Block"):
        return DualBlock(mixer, options["dim"], options["mlp_ratio"])
    return mixer


def on_grid(x: Tensor, options: dict[str, Any]) -> Tensor:
    """Flat official tokens to the grid that our module wants."""
    if options["cls"] == "WindowAttention":
        return x.unflatten(1, (options["window_size"], options["window_size"]))
    return x.unflatten(1, options["size"]) if "size" in options else x


def run(arrays: Golden) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, options in arrays["config"].items():
        if not isinstance(options, dict) or "cls" not in options:
            continue
        case = arrays.group(name + "/")
        state = {key[2:]: torch.tensor(value) for key, value in case.items() if key.startswith("w/")}
        network = build(options, state)
        network.load_state_dict(renamed(state))
        network.eval()
        x = torch.tensor(case["x"], requires_grad=True)
        y = network(x if options["cls"] == "DaViT" else on_grid(x, options)).reshape(case["y"].shape)
        (y * torch.tensor(case["g"])).sum().backward()
        pairs |= {f"{name}/y": (y, case["y"]), f"{name}/dx": (x.grad, case["dx"])}
    return pairs
