"""A training step of Aaren's scan against softmax attention of equal width.

    python benchmarks/aaren_scan.py [--channels 64] [--heads 4] [--repeats 3] [--processor] [--json FILE]

Prints the growth exponent of both between 4k and 16k tokens, and the length at which they cost the same, as
measured and by the fits of `efficiency_length` (NaN where these do not meet).
"""

import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from command import read_options
from torch import nn

from manyhead.demonstration import machine
from manyhead.files import write_text
from manyhead.insight.composite import efficiency_length
from manyhead.mixers.aaren import Aaren
from manyhead.mixers.multihead import MultiHeadAttention

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)


def step(layer: nn.Module, x: torch.Tensor, clock: Callable[[], float]) -> float:
    """Seconds of a forward and a backward pass."""
    layer.zero_grad()
    begun = clock()
    layer(x).square().mean().backward()
    return clock() - begun


def crossing(dense: list[float], own: list[float]) -> float:
    """Length from which the scan is cheaper, between measured lengths by a power law; NaN if never."""
    ratios = [math.log(o / d) for o, d in zip(own, dense, strict=True)]
    dearer = [n for n, ratio in enumerate(ratios) if ratio > 0]
    if not dearer:
        return float(LENGTHS[0])
    n = dearer[-1]
    if n + 1 == len(LENGTHS):
        return math.nan
    part = ratios[n] / (ratios[n] - ratios[n + 1])
    return float(LENGTHS[n] * (LENGTHS[n + 1] / LENGTHS[n]) ** part)


def main() -> None:
    options, clock = read_options(__doc__, channels=64, heads=4, repeats=3)
    torch.manual_seed(0)
    layers = {
        "aaren": Aaren(options.channels, options.heads),
        "softmax": MultiHeadAttention(options.channels, options.heads, causal=True),
    }
    cost: dict[str, list[float]] = {name: [] for name in layers}
    for length in LENGTHS:
        x = torch.randn(1, length, options.channels, requires_grad=True)
        runs: dict[str, list[float]] = {name: [] for name in layers}
        for repeat in range(-3, options.repeats + 1) if length < 1024 else range(options.repeats + 1):
            for name, layer in layers.items():
                seconds = step(layer, x, clock)
                if repeat > 0:
                    runs[name].append(seconds)
        for name in layers:
            cost[name].append(statistics.median(runs[name]))
        print(length, {name: round(values[-1] * 1e3, 2) for name, values in cost.items()}, "ms", flush=True)
    start, end = LENGTHS.index(4096), LENGTHS.index(16384)
    growth = {name: math.log(c[end] / c[start]) / math.log(4) for name, c in cost.items()}
    met = efficiency_length(LENGTHS, cost["softmax"], cost["aaren"], drop_first=True)
    found: dict[str, Any] = {
        "machine": machine(),
        **vars(options),
        "seconds": {name: dict(zip(LENGTHS, c, strict=True)) for name, c in cost.items()},
        "growth exponent, 4k to 16k": growth,
        "crossing length": crossing(cost["softmax"], cost["aaren"]),
        "crossing length of the fits": met.length,
        "r2 of the fits": met.r2,
    }
    print("growth exponents", growth, "crossing length", found["crossing length"], "r2", met.r2)
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
