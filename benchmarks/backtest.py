"""Back-test speed and memory: `python benchmarks/backtest.py [--out benchmarks/results/backtest.json]`.

1. TopK-Dropout with costs, limits and lots over 500 symbols x 3,500 days: wall and processor time
   of the whole call, best of some repetitions (wall time suffers where other programs run).
2. Books that rebalance, optimisers included, on the same prices.
3. A book of at least one million orders in a process of its own: peak resident memory.

The prices are random walks: speed does not depend on whether scores are any good.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from manyhead.files import write_text
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import (
    EqualWeight,
    LongShort,
    Optimised,
    Rebalance,
    SectorNeutral,
    TopK,
    TopkDropout,
    backtest,
    exchange,
)


def market(symbols: int, days: int) -> tuple[Panel, np.ndarray]:
    """Random prices with lots and one day in a hundred suspended, and random scores."""
    rng = np.random.default_rng(0)
    close = 50 * np.exp(np.cumsum(rng.normal(0.0003, 0.02, (days, symbols)), axis=0))
    close[rng.random(close.shape) < 0.01] = np.nan
    factor = np.where(np.isnan(close), np.nan, 1.0)
    dates = np.busday_offset("2010-01-04", np.arange(days))
    panel = Panel(
        dates, tuple(f"S{column:04d}" for column in range(symbols)), {"close": close, "factor": factor}
    )
    return panel, rng.normal(size=(days, symbols))


def speed(symbols: int, days: int, repeats: int) -> list[dict[str, object]]:
    """Time every strategy; the best of some repetitions."""
    panel, scores = market(symbols, days)
    sectors = {symbol: f"sector {number % 11}" for number, symbol in enumerate(panel.symbols)}
    short = exchange("us", short=True, borrow=0.01)
    cases = {
        "TopK-Dropout 50/5, China's costs, limits, lots": (TopkDropout(50, 5), "cn", repeats),
        "TopK-Dropout 50/5, 5 bp a side": (TopkDropout(50, 5), "us", repeats),
        "top 50, daily": (Rebalance(TopK(50)), "us", 1),
        "long-short deciles, daily": (Rebalance(LongShort(0.1)), short, 1),
        "sector-neutral fifths, every 5 days": (Rebalance(SectorNeutral(sectors), 5), short, 1),
        "long-short, volatility 10 %, turnover 30 %": (
            Rebalance(LongShort(0.1), volatility=0.1, max_turnover=0.3),
            short,
            1,
        ),
        "skfolio mean-variance of 60, every 21 days": (Rebalance(Optimised(), 21), "us", 1),
    }
    rows: list[dict[str, object]] = []
    for name, (strategy, rules, times) in cases.items():
        whole = []
        for _ in range(times):
            began, used = time.perf_counter(), time.process_time()
            result = backtest(panel, scores, strategy, rules)
            whole.append((time.perf_counter() - began, time.process_time() - used))
        best, cpu = min(whole)
        rows.append({"case": name, "seconds": best, "cpu_seconds": cpu, "orders": result.orders.height})
        print(
            f"{name:<48} {best:7.2f} s (processor {cpu:5.2f} s) {result.orders.height:>9,} orders",
            flush=True,
        )
    return rows


def million() -> None:
    """Equal weights every day: each name is traded each day."""
    panel, scores = market(500, 2100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    result = backtest(panel, scores, Rebalance(EqualWeight()), exchange("free"))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = {
        "orders": result.orders.height,
        "seconds": seconds,
        "MiB": peak / 1024,
        "before_MiB": before / 1024,
    }
    print(json.dumps(numbers))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--symbols", type=int, default=500)
    options.add_argument("--days", type=int, default=3500)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--million", action="store_true", help="run part 3 in this process")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    if chosen.million:
        million()
        return
    rows = speed(chosen.symbols, chosen.days, chosen.repeats)
    alone = subprocess.run(
        [sys.executable, __file__, "--million"], capture_output=True, text=True, check=True
    )
    memory = json.loads(alone.stdout)
    print(
        f"{memory['orders']:,} orders in {memory['seconds']:.1f} s, peak {memory['MiB']:.0f} MiB "
        f"({memory['before_MiB']:.0f} MiB before)"
    )
    if chosen.out:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        command = f"python benchmarks/backtest.py --symbols {chosen.symbols} --days {chosen.days}"
        record = {"command": command, "machine": machine, "speed": rows, "million_orders": memory}
        write_text(chosen.out, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
