"""Masked archives: one base, one merged vector and a bit mask a task in one safetensors file.

Wang et al., 2024, arXiv 2405.07813, section 4.3: T models are kept at the price of two and T bits a
weight, and `theta_0 + m_t * tau` rebuilds the model of task t.
"""

from pathlib import Path

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.files import atomic
from manyhead.merging.checkpoint import Checkpoint, as_bytes, layout
from manyhead.merging.masks import unpack

STEP = 2**20  # weights rebuilt at a time, a multiple of 8


class Archive:
    """A file that the methods 'tall-masks' and 'magnitude-masks' wrote.

    Args:
        path: the `.safetensors` file.

    Raises:
        InputError: if it is not such an archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.checkpoint = Checkpoint(path)
        entries = self.checkpoint.entries
        self.names = sorted(name[5:] for name in entries if name.startswith("base:"))
        masks = [name.split(":", 2) for name in entries if name.startswith("mask:")]
        self.tasks = sorted({task for _, task, _ in masks})
        self.merged = frozenset(name for _, _, name in masks)
        if not self.names or not self.tasks:
            raise InputError(
                f"{path} is no archive of masks; `manyhead merge --method tall-masks` writes one"
            )

    def read(self, task: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rebuild weights `start` (a multiple of 8) to `stop` of one tensor of a task's model, flat."""
        entry = self.checkpoint.entries[f"base:{name}"]
        stop = entry.size if stop is None else stop
        base = self.checkpoint.read(f"base:{name}", start, stop)
        if name not in self.merged:
            return base
        compute = torch.float64 if entry.dtype == torch.float64 else torch.float32
        vector = self.checkpoint.read(f"vector:{name}", start, stop).to(compute)
        packed = self.checkpoint.read(f"mask:{task}:{name}", start // 8, -(-stop // 8))
        return (base.to(compute) + unpack(packed, stop - start) * vector).to(entry.dtype)

    def require(self, task: str) -> None:
        """Raise InputError if there is no such task."""
        if task not in self.tasks:
            raise InputError(
                f"{self.checkpoint.path} has no task {task!r}; its tasks are {', '.join(self.tasks)}"
            )

    def state_dict(self, task: str) -> dict[str, Tensor]:
        """The whole model of one task in memory."""
        self.require(task)
        entries = self.checkpoint.entries
        return {name: self.read(task, name).reshape(entries[f"base:{name}"].shape) for name in self.names}

    def extract(self, task: str, out: str | Path) -> None:
        """Write the model of one task as a safetensors file, a slab at a time."""
        self.require(task)
        entries = {name: self.checkpoint.entries[f"base:{name}"] for name in self.names}
        plan = layout({name: (e.dtype, e.shape) for name, e in entries.items()}, {"format": "pt"})
        with atomic(out) as stream:
            stream.write(plan.header)
            for name in plan.offsets:  # in the order of the file
                for start in range(0, entries[name].size, STEP):
                    stop = min(start + STEP, entries[name].size)
                    stream.write(as_bytes(self.read(task, name, start, stop)))
