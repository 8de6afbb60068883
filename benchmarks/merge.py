"""Merge synthetic checkpoints of a billion weights: seconds, peak memory, and the same bytes after a SIGKILL.

Every method runs through `manyhead merge` in a process of its own under `--max-memory`. The first method
is run once undisturbed and once more with a SIGKILL at half of its output and a second start. Run:

    python benchmarks/merge.py [--weights 1000000000] [--models 5] [--methods consensus ties] [--json FILE]
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from manyhead.files import write_text
from manyhead.merging.checkpoint import as_bytes, layout
from manyhead.merging.preflight import parse_bytes
from manyhead.merging.stream import journal

PIECE = 4_194_304
LARGEST = 50_000_000  # weights of one tensor, about an embedding of 32,000 tokens times 1,600


def write_model(path: Path, weights: int, seed: int) -> None:
    """Write a random bfloat16 checkpoint: a base, or the base plus a small step.

    One random piece is written over and over: time and memory do not depend on the values.
    """
    sizes = [LARGEST] * (weights // LARGEST) + ([weights % LARGEST] if weights % LARGEST else [])
    plan = layout({f"layer.{n:03d}": (torch.bfloat16, (size,)) for n, size in enumerate(sizes)}, {})
    piece = torch.rand(PIECE, generator=torch.Generator().manual_seed(0)) - 0.5
    if seed:
        piece += 0.05 * (torch.rand(PIECE, generator=torch.Generator().manual_seed(seed)) - 0.5)
    values = as_bytes(piece.bfloat16())
    with path.open("wb") as stream:
        stream.write(plan.header)
        for left in range(weights, 0, -PIECE):
            stream.write(values[: 2 * min(left, PIECE)])


def start(folder: Path, models: int, method: str, bound: str, out: Path) -> "subprocess.Popen[str]":
    named = [word for n in range(1, models + 1) for word in ("--model", str(folder / f"task{n}.safetensors"))]
    command = [sys.executable, "-m", "manyhead.cli", "merge", "--base", str(folder / "base.safetensors")]
    command += [*named, "--method", method, "--out", str(out), "--max-memory", bound, "--json", "--force"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the merge ended with exit code {process.returncode}")
    receipt: dict[str, Any] = json.loads(text)
    return receipt


def row(method: str, receipt: dict[str, Any], note: str = "") -> dict[str, Any]:
    return {
        "method": method + note,
        "seconds": receipt["run"]["seconds"],
        "peak_MiB": round(receipt["run"]["peak_memory_bytes"] / 2**20),
        "output_bytes": receipt["output"]["bytes"],
        "sha256": receipt["output"]["sha256"],
        "resumed": receipt["run"]["resumed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=int, default=1_000_000_000)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["consensus", "ties"])
    parser.add_argument("--max-memory", default="2GiB")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(wanted.models + 1):
            file = folder / (f"task{number}.safetensors" if number else "base.safetensors")
            write_model(file, wanted.weights, number)
        out, rows = folder / "out.safetensors", []
        for method in wanted.methods:
            whole = row(method, finish(start(folder, wanted.models, method, wanted.max_memory, out)))
            rows.append(whole)
            print(whole, flush=True)
        method = wanted.methods[0]
        out.unlink()
        process = start(folder, wanted.models, method, wanted.max_memory, out)
        half = wanted.weights // 2
        while process.poll() is None:  # the journal tells how many slabs of the output are safe
            time.sleep(0.05)
            if journal(out).exists():
                state = json.loads(journal(out).read_text("utf-8"))
                if state["done"] * state["slab"] >= half:
                    os.kill(process.pid, signal.SIGKILL)
                    break
        killed = process.wait() == -signal.SIGKILL and not out.exists()
        rows.append(
            row(
                method,
                finish(start(folder, wanted.models, method, wanted.max_memory, out)),
                ", second start after SIGKILL at half",
            )
        )
        print(rows[-1], flush=True)
    result = {
        "command": f"python benchmarks/merge.py --weights {wanted.weights} --models {wanted.models} "
        f"--methods {' '.join(wanted.methods)}",
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {torch.get_num_threads()} threads",
        "max_memory": wanted.max_memory,
        "within_max_memory": all(
            found["peak_MiB"] * 2**20 <= parse_bytes(wanted.max_memory) for found in rows
        ),
        "killed": killed,
        "same_bytes_after_kill": rows[-1]["sha256"] == rows[0]["sha256"],
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    if wanted.json:
        write_text(wanted.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
