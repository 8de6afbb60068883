"""Aaren against explicit prefix softmax in float64 (no official code exists)."""

from typing import Any

import torch

from manyhead.layers.prefix_softmax import prefix_softmax, prefix_states
from manyhead.mixers.aaren import Aaren


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    layer = Aaren(config["E"], config["H"])
    weights = {"query": arrays["q"]}
    for ours, theirs in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}.items():
        weights |= {f"{ours}.weight": arrays[f"w/W{theirs}"], f"{ours}.bias": arrays[f"w/b{theirs}"]}
    layer.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    x = torch.tensor(arrays["in_x"], requires_grad=True)
    out = layer(x)
    out.backward(torch.tensor(arrays["g"]))
    scores, v = layer.scores_and_values(x)
    states = prefix_states(scores, v)
    attended, _ = prefix_softmax(scores, v)
    state = layer.initial_state(len(x))
    steps = []
    for x_t in x.unbind(1):
        y_t, state = layer.step(x_t, state)
        steps.append(y_t)
    return {
        "scores": (scores, arrays["scores"]),
        "state_m": (states.m, arrays["state_m"]),
        "state_u": (states.u, arrays["state_u"]),
        "prefix_attn": (attended.transpose(1, 2).flatten(2), arrays["prefix_attn"]),
        "out": (out, arrays["out"]),
        "out/streaming": (torch.stack(steps, 1), arrays["out"]),
        "grad_x": (x.grad, arrays["grad_x"]),
    }
