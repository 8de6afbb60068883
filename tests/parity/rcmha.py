"""Relative convolutional attention against the published class; the three inputs are independent."""

from typing import Any

import torch

from manyhead.mixers.rcmha import RelativeConvolutionalAttention

LIMITS = {"": 5e-6}


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    layer = RelativeConvolutionalAttention(config["d_model"], config["heads"], max_length=config["P"])
    weights = {
        "key_table": arrays["w/key_pos_embeddings"],
        "bias_table": arrays["w/key_pos_bias"],
        "query_bias": arrays["w/query_pos_bias"],
        "v_proj.bias": arrays["w/value.0.linear.bias"],
        "out_proj.weight": arrays["w/output.weight"],
        "out_proj.bias": arrays["w/output.bias"],
    }
    for n, name in enumerate(("query", "key", "value")):
        weights[f"{name[0]}_proj.weight"] = arrays[f"w/{name}.0.linear.weight"]
        for kind in ("weight", "bias"):
            weights[f"convolutions.{n}.conv.{kind}"] = arrays[f"w/{name}.1.conv.{kind}"]
    layer.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    layer.eval()
    given = {n: torch.tensor(arrays[n], requires_grad=True) for n in ("query", "key", "value")}
    mask = torch.tensor(arrays["mask"]).movedim(-1, 0)[:, None] != 0  # (1 or batch, 1, queries, keys)
    out, attn = layer.attend(*(x.transpose(0, 1) for x in given.values()), mask)
    out = out.transpose(0, 1)
    out.backward(torch.tensor(arrays["g"]))
    return {
        "out": (out, arrays["out"]),
        "attn": (attn.permute(2, 3, 0, 1), arrays["attn"]),
        **{f"grad_{name}": (x.grad, arrays[f"grad_{name}"]) for name, x in given.items()},
    }
