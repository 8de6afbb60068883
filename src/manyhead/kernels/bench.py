"""`manyhead bench attention`: what kernels cost, and what was predicted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from manyhead.attention import KERNELS, attend, plan
from manyhead.demonstration import machine
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.kernels.measure import peak_bytes, seconds
from manyhead.pattern import Pattern
from manyhead.pattern.parse import parse_pattern


def parse_grid(text: str) -> tuple[int, ...]:
    """Read a grid such as '64x64'.

    Raises:
        InputError: if it is no product of whole numbers.
    """
    try:
        grid = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise InputError(f"--grid takes sizes joined by x, such as 64x64; got {text!r}") from None
    if min(grid) < 1:
        raise InputError(f"--grid takes sizes above zero, got {text!r}")
    return grid


def measure(
    grid: tuple[int, ...],
    heads: int,
    head_dim: int,
    batch: int,
    pattern: Pattern,
    kernel: str,
    *,
    backward: bool,
    repeats: int,
) -> dict[str, Any]:
    """Time and memory of one kernel under one pattern, beside the plan.

    Returns:
        A row of the table; with `refusal` instead of numbers where the kernel cannot run.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(batch, *grid, heads, head_dim, generator=generator) for _ in range(4)]
    q, k, v = (x.requires_grad_(backward) for x in tensors[:3])
    row: dict[str, Any] = {"pattern": pattern.describe(), "kernel": kernel}
    refusals = plan(q, k, v, pattern).refusals
    if kernel in refusals:
        return row | {"refusal": refusals[kernel]}
    planned = plan(q, k, v, pattern, kernel=kernel)

    def run() -> Any:
        out = attend(q, k, v, pattern, kernel=kernel)
        assert isinstance(out, torch.Tensor)
        return torch.autograd.grad(out, (q, k, v), tensors[3]) if backward else out

    return row | {
        "pairs": planned.pairs,
        "flops": planned.flops,
        "seconds": seconds(run, repeats),
        "planned_seconds": planned.seconds[kernel],
        "peak_bytes": peak_bytes(run),
        "planned_bytes": planned.peak_bytes,
    }


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """An HTML page with a bar per kernel and pattern."""
    import plotly.graph_objects as go

    figure = go.Figure()
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        mine = {row["pattern"]: row.get("seconds") for row in rows if row["kernel"] == kernel}
        figure.add_bar(name=kernel, x=patterns, y=[mine.get(pattern) for pattern in patterns])
    figure.update_layout(title="Attention", yaxis_title="seconds", yaxis_type="log", barmode="group")
    return str(figure.to_html(include_plotlyjs=True))


def run_bench(
    grid: str,
    patterns: Sequence[str],
    kernels: str,
    *,
    heads: int,
    head_dim: int,
    batch: int,
    backward: bool,
    repeats: int,
    as_json: bool,
    output: str | None,
) -> None:
    """Carry out `manyhead bench attention`."""
    sizes = parse_grid(grid)
    names = [name for name in KERNELS if name != "flex"] if kernels == "all" else kernels.split(",")
    for name in names:
        if name not in KERNELS:
            raise InputError(f"--kernels takes 'all' or names of {', '.join(KERNELS)}; got {name!r}")
    for option, value in {"heads": heads, "dim": head_dim, "batch": batch, "repeats": repeats}.items():
        if value < 1:
            raise InputError(f"--{option} takes a number above zero, got {value}")
    rows = [
        measure(sizes, heads, head_dim, batch, pattern, name, backward=backward, repeats=repeats)
        for pattern in map(parse_pattern, patterns)
        for name in names
    ]
    result = {"machine": machine(), "grid": sizes, "heads": heads, "head_dim": head_dim, "batch": batch}
    result |= {"backward": backward, "rows": rows}
    if output:
        write_text(Path(output) / "attention.json", json.dumps(result, indent=1) + "\n")
        write_text(Path(output) / "attention.html", plot(rows))
    if as_json:
        print(json.dumps(result, indent=1))
        return
    table = Table("pattern", "kernel", "pairs", "GFLOP", "ms", "planned ms", "MiB", "planned MiB")
    for row in rows:
        if "refusal" in row:
            table.add_row(row["pattern"], row["kernel"], row["refusal"])
            continue
        table.add_row(
            row["pattern"],
            row["kernel"],
            f"{row['pairs']:,}",
            f"{row['flops'] / 1e9:.3g}",
            f"{row['seconds'] * 1e3:.4g}",
            f"{row['planned_seconds'] * 1e3:.3g}",
            f"{row['peak_bytes'] / 2**20:.4g}",
            f"{row['planned_bytes'] / 2**20:.4g}",
        )
    Console().print(table)
