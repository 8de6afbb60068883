"""Stockformer as one would write it on a blackboard: slow, dense, and the yardstick of the fast path.

Ma et al., 'Stockformer', 2024, arXiv 2401.06139, in the released code's reading, from the released code's
own tensors (`official_state_dict`). No fused weights, no tiles: autograd differentiates it.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from manyhead.stocks.network.copying import copy_attention_reference

Weights = Mapping[str, Tensor]


def stockformer_reference(
    weights: Weights,
    low: Tensor,
    high: Tensor,
    te: Tensor,
    bonus: Tensor,
    trend: Tensor,
    adjgat: Tensor,
    *,
    head_dim: int,
    fusion_self: bool = False,
    st_temporal: bool = False,
    dropout: float = 0.0,
    available: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every output and intermediate of the network.

    Args:
        weights: the released code's names to tensors.
        low, high, te, bonus, trend, adjgat, available: as in `Stockformer.forward`.
        head_dim: scores are divided by its root.
        fusion_self, st_temporal: the paper's readings, as in `Stockformer`.
        dropout: after the convolution; drawn from torch's global generator.

    Returns:
        `class`, `class_low`, `reg`, `reg_low`; `te`; per layer i `tatt{i}`, `tcn{i}`, `ssal{i}`, `ssah{i}`,
        `copy_layer{i}_low`, `copy_layer{i}_high`, `low{i}`, `high{i}`; `fused` and `lowpred`.
    """
    kept = dict[str, Tensor]()
    scale = head_dim**-0.5

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def feed(name: str, x: Tensor, last: int = 1) -> Tensor:
        return linear(f"{name}.{last}", F.relu(linear(f"{name}.0", x)))

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])

    def causal(query: Tensor, key: Tensor, value: Tensor, masked: float) -> Tensor:
        days = query.shape[1]
        seen = torch.ones(days, days, dtype=torch.bool).tril()
        scores = torch.einsum("btnd,bsnd->bnts", query, key) * scale
        return torch.einsum("bnts,bsnd->btnd", scores.masked_fill(~seen, masked).softmax(-1), value)

    def over_days(name: str, x: Tensor) -> Tensor:
        x = x + te_in
        query, key, value = (linear(f"{name}.{part}fc.linear.0", x) for part in "qkv")
        z = norm(linear(f"{name}.ofc.linear.0", causal(query, key, value, -32767.0)) + x)
        return norm(feed(f"{name}.ff.linear", z) + z)

    def convolution(name: str, x: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        tap = weights[f"{name}.weight"][:, :, 0]
        y = before @ tap[..., 0].mT + x @ tap[..., 1].mT + weights[f"{name}.bias"]
        return F.dropout(F.relu(y), dropout)

    def over_stocks(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + adjgat + (te_in if st_temporal else 0.0)
        query, key, value = (linear(f"{name}.{part}fc", y).flatten(0, 1) for part in "qkv")
        absent = None if available is None else available.flatten(0, 1)
        copied, index = copy_attention_reference(query, key, value, scale, absent)
        u = norm(linear(f"{name}.ofc", copied.view_as(y)) + y)
        return feed(f"{name}.ff", u, last=2), index.view(x.shape[:-1])

    def fuse(name: str, low: Tensor, high: Tensor) -> Tensor:
        query, masked = linear(f"{name}.qlfc.linear.0", low), -32767.0 * scale
        sources = {"h": high, "l": low} if fusion_self else {"h": high}
        mixed = torch.zeros_like(low)
        for letter, source in sources.items():
            key, value = (F.relu(linear(f"{name}.{part}{letter}fc.linear.0", source)) for part in "kv")
            mixed = mixed + causal(query, key, value, masked)
        z = norm(linear(f"{name}.ofc.linear.0", mixed) + low)
        return norm(feed(f"{name}.ff.linear", z) + z)

    def predict(name: str, x: Tensor) -> Tensor:
        days = weights[f"{name}.weight"][:, :, 0, 0]
        return torch.einsum("st,btnd->bsnd", days, x) + weights[f"{name}.bias"][:, None, None]

    one_hot = [F.one_hot(te[..., 0].long() % 5, 5), F.one_hot(te[..., 1].long() % 50, 50)]
    kept["te"] = feed("features.te_emb.ff_te.linear", torch.cat(one_hot, -1).to(low.dtype)).unsqueeze(2)
    te_in, te_out = kept["te"][:, : low.shape[1]], kept["te"][:, low.shape[1] :]
    shared = torch.cat([trend[..., None], bonus], -1)
    low = feed("features.start_emb_l.linear", torch.cat([low[..., None], shared], -1))
    high = feed("features.start_emb_h.linear", torch.cat([high[..., None], shared], -1))
    layers = len({name.split(".")[2] for name in weights if name.startswith("features.dual_encoder.")})
    for i in range(layers):
        name = f"features.dual_encoder.{i}"
        low, high = over_days(f"{name}.tatt", low), convolution(f"{name}.tcn.conv", high)
        kept[f"tatt{i}"], kept[f"tcn{i}"] = low, high
        kept[f"ssal{i}"], kept[f"copy_layer{i}_low"] = over_stocks(f"{name}.ssal", low)
        kept[f"ssah{i}"], kept[f"copy_layer{i}_high"] = over_stocks(f"{name}.ssah", high)
        low, high = low + kept[f"ssal{i}"], high + kept[f"ssah{i}"]
        kept[f"low{i}"], kept[f"high{i}"] = low, high
    low, high = predict("features.pre_l", low) + te_out, predict("features.pre_h", high) + te_out
    kept["lowpred"], kept["fused"] = low, fuse("features.adaptive_fusion", low, high)
    for source, suffix in ((kept["fused"], ""), (low, "_low")):
        kept[f"class{suffix}"] = feed("classifier.end_emb_class.linear", source)
        kept[f"reg{suffix}"] = feed("classifier.end_emb_regress.linear", source).squeeze(-1)
    return kept
