"""Carry out a planned merge in slabs: bounded memory, resumable after a kill, published in one rename.

Everything is computed from a slab of a few million weights of the base and of each model. Progress is
written to a journal beside the output; a merge that was killed goes on from there and ends in the same
bytes. The output takes its name only when it is complete.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.files import sync_folder, write_text
from manyhead.merging.checkpoint import as_bytes
from manyhead.merging.masks import pack
from manyhead.merging.preflight import Plan
from manyhead.merging.ranks import Rank, passes
from manyhead.merging.ties import elect, trim_rank
from manyhead.merging.vectors import total

JOURNAL_EVERY = 256 * 2**20  # bytes written between two entries of the journal
Progress = Callable[[str, int, int], None]  # stage, slabs done, slabs in all
Slab = tuple[str, int, int]  # tensor, first weight, last weight + 1


def part(out: Path) -> Path:
    """The unfinished output of a merge into `out`."""
    return out.with_name(f".{out.stem}.part.safetensors")


def journal(out: Path) -> Path:
    """The journal of a merge into `out`."""
    return out.with_name(f".{out.stem}.journal.json")


class Stream:
    """One merge under way.

    Args:
        plan: what `preflight` returned.
        progress: called after every slab with the stage, the slabs done and the slabs in all.
    """

    def __init__(self, plan: Plan, progress: Progress | None = None) -> None:
        self.plan = plan
        self.progress = progress or (lambda stage, done, of: None)
        self.fingerprints = {"": plan.base.fingerprint()}
        self.fingerprints |= {name: model.fingerprint() for name, model in plan.models.items()}
        task = {
            "out": str(plan.out.resolve()),
            "recipe": plan.recipe.as_dict(),
            "inputs": self.fingerprints,
            "dtype": str(plan.dtype),
        }
        # as JSON returns it, so that it can be compared with what a journal holds
        self.task = json.loads(json.dumps(task))
        self.state: dict[str, Any] = {
            "task": self.task,
            "slab": plan.slab,
            "thresholds": None,
            "majority": None,
            "done": 0,
            "used": {},
            "histogram": [0] * (len(plan.models) + 1),
        }
        self.resumed = self._resume()
        self.copied, self.averaged = frozenset(plan.copied), frozenset(plan.averaged)

    def _resume(self) -> bool:
        try:
            state = json.loads(journal(self.plan.out).read_text("utf-8"))
            fits = state["task"] == self.task and part(self.plan.out).stat().st_size == self.plan.layout.size
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if fits and state["slab"] <= self.plan.slab:
            self.state = state  # a smaller slab also keeps to this run's memory
            return True
        return False

    def _keep(self) -> None:
        write_text(journal(self.plan.out), json.dumps(self.state))

    def _slabs(self, names: list[str]) -> Iterator[Slab]:
        step = self.state["slab"]
        for name in names:
            size = self.plan.base.entries[name].size
            for start in range(0, max(size, 1), step):
                yield name, start, min(start + step, size)

    def _vectors(self, slab: Slab) -> tuple[Tensor, list[Tensor]]:
        """The base's weights (n,) and every task vector (n,) of one slab, in the dtype of the arithmetic."""
        name, start, stop = slab
        base = self.plan.base.read(name, start, stop).to(self.plan.compute)
        vectors = []
        for model in self.plan.models.values():
            vector = model.read(name, start, stop).to(self.plan.compute) - base
            if not torch.isfinite(vector.sum()) and not torch.isfinite(vector).all():
                at_fault = model if torch.isfinite(base).all() else self.plan.base
                raise InputError(f"{at_fault.path}: tensor {name!r} holds NaN or infinity")
            vectors.append(vector)
        return base, vectors

    def _pass(self, stage: str) -> Iterator[list[Tensor]]:
        slabs = list(self._slabs(self.plan.merged))
        for done, slab in enumerate(slabs, 1):
            yield self._vectors(slab)[1]
            self.progress(stage, done, len(slabs))

    def _thresholds(self) -> list[float]:
        """Smallest magnitude that trimming keeps of every task vector, over all of its weights."""
        recipe, compute = self.plan.recipe, self.plan.compute
        rank = trim_rank(self.plan.weights, recipe.kept, recipe.exact)
        if rank == 0:
            return [0.0] * len(self.plan.models)
        ranks = [Rank(rank, compute) for _ in self.plan.models]
        for number in range(passes(compute)):
            for vectors in self._pass(f"trim {number + 1}/{passes(compute)}"):
                for found, vector in zip(ranks, vectors, strict=True):
                    found.see(vector)
            for found in ranks:
                found.close()
        return [found.value for found in ranks]

    def _majority(self) -> float:
        """Sign of the sum of all elected signs, for the weights whose sum cancels."""
        sum_of_signs = 0
        for vectors in self._pass("signs"):
            trimmed = [
                torch.where(vector.abs() >= least, vector, 0.0)
                for vector, least in zip(vectors, self.state["thresholds"], strict=True)
            ]
            sum_of_signs += int(elect(trimmed, 0.0).sum(dtype=torch.int64))
        return float((sum_of_signs > 0) - (sum_of_signs < 0))

    def run(self) -> dict[str, Any]:
        """Write the whole output beside its final name; return the statistics of the masks.

        Raises:
            InputError: if a model holds NaN, or a task's mask marks no weight.
        """
        recipe, out = self.plan.recipe, self.plan.out
        if not self.resumed:
            out.parent.mkdir(parents=True, exist_ok=True)
            with part(out).open("wb") as stream:
                stream.write(self.plan.layout.header)
                stream.truncate(self.plan.layout.size)
            self._keep()
        if self.state["thresholds"] is None:
            trims = recipe.kept < 100 and recipe.method != "average"
            self.state["thresholds"] = self._thresholds() if trims else [0.0] * len(self.plan.models)
            self._keep()
        if self.state["majority"] is None:
            self.state["majority"] = self._majority() if recipe.elects else 0.0
            self._keep()
        self._write()
        used = self.state["used"]
        for number, task in enumerate(self.plan.models):
            if used and not any(counts[number] for counts in used.values()):
                raise InputError(
                    f"the mask of task {task!r} is empty: no weight outlives its threshold; "
                    "lower its lambda, or drop a model that equals the base"
                )
        return {"used": used, "histogram": self.state["histogram"]}

    def _write(self) -> None:
        names = self.plan.merged + self.plan.averaged + self.plan.copied
        slabs = list(self._slabs(names))
        written = 0
        with part(self.plan.out).open("r+b") as stream:
            for number, slab in enumerate(slabs):
                if number < self.state["done"]:
                    continue
                written += self._write_slab(stream.fileno(), slab)
                self.state["done"] = number + 1
                if written >= JOURNAL_EVERY:
                    os.fsync(stream.fileno())
                    self._keep()
                    written = 0
                self.progress("merge", number + 1, len(slabs))
            os.fsync(stream.fileno())
        self._keep()

    def _write_slab(self, file: int, slab: Slab) -> int:
        name, start, stop = slab
        plan, offsets = self.plan, self.plan.layout.offsets
        prefix = "base:" if plan.recipe.masked else ""

        def put(tensor: str, values: Tensor, first: int) -> int:
            view, position = as_bytes(values), offsets[tensor] + first * values.dtype.itemsize
            count = len(view)
            while view:
                done = os.pwrite(file, view, position)
                view, position = view[done:], position + done
            return count

        if name in self.copied:
            return put(prefix + name, plan.base.read(name, start, stop), start)
        base, vectors = self._vectors(slab)
        if name in self.averaged:
            return put(name, (base + total(vectors) / len(vectors)).to(plan.stored(name)), start)
        merged, masks = plan.recipe.merge(vectors, self.state["thresholds"], self.state["majority"])
        self._count(name, masks)
        if not plan.recipe.masked:
            return put(name, (base + plan.recipe.scale * merged).to(plan.stored(name)), start)
        count = put(f"base:{name}", plan.base.read(name, start, stop), start)
        count += put(f"vector:{name}", merged.to(plan.stored(name)), start)
        for task, mask in zip(plan.models, masks, strict=True):
            count += put(f"mask:{task}:{name}", pack(mask), start // 8)  # slabs are multiples of 8
        return count

    def _count(self, name: str, masks: list[Tensor]) -> None:
        if not masks:
            return
        before = self.state["used"].get(name, [0] * len(masks))
        self.state["used"][name] = [b + int(mask.sum()) for b, mask in zip(before, masks, strict=True)]
        uses = torch.zeros(masks[0].shape, dtype=torch.uint8 if len(masks) < 256 else torch.int32)
        for mask in masks:
            uses += mask
        found = torch.bincount(uses, minlength=len(masks) + 1).tolist()
        self.state["histogram"] = [b + f for b, f in zip(self.state["histogram"], found, strict=True)]

    def publish(self) -> None:
        """Give the complete output its name and drop the journal."""
        os.replace(part(self.plan.out), self.plan.out)
        sync_folder(self.plan.out.resolve().parent)
        journal(self.plan.out).unlink(missing_ok=True)
