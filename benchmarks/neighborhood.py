"""Training steps of local attention against dense SDPA with a mask, two CPU threads.

`python benchmarks/neighborhood.py [--json FILE] [--quick]` prints time and memory of a forward and backward
pass, the growth with tokens (a fitted exponent) and memory against the size of the window. Memory is the
most that a step allocates at a time beyond its inputs, read from the allocator's events. Output and gradients
are part of it, and every method must hold them, so the ratio to dense SDPA stands there with and without
them, and beside it the ratio to attention that stores its weights (planned bytes of the kernel 'reference').
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manyhead.attention import attend, plan
from manyhead.demonstration import machine
from manyhead.files import write_text
from manyhead.kernels.measure import peak_bytes, seconds
from manyhead.pattern import Window

# grid, window, heads, head_dim, batch, least speed-up asked for
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, int, float]] = {
    "2-D 64x64, 7x7": ((64, 64), (7, 7), 4, 32, 2, 6.0),
    "2-D 128x128, 7x7": ((128, 128), (7, 7), 4, 32, 2, 25.0),
    "3-D 16x16x16, 5x5x5": ((16, 16, 16), (5, 5, 5), 4, 32, 2, 4.0),
    "1-D 16,384, 128": ((16_384,), (128,), 4, 32, 1, 20.0),
}

CLOCK: list[Callable[[], float]] = [time.perf_counter]


def tensors(grid: tuple[int, ...], heads: int, head_dim: int, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, *grid, heads, head_dim)
    return [torch.randn(shape, generator=generator, requires_grad=number < 3) for number in range(4)]


def local_step(inputs: list[Tensor], window: tuple[int, ...]) -> Any:
    q, k, v, upstream = inputs
    return torch.autograd.grad(attend(q, k, v, Window(window), kernel="windows"), (q, k, v), upstream)


def dense_step(inputs: list[Tensor], mask: Tensor) -> Any:
    q, k, v, upstream = (x.detach().flatten(1, -3).transpose(1, 2).requires_grad_() for x in inputs)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.autograd.grad(out, (q, k, v), upstream)


def case(name: str, repeats: int) -> dict[str, Any]:
    grid, window, heads, head_dim, batch, least = CASES[name]
    inputs = tensors(grid, heads, head_dim, batch)
    # the shortest of some runs, for local and dense alike: other programs only ever add to one
    local = seconds(lambda: local_step(inputs, window), repeats, CLOCK[0], min)
    memory = peak_bytes(lambda: local_step(inputs, window))
    mask = Window(window).mask(grid)
    # a dense step takes half a minute at 16,384 tokens: it is measured once there
    dense = (
        seconds(lambda: dense_step(inputs, mask), 3, CLOCK[0], min)
        if mask.shape[0] <= 4096
        else once(inputs, mask)
    )
    pairs = mask.shape[0] ** 2
    held = 4 * inputs[0].numel() * 4  # output and three gradients
    # SDPA turns the Boolean mask into numbers: 5 bytes a pair, beside output and gradients
    dense_memory = 5 * pairs + held if pairs > 2**25 else peak_bytes(lambda: dense_step(inputs, mask)) + pairs
    return {
        "case": name,
        "local_s": local,
        "dense_s": dense,
        "speedup": dense / local,
        "asked": least,
        "local_bytes": memory,
        "dense_bytes": dense_memory,
        "memory_ratio": memory / dense_memory,
        "memory_ratio_beyond_results": max(0, memory - held) / (dense_memory - held),
        "held_bytes": held,
        "stored_weights_bytes": plan(*inputs[:3], Window(window), kernel="reference").peak_bytes,
        "planned_bytes": plan(*inputs[:3], Window(window), kernel="windows").peak_bytes,
    }


def once(inputs: list[Tensor], mask: Tensor) -> float:
    """One dense step of one head and sample, times their number, so that memory and minutes suffice."""
    one = [x[:1, ..., :1, :].detach() for x in inputs]
    return seconds(lambda: dense_step(one, mask), 1, CLOCK[0]) * inputs[0].shape[0] * inputs[0].shape[-2]


def growth(repeats: int) -> dict[str, Any]:
    """Time against tokens at one window, and memory against the window at one grid."""
    # below 48 x 48 what a step costs before its first tile flattens the line: it is no part of the growth
    sides, times = (48, 64, 96, 128, 192, 256), []
    for side in sides:
        inputs = tensors((side, side), 4, 32, 1)
        times.append(seconds(lambda inputs=inputs: local_step(inputs, (7, 7)), repeats, CLOCK[0], min))
    exponent = np.polyfit([2 * math.log(side) for side in sides], np.log(times), 1)[0]
    inputs = tensors((64, 64), 4, 32, 1)
    memory = {size: peak_bytes(lambda size=size: local_step(inputs, (size, size))) for size in (5, 9, 17, 33)}
    return {
        "tokens": [side**2 for side in sides],
        "seconds": times,
        "exponent": float(exponent),
        "bytes_by_window": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--processor", action="store_true", help="one thread and processor time, for a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="leave out the grids of 16,384 tokens")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.processor else 2)
    CLOCK[0] = time.process_time if options.processor else time.perf_counter
    rows = []
    for name in CASES:
        if options.quick and math.prod(CASES[name][0]) > 4096:
            continue
        row = case(name, 5)
        rows.append(row)
        alone = 1 / max(row["memory_ratio_beyond_results"], 1e-9)
        print(
            f"{name:22} local {row['local_s'] * 1e3:8.1f} ms  dense {row['dense_s'] * 1e3:9.1f} ms  "
            f"{row['speedup']:6.1f}x (asked {row['asked']:g}x)  memory {row['local_bytes'] / 2**20:.1f} MiB, "
            f"1/{1 / row['memory_ratio']:.1f} of dense SDPA with a mask (without output and gradients, "
            f"{row['held_bytes'] / 2**20:.1f} MiB, 1/{alone:.1f}), "
            f"1/{row['stored_weights_bytes'] / row['local_bytes']:.0f} of stored weights; planned "
            f"{row['planned_bytes'] / 2**20:.1f} MiB",
            flush=True,
        )
    found = growth(5)
    print(f"time grows as tokens ** {found['exponent']:.2f}")
    print("memory by window:", {size: f"{b / 2**20:.1f} MiB" for size, b in found["bytes_by_window"].items()})
    if options.json:
        clock = "processor time, one thread" if options.processor else "wall time, two threads"
        result = {"machine": machine(), "clock": clock, "cases": rows, "growth": found}
        write_text(options.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
