"""Preflight: everything that can doom a merge, found from headers alone before a weight is read."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from manyhead.errors import InputError
from manyhead.merging.checkpoint import Checkpoint, Layout, layout
from manyhead.merging.recipe import Recipe

MIB = 2**20
SLAB = 2**18  # weights worked on at a time: what stays in the cache is fastest
SMALLEST_SLAB = 2**14
STATISTICS = ("running_mean", "running_var")  # of BatchNorm: no weights, so they are averaged
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Plan:
    """A merge that can be carried out.

    Args:
        base: the common pre-trained checkpoint.
        models: fine-tuned checkpoints by task name.
        recipe: how they are merged.
        out: the file to write.
        merged: names of the tensors that are merged, sorted.
        averaged: names of BatchNorm statistics, which are averaged over the models.
        copied: names of the base's tensors that stay as they are.
        compute: dtype of the arithmetic.
        slab: weights worked on at a time.
        layout: the output file's header and places.
        warnings: what a reader of the result must know, in sentences.
    """

    base: Checkpoint
    models: dict[str, Checkpoint]
    recipe: Recipe
    out: Path
    merged: list[str]
    averaged: list[str]
    copied: list[str]
    compute: torch.dtype
    dtype: torch.dtype | None
    slab: int
    layout: Layout
    warnings: tuple[str, ...]

    @property
    def weights(self) -> int:
        """P, the number of merged weights."""
        return sum(self.base.entries[name].size for name in self.merged)

    @property
    def frozen(self) -> int:
        """F, the number of weights copied from the base."""
        return sum(self.base.entries[name].size for name in self.copied)

    def stored(self, name: str) -> torch.dtype:
        """Dtype of a merged tensor in the output."""
        return self.dtype or self.base.entries[name].dtype


def parse_bytes(text: str | int) -> int:
    """Turn '2GiB', '800M' or a number into bytes; units are powers of 1024.

    Raises:
        InputError: if it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", str(text).upper())
    if not match:
        raise InputError(f"a size is a number with K, M, G or T, such as 2GiB; got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def resident(field: str = "VmRSS") -> int:
    """Bytes of memory that this process holds now ('VmRSS') or has held at most ('VmHWM')."""
    try:
        with open("/proc/self/status", encoding="utf-8") as stream:
            lines = dict(line.split(":", 1) for line in stream)
        return int(lines[field].split()[0]) * 1024
    except (OSError, KeyError):  # no /proc: what Python and PyTorch take by themselves
        return 300 * MIB


def preflight(
    base: str | Path,
    models: Mapping[str, str | Path],
    recipe: Recipe,
    out: str | Path,
    *,
    max_memory: str | int | None = None,
    dtype: torch.dtype | None = None,
    cast: bool = False,
    replace_out: bool = False,
) -> Plan:
    """Check a merge from headers alone and plan it.

    Args:
        base: checkpoint of the pre-trained model.
        models: checkpoints of the fine-tuned models by task name.
        recipe: how to merge.
        out: the `.safetensors` file to write.
        max_memory: bytes, or text such as '2GiB', that the process may hold; None for no bound.
        dtype: dtype of the merged tensors in the output; None keeps the base's.
        cast: accept fine-tuned tensors of another dtype than the base's.
        replace_out: accept that `out` exists.

    Raises:
        InputError: for anything that would make the merge fail, with the file and tensor at fault.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"the output is a .safetensors file, got {out}")
    if out.exists() and not replace_out:
        raise InputError(f"{out} exists; name another output or ask to replace it")
    if not models:
        raise InputError("merging needs at least one fine-tuned model, got none")
    recipe.check(len(models))
    start, tuned = Checkpoint(base), {name: Checkpoint(path) for name, path in models.items()}
    excluded = {
        name for name in start.entries if any(fnmatchcase(name, pattern) for pattern in recipe.exclude)
    }
    touched = [
        name
        for name in sorted(start.entries)
        if name not in excluded and start.entries[name].dtype.is_floating_point
    ]
    if not touched:
        raise InputError(
            f"{start.path}: no floating-point tensor is left to merge after excluding {list(recipe.exclude)}"
        )
    for model in tuned.values():
        _compare(start, model, touched, recipe, cast)
    _different_files(start, tuned)
    averaged = [name for name in touched if name.endswith(STATISTICS) and not recipe.masked]
    merged = [name for name in touched if name not in averaged]
    if not merged:
        raise InputError(f"{start.path}: only BatchNorm statistics are left to merge")
    copied = [name for name in sorted(start.entries) if name not in touched]
    warnings = []
    if any(name.endswith(STATISTICS) for name in touched):
        how = "averaged over the models" if averaged else "kept for each task by its mask"
        warnings.append(
            f"BatchNorm statistics are {how}; run some training data through the result to recompute them"
        )
    wide = any(start.entries[name].dtype == torch.float64 for name in merged)
    compute = torch.float64 if wide else torch.float32
    metadata = {"format": "pt", "manyhead": _describe(recipe, list(tuned))}
    plan = Plan(
        base=start,
        models=tuned,
        recipe=recipe,
        out=out,
        merged=merged,
        averaged=averaged,
        copied=copied,
        compute=compute,
        dtype=dtype,
        slab=_slab(len(tuned), compute.itemsize, max_memory),
        layout=layout({}, metadata),
        warnings=tuple(warnings),
    )
    plan = replace(plan, layout=layout(_tensors(plan), metadata))
    _room(plan)
    return plan


def _describe(recipe: Recipe, tasks: list[str]) -> str:
    import json

    return json.dumps({"recipe": recipe.as_dict(), "tasks": tasks}, sort_keys=True)


def _compare(base: Checkpoint, model: Checkpoint, touched: list[str], recipe: Recipe, cast: bool) -> None:
    absent = [name for name in touched if name not in model.entries]
    if absent:
        raise InputError(
            f"{model.path} lacks {len(absent)} of {len(touched)} tensors of the base, "
            f"the first is {absent[0]!r}; leave out what is not common with --exclude"
        )
    extra = [
        name
        for name in sorted(model.entries)
        if name not in base.entries and not any(fnmatchcase(name, pattern) for pattern in recipe.exclude)
    ]
    if extra:
        raise InputError(
            f"{model.path} has {len(extra)} tensors that the base lacks, the first is {extra[0]!r}; "
            "leave out what is not common with --exclude"
        )
    for name in touched:
        ours, theirs = base.entries[name], model.entries[name]
        if ours.shape != theirs.shape:
            raise InputError(
                f"tensor {name!r} is {list(theirs.shape)} in {model.path} and {list(ours.shape)} in the base"
            )
        if ours.dtype != theirs.dtype and not (cast and theirs.dtype.is_floating_point):
            raise InputError(
                f"tensor {name!r} is {theirs.dtype} in {model.path} and {ours.dtype} in the base; "
                "accept floating-point differences with --cast"
            )


def _different_files(base: Checkpoint, models: Mapping[str, Checkpoint]) -> None:
    known = {tuple(file.resolve() for file in base.files): "the base"}
    for task, model in models.items():
        files = tuple(file.resolve() for file in model.files)
        if files in known:
            raise InputError(f"model {task!r} and {known[files]} are the same file, {model.path}")
        known[files] = f"model {task!r}"


def _slab(tasks: int, width: int, max_memory: str | int | None) -> int:
    """Weights that fit: the vectors, as many trimmed, masks, and the arithmetic's own intermediates."""
    if max_memory is None:
        return SLAB
    each = width * (2 * tasks + 10) + 12 * tasks + 32
    room = parse_bytes(max_memory) - resident() - 64 * MIB  # libraries grow a little when first used
    slab = min(SLAB, room // each) // 8 * 8
    if slab < SMALLEST_SLAB:
        least = (resident() + 64 * MIB + SMALLEST_SLAB * each) // MIB + 1
        raise InputError(f"max memory {max_memory} is too small: this merge needs at least {least} MiB")
    return slab


def _tensors(plan: Plan) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Tensors of the output: a model, or `base:`, `vector:` and `mask:<task>:` for masks."""
    entries = plan.base.entries
    if not plan.recipe.masked:
        touched = {name: (plan.stored(name), entries[name].shape) for name in plan.merged + plan.averaged}
        return touched | {name: (entries[name].dtype, entries[name].shape) for name in plan.copied}
    tensors = {f"base:{name}": (entry.dtype, entry.shape) for name, entry in entries.items()}
    for name in plan.merged:
        tensors[f"vector:{name}"] = (plan.stored(name), entries[name].shape)
        for task in plan.models:
            tensors[f"mask:{task}:{name}"] = (torch.uint8, (-(-entries[name].size // 8),))
    return tensors


def _room(plan: Plan) -> None:
    folder = plan.out.resolve().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < plan.layout.size:
        raise InputError(
            f"{plan.out} needs {plan.layout.size / MIB:.0f} MiB and its disk has {free / MIB:.0f} MiB free"
        )
