"""faster_na: NATTEN's fused, unfused and module results."""

from typing import Any

import torch

from manyhead.attention import attend
from manyhead.kernels.unfused import neighborhood_av, neighborhood_qk
from manyhead.mixers.neighborhood import NeighborhoodAttention
from manyhead.pattern import Window
from tests.parity.compare import Golden

Pairs = dict[str, tuple[Any, Any]]


def window(options: dict[str, Any]) -> Window:
    return Window(
        tuple(options["kernel_size"]),
        tuple(options.get("stride", [1] * len(options["kernel_size"]))),
        tuple(options["dilation"]),
        tuple(options["is_causal"]),
    )


def fused(case: dict[str, Any], options: dict[str, Any], name: str, kernel: str) -> Pairs:
    """Output, log-sum-exp and gradients of attend, and the mask."""
    pattern = window(options)
    q, k, v = (torch.tensor(case[x], requires_grad=True) for x in "qkv")
    out, lse = attend(q, k, v, pattern, scale=options["scale"], kernel=kernel, return_lse=True)
    (out * torch.tensor(case["g"])).sum().backward()
    pairs: Pairs = {
        f"{name}/{kernel}/{what}": (ours, case[what])
        for what, ours in {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}.items()
    }
    return pairs | {f"{name}/mask": (pattern.mask(tuple(options["shape"])), case["mask"])}


def module(case: dict[str, Any], options: dict[str, Any], name: str) -> Pairs:
    """The module with the official weights."""
    pattern = Window(
        *(
            tuple(value) if isinstance(value, list) else value
            for value in (
                options["kernel_size"],
                options["stride"],
                options["dilation"],
                options["is_causal"],
            )
        )
    )
    layer = NeighborhoodAttention(options["embed_dim"], options["num_heads"], pattern)
    layer.load_state_dict({key[2:]: torch.tensor(case[key]) for key in case if key.startswith("w/")})
    return {f"{name}/y": (layer(torch.tensor(case["x"])), case["y"])}


def run(arrays: Golden) -> Pairs:
    pairs: Pairs = {}
    for name, options in arrays["config"].items():
        if not isinstance(options, dict):
            continue
        case = arrays.group(name + "/")
        if name[0] == "c":
            pairs |= fused(case, options, name, "windows") | fused(case, options, name, "reference")
        elif name[0] == "m" and "embed_dim" in options:
            pairs |= module(case, options, name)
        elif name[0] == "u":
            for method in ("tiles", "naive"):
                q, k, v = (torch.tensor(case[x], requires_grad=True) for x in "qkv")
                rpb = torch.tensor(case["rpb"]) if "rpb" in case else None
                logits = neighborhood_qk(q * options["scale"], k, window(options), rpb, method)
                weights = logits.softmax(-1)
                out = neighborhood_av(weights, v, window(options), method)
                (out * torch.tensor(case["g"])).sum().backward()
                valid = torch.isfinite(logits)
                found = {
                    "logits": logits.masked_fill(~valid, 0.0),
                    "valid": valid,
                    "probs": weights,
                    "out": out,
                }
                found |= {"dq": q.grad, "dk": k.grad, "dv": v.grad}
                pairs |= {f"{name}/{method}/{what}": (ours, case[what]) for what, ours in found.items()}
    return pairs
