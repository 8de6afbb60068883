"""One training step of Stockformer: seconds, peak memory, and efficiency against one large matrix product.

Efficiency is (time of one large float32 matrix product with as many FLOPs as the step) / (time of the step).
FLOPs are those of the mathematical step, counted analytically: forward plus twice as many backward, without
recomputation and without the unneeded gradient of the inputs. Products that the copy step makes superfluous
are counted in `efficiency`, as the released code performs them, and left out in `efficiency_performed`.

Every case runs in a process of its own, so that peak memory is that of the case. Run:

    python benchmarks/stockformer_step.py [--stocks 300 1000 4000] [--threads 2] [--json FILE]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manyhead.files import write_text
from manyhead.stocks.network import Stockformer
from manyhead.stocks.network.spatial import SpatialAttention

DAYS, AHEAD, FEATURES, DIM, LAYERS = 20, 2, 362, 128, 2
RELEASED = {"seconds": 10.7, "peak_gb": 6.6, "efficiency": 0.05}  # N = 300, B = 4, two threads


def step_flops(
    batch: int,
    stocks: int,
    *,
    features: int = FEATURES,
    dim: int = DIM,
    layers: int = LAYERS,
    days: int = DAYS,
    ahead: int = AHEAD,
    copied: float = 1.0,
) -> float:
    """Matrix-product FLOPs of forward and backward; `copied`: the share of attention rows that are copied."""
    tokens, later = batch * days * stocks, batch * ahead * stocks
    square = dim * dim
    first = 2 * tokens * features * dim  # start embeddings, first map: no gradient of their input
    forward = 2 * tokens * square + batch * (days + ahead) * square
    # Temporal attention 4 + 2 maps, convolution 2, spatial attention 2 x (4 + 2).
    forward += layers * tokens * 20 * square
    forward += layers * 2 * batch * stocks * days * days * dim
    scores = layers * 2 * batch * days * stocks * stocks * dim
    forward += 2 * tokens * ahead * dim  # two predictors
    forward += later * 6 * square + 2 * batch * stocks * ahead * ahead * dim  # fusion
    forward += 2 * later * (2 * square + 3 * dim)  # heads
    codes = batch * (days + ahead) * 55 * dim
    products = 3 * forward + 2 * first + 2 * codes
    # Scores: all forward; their values and both gradients for the copied rows only.
    products += scores * (1 + 5 * copied)
    return 2.0 * products


def inputs(batch: int, stocks: int) -> dict[str, Tensor]:
    """Random inputs of the sizes of the benchmark, with a fixed seed."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    position = torch.arange(DAYS + AHEAD) + 42
    return {
        "low": normal(batch, DAYS, stocks) * 0.02,
        "high": normal(batch, DAYS, stocks) * 0.02,
        "te": torch.stack([position // 21, position % 21], -1).expand(batch, -1, -1),
        "bonus": normal(batch, DAYS, stocks, FEATURES - 2),
        "trend": (normal(batch, DAYS, stocks) > 0).float(),
        "adjgat": normal(stocks, DIM) * 0.2,
    }


def training_step(batch: int, stocks: int, bfloat16: bool) -> tuple[Callable[[], None], Stockformer]:
    """Forward, both losses for both frequencies, backward, clipping and Adam, as one function to call."""
    torch.manual_seed(0)
    network = Stockformer(FEATURES, DIM, LAYERS, DAYS, AHEAD)
    given = inputs(batch, stocks)
    target = torch.randn(batch, AHEAD, stocks) * 0.02
    direction = (target > 0).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            out = network(**given)
        classes = [x.flatten(0, 2) for x in (out.class_logits, out.class_logits_low)]
        loss = sum((x - target).abs().mean() for x in (out.returns, out.returns_low))
        loss = loss + sum(F.cross_entropy(x, direction.flatten()) for x in classes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()

    return step, network


def copied_share(batch: int, stocks: int) -> float:
    """Mean share of distinct rows that the copy step reads, over layers, branches and days."""
    torch.manual_seed(0)
    network = Stockformer(FEATURES, DIM, LAYERS, DAYS, AHEAD)
    shares = list[float]()

    def count(module: Any, given: tuple[Any, ...]) -> None:
        copied = module.copies(*given).flatten(0, 1)
        shares.extend(float(day.unique().numel() / stocks) for day in copied)

    for module in network.modules():
        if isinstance(module, SpatialAttention):
            module.register_forward_pre_hook(count)
    with torch.no_grad():
        network(**inputs(batch, stocks))
    return sum(shares) / len(shares)


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Wall-clock times of repeated calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def peak_bytes() -> int:
    """The process's high-water mark of resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def product_seconds(flops: float, repeats: int) -> list[float]:
    """Times of one square float32 product of that many FLOPs; above 2e11 it is scaled from one of 2e11."""
    size = round((min(flops, 2e11) / 2) ** (1 / 3))
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    torch.mm(left, right, out=out)
    return [t * flops / (2 * size**3) for t in seconds(lambda: torch.mm(left, right, out=out), repeats)]


def measure(batch: int, stocks: int, bfloat16: bool, threads: int, repeats: int) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(threads)
    step, _ = training_step(batch, stocks, bfloat16)
    before = peak_bytes()
    warm_up = seconds(step, 1)
    times = seconds(step, repeats) if repeats else warm_up
    peak = peak_bytes()
    flops = step_flops(batch, stocks)
    # The product, and under bfloat16 the float32 step, are timed in turn with more steps: what else the
    # machine does then slows all of them.
    exact = training_step(batch, stocks, False)[0] if bfloat16 and repeats else None
    product, float32 = product_seconds(flops, 1), seconds(exact, 1)[:0] if exact else []
    for _ in range(repeats):
        times += seconds(step, 1)
        product += product_seconds(flops, 1)
        float32 += seconds(exact, 1) if exact else []
    share = copied_share(1, stocks)
    best, fair = min(times), min(product)
    performed = step_flops(batch, stocks, copied=share)
    return {
        "stocks": stocks,
        "batch": batch,
        "precision": "bfloat16" if bfloat16 else "float32",
        "seconds": best,
        "median_seconds": sorted(times)[len(times) // 2],
        "product_seconds": fair,
        "share_of_float32": best / min(float32) if float32 else None,
        "efficiency": fair / best,
        "efficiency_performed": fair / best * performed / flops,
        "copied_share": share,
        "gflop": flops / 1e9,
        "peak_gb": peak / 1e9,
        "peak_gb_above_start": (peak - before) / 1e9,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure every case in a process of its own, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stocks", type=int, nargs="+", default=[300, 1000, 4000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=4, type=int, metavar=("BATCH", "STOCKS", "BFLOAT16", "REPEATS"))
    chosen = parser.parse_args()
    if chosen.case:
        batch, stocks, bfloat16, repeats = chosen.case
        print(json.dumps(measure(batch, stocks, bool(bfloat16), chosen.threads, repeats)))
        return
    rows = []
    columns = {"stocks": 6, "batch": 5, "precision": 9, "seconds": 8, "efficiency": 10}
    columns |= {"efficiency_performed": 20, "share_of_float32": 16, "peak_gb": 8, "peak_gb_above_start": 19}
    print(" ".join(f"{name:>{width}}" for name, width in columns.items()))
    for stocks in chosen.stocks:
        batch, repeats = (
            (4, chosen.repeats) if stocks <= 300 else (1, chosen.repeats if stocks <= 1000 else 0)
        )
        for bfloat16 in (0, 1):
            case = [str(x) for x in (batch, stocks, bfloat16, repeats)]
            command = [sys.executable, __file__, "--threads", str(chosen.threads), "--case", *case]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(row)
            values = [(row[name], width) for name, width in columns.items()]
            cells = [(f"{x:.3f}" if isinstance(x, float) else str(x or ""), width) for x, width in values]
            print(" ".join(f"{cell:>{width}}" for cell, width in cells), flush=True)
    if chosen.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        result = {"machine": machine | {"threads": chosen.threads}, "released": RELEASED, "cases": rows}
        write_text(chosen.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
