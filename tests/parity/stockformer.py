"""Stockformer's network: outputs, intermediates, copied rows and gradients of the released code."""

from typing import Any

import torch
from torch import Tensor

from manyhead.stocks.network import Stockformer, load_official
from manyhead.stocks.network.reference import stockformer_reference
from tests.parity.compare import Golden

OUTPUTS = ("class", "class_low", "reg", "reg_low")


def build(arrays: Golden) -> Stockformer:
    """Our network with the file's sizes and weights, in evaluation mode."""
    config = arrays["config"]
    network = Stockformer(
        features=config["infea"],
        dim=config["outfea"],
        layers=config["L"],
        input_days=config["T1"],
        output_days=config["T2"],
        classes=config["outfea_class"],
        head_dim=config["d"],
    )
    load_official(network, {name: torch.from_numpy(value) for name, value in arrays.group("w/").items()})
    return network.eval()


def inputs(arrays: Golden) -> dict[str, Tensor]:
    """The file's inputs by our names; the frequencies and the factors require gradients."""
    names = {
        "low": "xl",
        "high": "xh",
        "te": "te",
        "bonus": "bonus",
        "trend": "indicator",
        "adjgat": "adjgat",
    }
    tensors = {ours: torch.from_numpy(arrays[f"in_{theirs}"]) for ours, theirs in names.items()}
    for name in ("low", "high", "bonus"):
        tensors[name].requires_grad_()
    return tensors


def watch(network: Stockformer) -> dict[str, Tensor]:
    """A dictionary that the next forward pass fills with the intermediates under the file's names."""
    seen = dict[str, Tensor]()

    def keep(name: str) -> Any:
        return lambda module, given, output: seen.__setitem__(name, output)

    def layer(number: int) -> Any:
        def hook(module: Any, given: Any, output: tuple[Tensor, Tensor]) -> None:
            seen[f"low{number}"], seen[f"high{number}"] = output

        return hook

    def copies(name: str) -> Any:
        return lambda module, given: seen.__setitem__(name, module.copies(*given).int())

    network.day.register_forward_hook(keep("te"))
    for number, part in enumerate(network.encoder):
        part.register_forward_hook(layer(number))
        part.attention.register_forward_hook(keep(f"tatt{number}"))
        part.convolution.register_forward_hook(keep(f"tcn{number}"))
        part.spatial_low.register_forward_hook(keep(f"ssal{number}"))
        part.spatial_low.register_forward_pre_hook(copies(f"copy_layer{number}_low"))
        part.spatial_high.register_forward_pre_hook(copies(f"copy_layer{number}_high"))
    network.fusion.register_forward_hook(keep("fused"))
    network.fusion.register_forward_pre_hook(lambda module, given: seen.__setitem__("lowpred", given[0]))
    return seen


def gradients(arrays: Golden, given: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the sum over the four outputs of output * g."""
    total = sum((outputs[name] * torch.from_numpy(arrays[f"g_{name}"])).sum() for name in OUTPUTS)
    names = ("low", "high", "bonus")
    found = torch.autograd.grad(total, [given[name] for name in names])
    return dict(zip(("grad_xl", "grad_xh", "grad_bonus"), found, strict=True))


def run(arrays: Golden) -> dict[str, tuple[Any, Any]]:
    network, given = build(arrays), inputs(arrays)
    seen = watch(network)
    outputs = dict(zip(OUTPUTS, network(**given), strict=True))
    pairs = {f"out_{name}": (outputs[name], arrays[f"out_{name}"]) for name in OUTPUTS}
    pairs |= {name: (seen[name[4:]], arrays[name]) for name in arrays if name.startswith("mid_")}
    pairs |= {name: (ours, arrays[name]) for name, ours in gradients(arrays, given, outputs).items()}

    weights = {name: torch.from_numpy(value) for name, value in arrays.group("w/").items()}
    plain = stockformer_reference(weights, **given, head_dim=arrays["config"]["d"])
    for name in OUTPUTS:
        pairs[f"reference out_{name}"] = (plain[name], arrays[f"out_{name}"])
    for name in arrays:
        if name.startswith("mid_"):
            ours = plain[name[4:]]
            pairs[f"reference {name}"] = (ours.int() if "copy" in name else ours, arrays[name])
    for name, ours in gradients(arrays, given, plain).items():
        pairs[f"reference {name}"] = (ours, arrays[name])
    return pairs
