"""A merge with a receipt: what went in, how it was merged, what came out and what it did to each task."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

import torch

from manyhead import __version__
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.merging.archive import Archive
from manyhead.merging.masks import storage_bits
from manyhead.merging.preflight import Plan, resident
from manyhead.merging.stream import Progress, Stream, part
from manyhead.system import interval

# the score of every test sample of a task under the model in a file; higher is better
Evaluate = Callable[[Path, str], Sequence[float]]


def receipt_path(out: Path) -> Path:
    """Where the receipt of a merge into `out` lies."""
    return out.with_name(f"{out.stem}.receipt.json")


def digest(file: Path, stop: Event | None = None) -> str:
    """SHA-256 of a file, read in pieces."""
    sha = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while piece := stream.read(2**20):
            sha.update(piece)
            if stop is not None and stop.is_set():
                break
    return sha.hexdigest()


def merge(
    plan: Plan,
    *,
    evaluate: Evaluate | None = None,
    publish_worse: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Carry out a plan, evaluate the result, publish it and its receipt.

    Args:
        plan: what `preflight` returned.
        evaluate: scores of every sample of a task under a model file; with it the receipt has each
            task before and after.
        publish_worse: publish even if the merged model's mean over the tasks is below that of the best
            single model.
        progress: called after every slab with the stage, the slabs done and the slabs in all.

    Returns:
        The receipt, as it is written beside the output.

    Raises:
        InputError: if an input holds NaN or changes meanwhile, a mask is empty, or the merged model is
            worse than the best single one.
    """
    started = time.perf_counter()
    stream = Stream(plan, progress)
    inputs = {"base": plan.base, **{f"model {name}": model for name, model in plan.models.items()}}
    stop = Event()
    with ThreadPoolExecutor(1) as background:  # hashing is I/O: it runs beside the arithmetic
        hashes = {
            name: {str(file): background.submit(digest, file, stop) for file in checkpoint.files}
            for name, checkpoint in inputs.items()
        }
        try:
            statistics = stream.run()
        except BaseException:
            stop.set()
            raise
        sums = {name: {f: found.result() for f, found in files.items()} for name, files in hashes.items()}
    for name, checkpoint in inputs.items():
        key = name.removeprefix("model ") if name != "base" else ""
        if checkpoint.fingerprint() != stream.fingerprints[key]:
            raise InputError(f"{checkpoint.path} was changed while it was being merged; run the merge again")
    finished = part(plan.out)
    receipt: dict[str, Any] = {
        "recipe": plan.recipe.as_dict(),
        "tasks": list(plan.models),
        "inputs": sums,
        "output": {"file": plan.out.name, "bytes": finished.stat().st_size, "sha256": digest(finished)},
        "weights": {"merged": plan.weights, "averaged": len(plan.averaged), "frozen": plan.frozen},
        "storage": _storage(plan, finished),
        "warnings": list(plan.warnings),
    }
    if statistics["used"]:
        receipt["masks"] = _masks(plan, statistics)
    if evaluate is not None:
        receipt["tasks_before_and_after"] = _evaluate(plan, finished, evaluate, publish_worse)
    receipt["run"] = {
        "seconds": round(time.perf_counter() - started, 3),
        "resumed": stream.resumed,
        "slab": stream.state["slab"],
        "peak_memory_bytes": resident("VmHWM"),
        "manyhead": __version__,
        "torch": torch.__version__,
    }
    write_text(receipt_path(plan.out), json.dumps(receipt, indent=1) + "\n")
    stream.publish()
    return receipt


def _storage(plan: Plan, finished: Path) -> dict[str, Any]:
    """Measured bytes, beside what the paper's formula gives for this width of weights."""
    width = plan.base.entries[plan.merged[0]].dtype.itemsize * 8
    formula = storage_bits(plan.weights, plan.frozen, len(plan.models), width)
    individual = sum(file.stat().st_size for model in plan.models.values() for file in model.files)
    return {
        "individual_bytes": individual,
        "output_bytes": finished.stat().st_size,
        "ratio": individual / finished.stat().st_size,
        "formula_bits": formula,
    }


def _masks(plan: Plan, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """How dense the masks are, by task and by tensor, and how many weights 0, 1, ... tasks use."""
    used: Mapping[str, list[int]] = statistics["used"]
    size = {name: plan.base.entries[name].size for name in used}
    names = list(plan.models)
    return {
        "density": {t: sum(c[i] for c in used.values()) / plan.weights for i, t in enumerate(names)},
        "weights_used_by": statistics["histogram"],
        "density_by_tensor": {
            name: [count / max(size[name], 1) for count in counts] for name, counts in used.items()
        },
    }


def _evaluate(plan: Plan, finished: Path, evaluate: Evaluate, publish_worse: bool) -> dict[str, Any]:
    tasks = list(plan.models)

    def scores(path: Path, task: str) -> list[float]:
        values = [float(score) for score in evaluate(path, task)]
        if not values:
            raise InputError(f"the evaluation of task {task!r} returned no scores")
        return values

    table, single = {}, {task: [0.0] * len(tasks) for task in tasks}
    after: list[float] = []
    for column, task in enumerate(tasks):
        own = scores(plan.models[task].path, task)
        if plan.recipe.masked:
            rebuilt = finished.with_name(f".{plan.out.stem}.task.safetensors")
            try:
                Archive(finished).extract(task, rebuilt)
                merged = scores(rebuilt, task)
            finally:
                rebuilt.unlink(missing_ok=True)
        else:
            merged = scores(finished, task)
            for name, model in plan.models.items():
                found = own if name == task else scores(model.path, task)
                single[name][column] = fmean(found)
        if len(own) != len(merged):
            raise InputError(
                f"the evaluation of task {task!r} scored {len(own)} and then {len(merged)} samples"
            )
        after.append(fmean(merged))
        differences = [new - old for new, old in zip(merged, own, strict=True)]
        table[task] = {
            "samples": len(own),
            "base": fmean(scores(plan.base.path, task)),
            "fine_tuned": fmean(own),
            "merged": after[-1],
            "difference": fmean(differences),
            "interval_95": interval(differences),
        }
    if not plan.recipe.masked and not publish_worse:
        best = max(single, key=lambda name: fmean(single[name]))
        if fmean(after) < fmean(single[best]):
            raise InputError(
                f"the merged model scores {fmean(after):.4g} over the {len(tasks)} tasks, the single model "
                f"{best!r} {fmean(single[best]):.4g}; not published "
                "(--publish-worse publishes it all the same)"
            )
    return table


def load_evaluate(path: str | Path) -> Evaluate:
    """Load the function `evaluate(path, task)` from a Python file.

    Raises:
        InputError: if there is no such file or function.
    """
    import runpy

    if not os.path.isfile(path):
        raise InputError(f"there is no evaluation file {path}")
    found = runpy.run_path(str(path)).get("evaluate")
    if not callable(found):
        raise InputError(f"{path} has no function evaluate(path, task) that returns a score a sample")
    evaluate: Evaluate = found
    return evaluate
