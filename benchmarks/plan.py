"""Is `plan` a promise? Predicted against measured over random CPU cases.

`python benchmarks/plan.py [--cases 60] [--seed 0] [--json FILE]` draws grids, patterns, heads and sizes,
and prints the share of cases in which the predicted peak bytes lie within 10 % of those measured, the
share in which the predicted faster of two kernels was the faster one (processor time), measured over
estimated time of every kernel, and whether every refusal is a sentence. Cases whose two times are within
5 % of each other count as right.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from manyhead.attention import attend, plan
from manyhead.demonstration import machine
from manyhead.files import write_text
from manyhead.kernels.measure import peak_bytes, seconds
from manyhead.pattern import Blocks, Causal, GridPartition, Pattern, Prefix, Window


def draw(source: random.Random) -> tuple[Pattern, tuple[int, ...], int, int, int, bool]:
    """A pattern, a grid, batch, heads, head_dim and whether gradients are asked for."""
    axes = source.choice([1, 2, 2, 3])
    tokens = source.choice([256, 512, 1024, 2048])
    side = {1: tokens, 2: int(tokens**0.5), 3: round(tokens ** (1 / 3))}[axes]
    grid = tuple(max(4, side + source.randint(-2, 2)) for _ in range(axes))
    sizes = [16, 64, 128, 256] if axes == 1 else [3, 5, 7, 9] if axes == 2 else [3, 5]
    window = tuple(min(source.choice(sizes), n) for n in grid)
    stride = tuple(source.randint(1, k) for k in window)
    block = tuple(source.choice([2, 4, 8]) for _ in grid)
    whole = tuple(n - n % b if n > b else b for n, b in zip(grid, block, strict=True))
    kind = source.randrange(7)
    patterns: list[tuple[Pattern, tuple[int, ...]]] = [
        (Window(window), grid),
        (Window(window, stride), grid),
        (Window(window, causal=tuple(source.random() < 0.5 for _ in grid)), grid),
        (Causal(tuple(i == 0 for i in range(axes))), grid),
        (Blocks(block), whole),
        (GridPartition(tuple(min(4, n) for n in whole)), whole),
        (Window(window) | Prefix(source.choice([1, 8])), grid),
    ]
    pattern, sizes_of = patterns[kind]
    return (
        pattern,
        sizes_of,
        source.choice([1, 2]),
        source.choice([1, 2, 4]),
        source.choice([16, 32, 64]),
        source.random() < 0.7,
    )


def one(number: int, source: random.Random) -> dict[str, Any]:
    pattern, grid, batch, heads, head_dim, grad = draw(source)
    q, k, v, upstream = (torch.randn(batch, *grid, heads, head_dim) for _ in range(4))
    inputs = tuple(x.requires_grad_(grad) for x in (q, k, v))
    found = plan(*inputs, pattern)

    def run(kernel: str) -> Any:
        out = attend(*inputs, pattern, kernel=kernel)
        return torch.autograd.grad(out, inputs, upstream) if grad else out

    measured = peak_bytes(lambda: run(found.kernel))
    others = [name for name in found.seconds if name not in (found.kernel, "reference")]
    rival = min(others, key=found.seconds.__getitem__) if others else "reference"
    # interleaved, so that a busy machine slows both alike
    times: dict[str, list[float]] = {found.kernel: [], rival: []}
    for _ in range(3):
        for name, taken in times.items():
            taken.append(seconds(lambda name=name: run(name), 1, time.process_time))
    taken, other = min(times[found.kernel]), min(times[rival])
    return {
        "case": number,
        "pattern": repr(pattern),
        "grid": grid,
        "batch": batch,
        "heads": heads,
        "head_dim": head_dim,
        "grad": grad,
        "kernel": found.kernel,
        "rival": rival,
        "bytes_ratio": found.peak_bytes / measured,
        "seconds": taken,
        "rival_seconds": other,
        "planned_seconds": found.seconds[found.kernel],
        "rival_planned_seconds": found.seconds.get(rival, math.nan),
        "right": taken <= 1.05 * other,
        "refusals": found.refusals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    source = random.Random(options.seed)
    torch.manual_seed(options.seed)
    rows = []
    for number in range(options.cases):
        row = one(number, source)
        rows.append(row)
        print(
            f"{number:3} {row['pattern'][:60]:60} {row['grid']!s:14} {row['kernel']:8} "
            f"bytes {row['bytes_ratio']:.3f}  {row['seconds'] * 1e3:7.1f} ms, {row['rival']} "
            f"{row['rival_seconds'] * 1e3:7.1f} ms {'' if row['right'] else 'WRONG'}",
            flush=True,
        )
    for kernel in sorted({row["kernel"] for row in rows} | {row["rival"] for row in rows}):
        ratios = [row["seconds"] / row["planned_seconds"] for row in rows if row["kernel"] == kernel]
        ratios += [
            row["rival_seconds"] / row["rival_planned_seconds"] for row in rows if row["rival"] == kernel
        ]
        ratios = sorted(ratio for ratio in ratios if not math.isnan(ratio))
        if ratios:
            print(
                f"{kernel}: measured over estimated time {median(ratios):.2f} (median of {len(ratios)}), "
                f"{ratios[len(ratios) // 10]:.2f} to {ratios[-1 - len(ratios) // 10]:.2f} in four of five"
            )
    within = sum(abs(row["bytes_ratio"] - 1) <= 0.1 for row in rows) / len(rows)
    right = sum(row["right"] for row in rows) / len(rows)
    sentences = all(len(reason.split()) > 3 for row in rows for reason in row["refusals"].values())
    print(
        f"peak bytes within 10 %: {within:.0%}; the faster of two kernels: {right:.0%}; refusals: {sentences}"
    )
    if options.json:
        result = {"machine": machine(), "within_10_percent": within, "right": right, "cases": rows}
        write_text(options.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
