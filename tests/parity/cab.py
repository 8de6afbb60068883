"""CAB's attentions as its code computes them (bugs included), its composite index and efficiency length."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manyhead.insight.composite import PAPER_TASKS, composite_index, efficiency_length
from manyhead.mixers.bounded_memory import BoundedMemoryAttention
from manyhead.mixers.causal_longshort import CausalLongShortAttention
from manyhead.mixers.cosformer import CosFormer
from manyhead.mixers.lara import LARA
from manyhead.mixers.local import LocalAttention
from manyhead.mixers.longshort import LongShortAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.nystrom import NystromAttention
from manyhead.mixers.performer import Performer
from manyhead.mixers.probsparse import ProbSparseAttention
from manyhead.mixers.s4d import S4D

RENAMED = {
    "longshort": {
        "W_q": "q_proj",
        "W_k": "k_proj",
        "W_v": "v_proj",
        "W_o": "out_proj",
        "dual_ln_l": "norm_window",
        "dual_ln_s": "norm_landmarks",
        "dconv_fc": "projection",
    },
    "probsparse": {f"{p}_projection": f"{p[0]}_proj" for p in ("query", "key", "value")}
    | {"out_projection": "out_proj"},
    "s4d": {"kernel.kernel.": "", "output_linear": "out_proj"},
    "performer": {"eval_proj": "features"},
    "causalls": {
        "proj_query": "q_proj",
        "proj_key": "k_proj",
        "proj_val": "v_proj",
        "proj_out": "out_proj",
        "dconv_1": "share",
        "dual_ln_win": "norm_window",
        "dual_ln_dproj": "norm_chunk",
        "r_net_chunk": "chunk_position",
        "r_net": "window_position",
        "r_w_bias": "content_bias",
        "r_r_bias": "position_bias",
    },
}


def load(layer: nn.Module, weights: dict[str, Any], family: str) -> nn.Module:
    own = layer.state_dict()
    for name, value in weights.items():
        for old, new in RENAMED.get(family, {}).items():
            name = name.replace(old, new)
        if name in own:
            own[name] = torch.tensor(value).reshape(own[name].shape)
        else:
            assert name == "pos_emb.inv_freq", f"there is no place for {name}"
    layer.load_state_dict(own)
    return layer.eval()


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    size = (config["embed_dim"], config["num_heads"])
    marks, window, chunks = config["num_landmarks"], config["wsize"], config["causalls"]
    performer: dict[str, Any] = {"features": config["performer_features"], "released": True}
    nystrom: dict[str, Any] = {"landmarks": marks, "kernel": config["nystrom_conv"], "released": True}
    bi = arrays["w/s4d_bi/D"].shape[0]
    one = arrays["w/s4d/D"].shape[0]
    build: dict[str, nn.Module] = {
        "vanilla": MultiHeadAttention(*size),
        "vanilla_causal": MultiHeadAttention(*size, causal=True),
        "vanilla_cross": MultiHeadAttention(*size, cross=True),
        "local": LocalAttention(*size, width=window),
        "local_causal": LocalAttention(*size, width=window, causal=True),
        "abc": BoundedMemoryAttention(*size, slots=marks),
        "abc_causal": BoundedMemoryAttention(*size, slots=marks, causal=True, released=True),
        "abc_cross": BoundedMemoryAttention(*size, slots=marks, cross=True),
        "nystrom": NystromAttention(*size, **nystrom),
        "performer": Performer(*size, **performer),
        "performer_cross": Performer(*size, cross=True, **performer),
        "cosformer": CosFormer(*size),
        "cosformer_cross": CosFormer(*size, cross=True),
        "lara": LARA(*size, proposals=marks, released=True),
        "probsparse": ProbSparseAttention(*size, factor=config["probsparse_factor"]),
        "longshort": LongShortAttention(*size, width=config["longshort_window"], landmarks=marks),
        "s4d": S4D(size[0], one, state=config["s4d_state"]),
        "s4d_bi": S4D(size[0], bi, state=config["s4d_state"], causal=False),
    }
    pairs: dict[str, tuple[Any, Any]] = {}
    for name in [key[4:] for key in arrays if key.startswith("out/")]:
        base = name.removesuffix("_pad")
        family = name.split("_")[0]
        own = base if any(key.startswith(f"w/{base}/") for key in arrays) else family
        layer = load(build[base], arrays.group(f"w/{own}/"), family)
        x = torch.tensor(arrays["x"], requires_grad=True)
        options: dict[str, Tensor] = {}
        if name.endswith("_cross"):
            options = {"context": torch.tensor(arrays["key"]), "value": torch.tensor(arrays["value"])}
        elif name.endswith("_pad"):
            options = {"padding": torch.tensor(arrays["key_padding_mask"])}
        elif name == "probsparse":
            options = {"keys": torch.tensor(arrays["probsparse_index_sample"])}
        out = layer(x, **options)
        out.backward(torch.tensor(arrays["g"]))
        pairs |= {
            f"out/{name}": (out, arrays[f"out/{name}"]),
            f"grad_x/{name}": (x.grad, arrays[f"grad_x/{name}"]),
        }
    causal = CausalLongShortAttention(
        *size,
        chunk=chunks["chunk_size"],
        width=chunks["window_size"],
        rank=chunks["chunk_rank"],
        memory=chunks["mem_len"],
        released=True,
    )
    load(causal, arrays.group("w/causalls/"), "causalls")
    x = torch.tensor(arrays["causalls_x"], requires_grad=True)
    out = causal(x)
    out.backward(torch.tensor(arrays["causalls_g"]))
    pairs |= {
        "causalls_out": (out, arrays["causalls_out"]),
        "causalls_grad_x": (x.grad, arrays["causalls_grad_x"]),
    }
    return pairs | index(arrays)


def index(arrays: Any) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {}
    totals = []
    for i, tasks in enumerate(PAPER_TASKS.values()):
        parts = (arrays[f"ci_{part}_{i}"] for part in ("scores", "mu", "sigma", "sign"))
        by_task, total = composite_index(*parts, tasks)
        pairs[f"ci_task_{i}"] = (by_task, arrays[f"ci_task_{i}"])
        totals.append(total)
    pairs["ci_total"] = (np.array(totals), arrays["ci_total"])
    costs = [arrays[f"efflen_{part}"] for part in ("lengths", "vanilla", "efficient")]
    for kind, drop in (("memory", False), ("time", True)):
        found = np.array(efficiency_length(*costs, drop_first=drop).length)
        pairs[f"efflen_{kind}"] = (found, arrays[f"efflen_{kind}"])
    return pairs
