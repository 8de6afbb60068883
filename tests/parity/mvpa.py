"""Multi-variate parallel attention and the wavelet tokens against the official layers."""

from typing import Any

import torch
from torch import nn

from manyhead.layers.wavelet_tokens import WaveletTokens, coefficient_sizes, db4_coefficients
from manyhead.mixers.mvpa import MultivariateParallelAttention


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    pairs: dict[str, tuple[Any, Any]] = {}
    for impl in ("broadcast", "naive", "sdpa"):
        layer = MultivariateParallelAttention(
            config["n_embd"],
            config["n_head"],
            config["n_head_kv"],
            nn.Parameter(torch.tensor(arrays["in_pos"][0])),
            nn.Parameter(torch.tensor(arrays["in_chan"][0])),
            global_att=config["global_att"],
            impl=impl,
        ).eval()
        names = {
            "q_proj.weight": "q_attn.weight",
            "kv_proj.weight": "c_attn.weight",
            "time_proj.weight": "position_net.weight",
            "channel_proj.weight": "channel_net.weight",
            "out_proj.weight": "c_proj.weight",
            "bias": "attn_bias",
        }
        layer.load_state_dict(
            {ours: torch.tensor(arrays[f"w/{theirs}"]) for ours, theirs in names.items()}, strict=False
        )
        x = torch.tensor(arrays["in_x"], requires_grad=True)
        out = layer(x)
        out.backward(torch.tensor(arrays["g"]))
        pairs[f"out/{impl}"] = (out, arrays["out"])
        pairs[f"grad_x/{impl}"] = (x.grad, arrays["grad_x"])
        pairs[f"attn/{impl}"] = (layer.mixing_matrix(x), arrays["attn"])
    signal = torch.tensor(arrays["enc_in"])
    tokens = WaveletTokens(signal.shape[-1], config["n_embd"])
    tokens.norm.weight.data = torch.tensor(arrays["enc_w/ln.weight"])
    tokens.proj.weight.data = torch.tensor(arrays["enc_w/proj.weight"])
    pairs["enc_coeffs"] = (db4_coefficients(signal), arrays["enc_coeffs"])
    pairs["enc_sizes"] = (torch.tensor(coefficient_sizes(signal.shape[-1])), arrays["enc_sizes"])
    pairs["enc_out"] = (tokens(signal), arrays["enc_out"])
    return pairs | alignments(arrays)


def alignments(arrays: Any) -> dict[str, tuple[Any, Any]]:
    """The two gathers that take a column per table row to a column per key, where they have a meaning."""
    time, channel = (torch.tensor(arrays[f"relshift_{name}_in"]) for name in ("time", "chan"))
    segments, channels = time.shape[-1], channel.shape[-1]
    query = torch.arange(segments * channels)
    t, c = query // channels, query % channels
    behind = t[:, None] - torch.arange(segments)
    seen = behind >= 0
    ours = time.gather(-1, (segments - 1 - behind.clamp_min(0)).expand_as(time))
    apart = (c[:, None] - torch.arange(channels)).abs()
    by_channel = channel.gather(-1, (channels - 1 - apart).expand_as(channel))
    return {
        "relshift_time": (ours * seen, arrays["relshift_time_out"] * seen.numpy()),
        "relshift_chan": (by_channel, arrays["relshift_chan_out"]),
    }
