"""TaskExpert: shared experts, gates of each task, and a memory of each task that grows with depth.

Ye and Xu, 'TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial
Mixture-of-Experts', 2023, arXiv 2307.15324. No code was published; choices that the paper leaves open are
named in the docstrings.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from manyhead.errors import InputError

Gate = Literal["sample", "spatial", "static"]
Maps = dict[str, Tensor]


def shared_expert(inputs: int, outputs: int) -> nn.Sequential:
    """One expert: a pointwise map to the decoder's width, then a look at the neighbours."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
    )


class TaskGate(nn.Module):
    """Weights of the experts for one task, even at the start.

    Args:
        channels: channels of the backbone's map.
        choices: number of experts, with the memory's.
        kind: 'sample' gives one weight for each image, 'spatial' one for each pixel, 'static' a learned
            vector that no image changes.
    """

    def __init__(self, channels: int, choices: int, kind: Gate) -> None:
        super().__init__()
        self.kind = kind
        if kind == "static":
            self.scores = nn.Parameter(torch.zeros(choices))
            return
        hidden = max(1, channels // 4)
        self.norm = nn.LayerNorm(channels)
        self.inner, self.outer = nn.Linear(channels, hidden), nn.Linear(hidden, choices)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Gates (batch, choices, height or 1, width or 1) of a map (batch, channels, height, width)."""
        if self.kind == "static":
            return self.scores.softmax(0)[None, :, None, None].expand(len(x), -1, 1, 1)
        seen = x if self.kind == "spatial" else x.mean((2, 3), keepdim=True)
        scores = self.outer(nn.functional.gelu(self.inner(self.norm(seen.movedim(1, -1)))))
        return scores.softmax(-1).movedim(-1, 1)  # type: ignore[no-any-return]


class MemorialMixture(nn.Module):
    """One stage: experts that all tasks share, and for each task a gate, a memory to read and to write.

    Args:
        channels: channels of the backbone's map.
        width: channels of the decoder.
        tasks: names of the tasks.
        experts: number of shared experts.
        gate: kind of the gates.
        read: whether the memory is read as one more expert; the first stage has nothing to read.
        write: 'add' writes onto the memory, 'replace' forgets what was there.

    Raises:
        InputError: if there is no task or expert, or a name is unknown.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        tasks: Sequence[str],
        experts: int = 5,
        gate: Gate = "sample",
        read: bool = True,
        write: Literal["add", "replace"] = "add",
    ) -> None:
        super().__init__()
        if not tasks or len(set(tasks)) != len(tasks):
            raise InputError(f"tasks need different names, at least one; got {list(tasks)}")
        if experts < 1:
            raise InputError(f"a mixture needs at least one expert, got {experts}")
        if gate not in ("sample", "spatial", "static") or write not in ("add", "replace"):
            raise InputError(
                "gate is 'sample', 'spatial' or 'static' and write 'add' or 'replace'; "
                f"got {gate!r}, {write!r}"
            )
        self.write_kind, self.reads = write, read
        self.experts = nn.ModuleList(shared_expert(channels, width) for _ in range(experts))
        self.gates = nn.ModuleDict({task: TaskGate(channels, experts + read, gate) for task in tasks})
        self.read = nn.ModuleDict(
            {task: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)) for task in tasks}
            if read
            else {}
        )
        self.write = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
                for task in tasks
            }
        )

    def forward(self, x: Tensor, memory: Maps | None = None) -> tuple[Maps, Maps, Maps]:
        """Features, memories and gates of every task.

        Args:
            x: map of the backbone (batch, channels, height, width).
            memory: of each task (batch, width, height, width), None before the first write.

        Returns:
            features and memories by task, each (batch, width, height, width), and gates
            (batch, experts, height or 1, width or 1), the memory's last.

        Raises:
            InputError: if the stage reads and there is no memory.
        """
        if self.reads and memory is None:
            raise InputError("this stage reads a memory, which only a stage before it can have written")
        shared = [expert(x) for expert in self.experts]
        features, memories, gates = {}, {}, {}
        for task, gate in self.gates.items():
            choices = [*shared, self.read[task](memory[task])] if self.reads and memory else shared
            weight = gate(x)
            gates[task] = weight
            features[task] = (torch.stack(choices, dim=1) * weight[:, :, None]).sum(1)
            written = self.write[task](features[task])
            keeps = memory is not None and self.write_kind == "add"
            memories[task] = memory[task] + written if keeps and memory is not None else written
        return features, memories, gates


class TaskExpertDecoder(nn.Module):
    """Mixtures over several maps of a backbone, and a dense prediction of each task from its last memory.

    Args:
        channels: channels of each map, from shallow to deep.
        outputs: channels of each task's prediction, by name.
        width: channels of the decoder.
        experts: shared experts of a stage.
        gate: kind of the gates.
        memory: whether memories are read; without it only the last stage's features count.
        write: how memories are written.
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: Mapping[str, int],
        width: int = 32,
        experts: int = 5,
        gate: Gate = "sample",
        memory: bool = True,
        write: Literal["add", "replace"] = "add",
    ) -> None:
        super().__init__()
        if not channels:
            raise InputError("a decoder needs at least one map of the backbone")
        self.memory = memory
        self.stages = nn.ModuleList(
            MemorialMixture(size, width, list(outputs), experts, gate, read=memory and stage > 0, write=write)
            for stage, size in enumerate(channels)
        )
        self.neck = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
                for task in outputs
            }
        )
        self.heads = nn.ModuleDict({task: nn.Conv2d(width, size, 1) for task, size in outputs.items()})

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Maps, list[Maps]]:
        """Predictions of the tasks and the gates of the stages.

        Args:
            maps: of the backbone, each (batch, channels, height, width).
            size: height and width of the labels.

        Returns:
            predictions (batch, outputs, *size) by task, and for each stage the gates by task.
        """
        memory: Maps | None = None
        gates = []
        for stage, x in zip(self.stages, maps, strict=True):
            _, memory, found = stage(x, memory if self.memory else None)
            gates.append(found)
        assert memory is not None
        predictions = {}
        for task, head in self.heads.items():
            fine = interpolate(memory[task], scale_factor=4, mode="bilinear")
            predictions[task] = interpolate(head(self.neck[task](fine)), size=size, mode="bilinear")
        return predictions, gates
