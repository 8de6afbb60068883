"""Factor speed: `python benchmarks/factors.py [--out benchmarks/results/factors.json]`.

1. Alpha360 of 503 symbols x 3,500 days, stored, and on demand in the stretches of 20 days that a window
   model reads; Alpha158 of the same, without gaps and with one day in a hundred suspended.
2. The yardstick, in the same run: the same formulas evaluated by pandas, symbol by symbol, on some of the
   symbols; its numbers must equal ours.
3. Pre-processing on demand: milliseconds a day for 503 and for 4,000 symbols of 360 factors.

Speeds are values per second of wall time, the best of some repetitions; the processor's seconds stand
beside them, because a busy machine stretches only the former.
"""

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from manyhead.files import write_text
from manyhead.stocks.factors import LaggedAlpha360, RollingAlpha158, alpha158, alpha360
from manyhead.stocks.panel import Panel
from manyhead.stocks.preprocess import (
    ClipOutliers,
    CrossSectionZScore,
    FillMissing,
    ForwardFill,
    Neutralise,
    Pipeline,
    log_dollar_volume,
)

# pyqlib 0.9.7's own engine, values per second on a machine of two cores, measured elsewhere
QLIB = {"alpha360": 14e6, "alpha158": 8.4e6}
TARGET = {"alpha360": 200e6, "alpha158": 40e6}


def market(symbols: int, days: int, suspended: float = 0.0) -> Panel:
    """Random walks with all six fields."""
    random = np.random.default_rng(0)
    close = 50 * np.exp(np.cumsum(random.normal(0.0002, 0.02, (days, symbols)), axis=0))
    opened = close * np.exp(random.normal(0, 0.01, close.shape))
    high = np.maximum(opened, close) * np.exp(np.abs(random.normal(0, 0.005, close.shape)))
    low = np.minimum(opened, close) * np.exp(-np.abs(random.normal(0, 0.005, close.shape)))
    volume = np.round(np.exp(random.normal(14, 0.7, close.shape)))
    fields = {"open": opened, "high": high, "low": low, "close": close, "volume": volume}
    fields["vwap"] = (high + low + close) / 3
    gaps = random.random(close.shape) < suspended
    for values in fields.values():
        values[gaps] = np.nan
    dates = np.busday_offset("2010-01-04", np.arange(days))
    names = tuple(f"S{index:04d}" for index in range(symbols))
    return Panel(dates, names, {name: values.astype(np.float32) for name, values in fields.items()})


def speed(work: Callable[[], int], repeats: int) -> dict[str, float]:
    """Values per second of the best repetition; `work` returns how many values it made."""
    best = processor = float("inf")
    values = 0
    for _ in range(repeats):
        wall, used = time.perf_counter(), time.process_time()
        values = work()
        best = min(best, time.perf_counter() - wall)
        processor = min(processor, time.process_time() - used)
    return {
        "values": values,
        "seconds": round(best, 3),
        "processor_seconds": round(processor, 3),
        "values_per_second": round(values / best),
    }


def on_demand(source: LaggedAlpha360, stretch: int = 20) -> int:
    """Ask for every day once, in stretches; nothing is kept."""
    return sum(
        source.rows(start, min(start + stretch, source.days)).size for start in range(0, source.days, stretch)
    )


def pandas_alpha360(prices: pd.DataFrame) -> dict[str, pd.Series]:
    """One symbol's Alpha360, formula by formula."""
    found = {}
    for field in ("close", "open", "high", "low", "vwap", "volume"):
        by = prices["close"] if field != "volume" else prices["volume"] + 1e-12
        for lag in range(59, -1, -1):
            found[f"{field.upper()}{lag}"] = prices[field].shift(lag) / by
    return found


def pandas_alpha158(prices: pd.DataFrame) -> dict[str, pd.Series]:
    """One symbol's Alpha158, formula by formula, each rolling operator as Qlib calls it."""
    o, h, l, c, v, w = (prices[name] for name in ("open", "high", "low", "close", "volume", "vwap"))  # noqa: E741
    top, bottom, e = np.maximum(o, c), np.minimum(o, c), 1e-12
    found = {"KMID": (c - o) / o, "KLEN": (h - l) / o, "KMID2": (c - o) / (h - l + e)}
    found |= {"KUP": (h - top) / o, "KUP2": (h - top) / (h - l + e), "KLOW": (bottom - l) / o}
    found |= {"KLOW2": (bottom - l) / (h - l + e), "KSFT": (2 * c - h - l) / o}
    found |= {
        "KSFT2": (2 * c - h - l) / (h - l + e),
        "OPEN0": o / c,
        "HIGH0": h / c,
        "LOW0": l / c,
        "VWAP0": w / c,
    }
    day = pd.Series(np.arange(len(c), dtype=float), c.index)
    moves = {"SUM": c, "VSUM": v}
    for d in (5, 10, 20, 30, 60):

        def roll(x: pd.Series, d: int = d) -> "pd.core.window.Rolling":
            return x.rolling(d, min_periods=1)

        time_of = day.where(c.notna())
        slope = roll(time_of).cov(c) / roll(time_of).var()
        flat, mean = np.isclose(roll(c).std(), 0, atol=2e-5), roll(c).mean()
        peak = roll(h).apply(lambda x: x.argmax() + 1, raw=True)
        trough = roll(l).apply(lambda x: x.argmin() + 1, raw=True)
        swing, ratio = (c / c.shift(1) - 1).abs() * v, c / c.shift(1)
        up, down = roll((c > c.shift(1)).astype(float)).mean(), roll((c < c.shift(1)).astype(float)).mean()
        found |= {
            f"ROC{d}": c.shift(d) / c,
            f"MA{d}": mean / c,
            f"STD{d}": roll(c).std() / c,
            f"BETA{d}": slope / c,
            f"RSQR{d}": (roll(time_of).corr(c) ** 2).mask(flat),
            f"RESI{d}": (c - mean - slope * (day - roll(time_of).mean())) / c,
            f"MAX{d}": roll(h).max() / c,
            f"MIN{d}": roll(l).min() / c,
            f"QTLU{d}": roll(c).quantile(0.8) / c,
            f"QTLD{d}": roll(c).quantile(0.2) / c,
            f"RANK{d}": roll(c).rank(pct=True),
            f"RSV{d}": (c - roll(l).min()) / (roll(h).max() - roll(l).min() + e),
            f"IMAX{d}": peak / d,
            f"IMIN{d}": trough / d,
            f"IMXD{d}": (peak - trough) / d,
            f"CORR{d}": roll(c).corr(np.log(v + 1)),
            f"CORD{d}": roll(ratio).corr(np.log(v / v.shift(1) + 1)),
            f"CNTP{d}": up,
            f"CNTN{d}": down,
            f"CNTD{d}": up - down,
            f"VMA{d}": roll(v).mean() / (v + e),
            f"VSTD{d}": roll(v).std() / (v + e),
            f"WVMA{d}": roll(swing).std() / (roll(swing).mean() + e),
        }
        for name, x in moves.items():
            move = x - x.shift(1)
            rise, fall = roll(move.clip(lower=0)).sum(), roll((-move).clip(lower=0)).sum()
            whole = roll(move.abs()).sum() + e
            found |= {f"{name}P{d}": rise / whole, f"{name}N{d}": fall / whole}
            found[f"{name}D{d}"] = (rise - fall) / whole
    return found


def yardstick(
    panel: Panel, formulas: Callable[[pd.DataFrame], dict[str, pd.Series]]
) -> tuple[list[str], np.ndarray]:
    """Evaluate formulas by pandas: names, and (days, symbols, factors)."""
    columns = []
    for symbol in range(len(panel.symbols)):
        found = formulas(pd.DataFrame({name: values[:, symbol] for name, values in panel.fields.items()}))
        columns.append(np.stack([factor.to_numpy(np.float32) for factor in found.values()], axis=-1))
    return list(found), np.stack(columns, axis=1)


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of a factor over its largest value, the worst factor; NaN must meet NaN."""
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return float("inf")
    apart = np.nanmax(np.abs(ours.astype(np.float64) - theirs), axis=(0, 1))
    return float((apart / np.nanmax(np.abs(theirs), axis=(0, 1))).max())


def preparation(symbols: int, days: int = 40) -> float:
    """Milliseconds to clean one day of 360 factors, on demand, from prices on."""
    panel = market(symbols, 60 + days, suspended=0.001)
    raw = LaggedAlpha360(panel)
    sectors = [index % 11 for index in range(symbols)]
    steps = (ForwardFill(), ClipOutliers(), Neutralise(log_dollar_volume(panel), sectors))
    clean = Pipeline((*steps, CrossSectionZScore(), FillMissing())).fit(raw, range(0, 60)).apply(raw)
    best = float("inf")
    for start in range(60, 60 + days, 20):
        begun = time.perf_counter()
        clean.rows(start, start + 20)
        best = min(best, time.perf_counter() - begun)
    return best / 20 * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of Alpha360, Alpha158 and pre-processing")
    parser.add_argument("--symbols", type=int, default=503)
    parser.add_argument("--days", type=int, default=3500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slice", type=int, default=6, help="symbols that pandas evaluates")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "factors.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    panel = market(options.symbols, options.days)
    gapped = market(options.symbols, options.days, suspended=0.01)
    lagged = LaggedAlpha360(panel)
    part = panel.select(panel.symbols[: options.slice])

    alpha360(panel)  # the operating system hands out the memory for the first time
    measured = {
        "alpha360 stored": speed(lambda: alpha360(panel).values.size, options.repeats),
        "alpha360 on demand, one thread": speed(lambda: on_demand(lagged), options.repeats),
        "alpha158 stored": speed(lambda: alpha158(panel).values.size, options.repeats),
        "alpha158 stored, 1 % suspended": speed(lambda: alpha158(gapped).values.size, options.repeats),
        "pandas alpha360": speed(lambda: yardstick(part, pandas_alpha360)[1].size, 3),
        "pandas alpha158": speed(lambda: yardstick(part, pandas_alpha158)[1].size, 2),
    }
    difference = {}
    for name, ours, formulas in (
        ("alpha360", LaggedAlpha360(part), pandas_alpha360),
        ("alpha158", RollingAlpha158(part), pandas_alpha158),
    ):
        names, theirs = yardstick(part, formulas)
        theirs = theirs[..., [names.index(factor) for factor in ours.names]]
        difference[name] = largest_difference(ours.rows(0, part.days), theirs)

    width = max(map(len, measured))
    for name, result in measured.items():
        kind = "alpha360" if "360" in name else "alpha158"
        speed_of_pandas = measured[f"pandas {kind}"]["values_per_second"]
        result["over_pandas"] = round(result["values_per_second"] / speed_of_pandas, 1)
        result["over_qlib_recorded"] = round(result["values_per_second"] / QLIB[kind], 1)
        reached = result["values_per_second"] >= TARGET[kind]
        verdict = "" if name.startswith("pandas") else "reached" if reached else "MISSED"
        print(
            f"{name:<{width}}  {result['values_per_second'] / 1e6:8.1f} M values/s  "
            f"{result['seconds']:6.2f} s (processor {result['processor_seconds']:6.2f} s)  "
            f"{result['over_pandas']:6.1f} x pandas  "
            f"{result['over_qlib_recorded']:5.1f} x Qlib's engine  {verdict}"
        )
    cleaning = {str(symbols): round(preparation(symbols), 2) for symbols in (503, 4000)}
    for symbols, milliseconds in cleaning.items():
        print(f"pre-processing on demand, {symbols} symbols x 360 factors: {milliseconds} ms a day")
    print(f"largest difference from pandas, a factor at a time: {difference}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    document = {
        "what": f"{options.symbols} symbols x {options.days} days, {options.threads} threads",
        "machine": {
            "cpus": os.cpu_count(),
            "architecture": platform.machine(),
            "load_average_5_minutes": os.getloadavg()[1],  # what else ran beside this, and slowed it
        },
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pandas": pd.__version__},
        "measured": measured,
        "target_values_per_second": TARGET,
        "qlib_recorded_values_per_second": QLIB,
        "largest_relative_difference_from_pandas": difference,
        "preprocessing_milliseconds_a_day": cleaning,
        "peak_MiB": round(peak),
    }
    write_text(options.out, json.dumps(document, indent=2) + "\n")
    print(f"peak memory {peak:.0f} MiB; written to {options.out}")


if __name__ == "__main__":
    main()
