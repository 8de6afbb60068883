"""Faster neighbourhood attention: naive, as matrix products of tiles, and fused.

Hassani et al., 'Faster Neighborhood Attention', 2024, arXiv 2403.04690.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from manyhead.attention import attend
from manyhead.kernels.unfused import Method, neighborhood_av, neighborhood_qk
from manyhead.pattern import Window
from manyhead.system import Measurement, System
from manyhead.training.images import digits


def _unfused(method: Method, window: Window) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, second, third = (x.movedim(-2, 1) for x in (q, k, v))
        weights = neighborhood_qk(first * q.shape[-1] ** -0.5, second, window, method=method).softmax(-1)
        return neighborhood_av(weights, third, window, method).movedim(1, -2)

    return run


def _fused(window: Window) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v, window, kernel="windows")
        assert isinstance(out, Tensor)
        return out

    return run


def _saved_bytes(run: Callable[..., Tensor], inputs: list[Tensor]) -> int:
    """Bytes of the tensors kept for the backward pass, besides the inputs."""
    kept: dict[int, int] = {}
    given = [x.detach().requires_grad_() for x in inputs]

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        run(*given)
    return sum(size for place, size in kept.items() if place not in {x.data_ptr() for x in given})


def _seconds(run: Callable[..., Any], inputs: list[Tensor], repeats: int = 5) -> float:
    """Median processor time of a forward pass."""
    with torch.no_grad():
        run(*inputs)
        found = []
        for _ in range(repeats):
            start = time.process_time()
            run(*inputs)
            found.append(time.process_time() - start)
    return median(found)


def demo(seed: int, budget: float) -> list[Measurement]:
    """All 28 x 28 pixels of eight digits as tokens, one layer, windows of 5, 9 and 13."""
    image = digits(8 * (seed + 1), 1, side=28)[0][-8:]
    torch.manual_seed(seed)
    projection = torch.randn(1, 3 * 64)
    positions = torch.randn(28, 28, 3 * 64)
    tokens = image[:, 0, :, :, None] * projection + positions
    q, k, v = tokens.reshape(*tokens.shape[:-1], 3, 4, 16).unbind(-3)
    inputs = [q.contiguous(), k.contiguous(), v.contiguous()]
    times: dict[tuple[str, int], float] = {}
    saved: dict[tuple[str, int], int] = {}
    difference = 0.0
    for size in (5, 9, 13):
        window = Window((size, size))
        runs = {
            "naive": _unfused("naive", window),
            "tiles": _unfused("tiles", window),
            "fused": _fused(window),
        }
        with torch.no_grad():
            outputs = [run(*inputs) for run in runs.values()]
        difference = max([difference, *(float((out - outputs[0]).abs().max()) for out in outputs)])
        for name, run in runs.items():
            times[name, size] = _seconds(run, inputs)
            if name != "naive":
                saved[name, size] = _saved_bytes(run, inputs)
    found = [
        Measurement(
            "largest difference between the three implementations",
            "equal",
            None,
            difference,
            difference <= 1e-4,
            "lower",
        )
    ]
    for name, claim in (("tiles", "+272% (2-D, full precision)"), ("fused", "+581% (2-D, half precision)")):
        for size in (5, 13):
            naive, here = times["naive", size], times[name, size]
            met = naive >= 4 * here if size == 13 else naive > here
            what = f"time of {name} against naive, window {size} x {size}"
            found.append(Measurement(what, claim, naive, here, met, "lower", "s"))
    growth = {name: saved[name, 13] / saved[name, 5] for name in ("tiles", "fused")}
    found.append(
        Measurement(
            "bytes kept for backward, window 13 over window 5, fused",
            "constant in the window",
            growth["tiles"],
            growth["fused"],
            growth["fused"] <= 1.2 and growth["tiles"] >= 4.0,
            "lower",
        )
    )
    return found


SYSTEM = System(
    slug="faster_na",
    title="Faster Neighborhood Attention: "
    "Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
    year=2024,
    arxiv="2403.04690",
    claim="Neighbourhood attention as tiled matrix products, and fused, is faster than per-query gathers, "
    "and the fused form keeps memory independent of the window.",
    demo=demo,
    budget=60.0,
    notes="""
Times are processor seconds of one process on CPU; the paper's are of CUDA kernels on a GPU, so only the
direction and the order of the three can be compared. The baseline in the last row is the growth of the
unfused form.

Unfused operations do not scale their logits, fused ones do, as in the released library. Even windows are
allowed in both, although the paper's operations take odd ones only. Where the length of an axis is no
multiple of the dilation, each residue class has its own length.
""",
)
