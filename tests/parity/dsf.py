"""The families of DSF against IntelligentControlSystems/dsf-mqar (its reference scans)."""

from typing import Any

import numpy as np
import torch
from torch import nn

from manyhead.data.recall import associative_recall
from manyhead.mixers.gated_rnn import QLSTM
from manyhead.mixers.linear_attention import LinearAttention, NormalizedAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.selective import S6, SSD


def attention_weights(w: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for part in ("weight", "bias"):
        found[f"q_proj.{part}"], found[f"k_proj.{part}"] = np.split(w[f"Wqk.{part}"], 2)
        found[f"v_proj.{part}"] = w[f"Wv.{part}"]
        found[f"out_proj.{part}"] = w[f"out_proj.{part}"]
        if f"Wn.{part}" in w:
            found[f"n_proj.{part}"] = w[f"Wn.{part}"]
    return found


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    d, state, heads = config["d_model"], config["d_qk_or_state"], config["num_heads"]
    lstm = (d, config["qlstm_expansion"], config["qlstm_kernel"])
    layers: dict[str, nn.Module] = {
        "softmax": MultiHeadAttention(d, heads, causal=True, qk_channels=state),
        "linear": LinearAttention(d, heads, causal=True, qk_channels=state),
        "normalized": NormalizedAttention(d, heads, qk_channels=state),
        "qlstm": QLSTM(*lstm),
        "qlstm_rev": QLSTM(*lstm, reversed_gate=True),
        "s6": S6(d, state, rank=config["dt_rank_s6"]),
        "s6_2": SSD(d, state),
    }
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, layer in layers.items():
        w = arrays.group(f"w/{name}/")
        if "Wqk.weight" in w:
            w = attention_weights(w)
        elif "A_log" in w:
            w["a_log"] = w.pop("A_log")
        if name == "s6_2":
            w["dt_bias"], w["a_log"] = w.pop("dt_proj.bias"), w["a_log"].reshape(1, 1)
            del w["Id"], w["dt_proj.weight"]
        layer.load_state_dict({key: torch.tensor(value) for key, value in w.items()})
        x = torch.tensor(arrays["x"], requires_grad=True)
        out = layer(x)
        out.backward(torch.tensor(arrays["g"]))
        stream, steps = layer.initial_state(len(x), capacity=x.shape[1]), []
        with torch.no_grad():
            for x_t in x.unbind(1):
                y_t, stream = layer.step(x_t, stream)
                steps.append(y_t)
        pairs[f"out/{name}"] = (out, arrays[f"out/{name}"])
        pairs[f"out/{name}/streaming"] = (torch.stack(steps, 1), arrays[f"out/{name}"])
        pairs[f"grad_x/{name}"] = (x.grad, arrays[f"grad_x/{name}"])
    options = config["mqar"]
    inputs, labels = associative_recall(
        len(arrays["mqar_inputs"]),
        options["input_seq_len"],
        options["num_kv_pairs"],
        options["vocab_size"],
        power=options["power_a"],
        seed=options["np_seed"],
    )
    return pairs | {
        "mqar_inputs": (inputs, arrays["mqar_inputs"]),
        "mqar_labels": (labels, arrays["mqar_labels"]),
    }
