"""The plan's bytes are those the allocator hands out, and the command that compares kernels works."""

import json
from pathlib import Path

import pytest
import torch

from manyhead.attention import attend, measure, plan
from manyhead.errors import InputError
from manyhead.kernels.bench import parse_grid, run_bench
from manyhead.kernels.measure import peak_bytes
from manyhead.pattern import Blocks, Causal, Everything, GridPartition, Pattern, Prefix, Window
from manyhead.pattern.parse import parse_pattern


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("pattern", "grid", "kernel"),
    [
        (Window((5, 5)), (30, 32), "windows"),
        (Window((7, 3), (3, 1)), (29, 33), "windows"),
        (Window(64), (1000,), "windows"),
        (Causal((True, False)), (24, 24), "windows"),
        (Window((5, 5)), (24, 30), "sdpa"),
        (Everything(), (700,), "sdpa"),
        (Blocks((4, 8)), (24, 32), "blocks"),
        (GridPartition((4, 4)), (24, 32), "blocks"),
    ],
)
def test_planned_bytes_hold_within_ten_percent(
    pattern: Pattern, grid: tuple[int, ...], kernel: str, grad: bool
) -> None:
    q, k, v, upstream = (torch.randn(1, *grid, 2, 32) for _ in range(4))
    inputs = [x.requires_grad_(grad) for x in (q, k, v)]

    def run() -> object:
        out = attend(*inputs, pattern, kernel=kernel)
        return torch.autograd.grad(out, inputs, upstream) if grad else out

    planned = plan(*inputs, pattern, kernel=kernel).peak_bytes
    assert planned / peak_bytes(run) == pytest.approx(1.0, abs=0.1)


def test_memory_does_not_grow_with_the_window() -> None:
    peaks = []
    for size in (5, 31):
        inputs = [torch.randn(1, 64, 64, 2, 16, requires_grad=True) for _ in range(3)]
        peaks.append(plan(*inputs, Window((size, size)), kernel="windows").peak_bytes)
    assert peaks[1] < 2 * peaks[0]


def test_measured_times_replace_estimates_for_calls_of_the_same_kind() -> None:
    q, k, v = (torch.randn(1, 18, 18, 2, 8, requires_grad=True) for _ in range(3))
    pattern = Window((3, 3), stride=(2, 1))
    able = [name for name in plan(q, k, v, pattern).seconds if name != "reference"]
    assert len(able) > 1
    before = plan(q, k, v, pattern).kernel
    slowest_first = iter(range(1000))
    ticks = {name: 10.0 if name == before else 1.0 for name in able}
    told: list[float] = [0.0]

    def clock() -> float:  # every second call ends a run, three runs to a kernel
        number = next(slowest_first)
        told[0] += ticks[able[number // 6]] if number % 2 else 0.0
        return told[0]

    found = measure(q, k, v, pattern, repeats=2, clock=clock)
    assert found == ticks
    assert plan(q, k, v, pattern).seconds == found
    assert plan(q, k, v, pattern).kernel != before
    assert plan(q, k, v, Window((3, 3), stride=(1, 2))).seconds != found
    with pytest.raises(InputError, match="repeats is at least 1, got 0"):
        measure(q, k, v, pattern, repeats=0)


def test_patterns_from_text() -> None:
    assert parse_pattern("Window((7, 7), dilation=2) & Causal((True, False))") == Window(
        (7, 7), dilation=2
    ) & Causal((True, False))
    assert parse_pattern("Everything | Prefix(2)") == Everything() | Prefix(2)
    for wrong in (
        "Window(",
        "__import__('os')",
        "Window(open('x'))",
        "1 + 1",
        "Window(7).mask(8)",
        "Causal(1, 2, 3)",
    ):
        with pytest.raises(InputError):
            parse_pattern(wrong)


def test_the_bench_command_writes_a_table_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"heads": 1, "head_dim": 8, "batch": 1, "backward": True, "repeats": 1}
    run_bench("8x8", ["Window(3)", "Blocks(4)"], "all", as_json=True, output=str(tmp_path), **options)  # type: ignore[arg-type]
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 8
    assert sum("refusal" in row for row in rows) == 1
    assert all(row["peak_bytes"] > 0 for row in rows if "refusal" not in row)
    assert (tmp_path / "attention.json").exists()
    assert "plotly" in (tmp_path / "attention.html").read_text()
    run_bench("8x8", ["Window(3)"], "windows", as_json=False, output=None, **options)  # type: ignore[arg-type]
    assert "windows" in capsys.readouterr().out
    assert parse_grid("4X5") == (4, 5)
    for grid, kernels, message in (
        ("4y", "all", "--grid"),
        ("0x4", "all", "--grid"),
        ("4x4", "fast", "--kernels"),
    ):
        with pytest.raises(InputError, match=message):
            run_bench(grid, ["Causal()"], kernels, as_json=False, output=None, **options)  # type: ignore[arg-type]
