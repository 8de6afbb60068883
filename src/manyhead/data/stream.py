"""A stream of tasks: classes that come in groups, one after the other, for incremental learning.

The protocol 'Bx-Cy': x base classes in the first task (y if x is 0), then y more in each. With several labels
an image belongs to every task that has one of its classes, and only the labels of the task in hand are shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from manyhead.errors import InputError


@dataclass(frozen=True)
class Stage:
    """One task of a stream.

    Args:
        number: its place, from 0.
        classes: those that are new.
        seen: those of this and all earlier tasks.
    """

    number: int
    classes: tuple[int, ...]
    seen: tuple[int, ...]

    def rows(self, labels: Tensor) -> Tensor:
        """Indices of the samples to learn from: those that have one of the new classes."""
        return has_any(labels, self.classes).nonzero().flatten()

    def test_rows(self, labels: Tensor) -> Tensor:
        """Indices of the samples to test on: those that have one of the classes seen so far."""
        return has_any(labels, self.seen).nonzero().flatten()

    def visible(self, labels: Tensor) -> Tensor:
        """What the labels show during this task: others are 0 (several labels) or -100 (one label)."""
        if labels.ndim == 1:
            return torch.where(has_any(labels, self.classes), labels, -100)
        shown = torch.zeros_like(labels)
        shown[:, list(self.classes)] = labels[:, list(self.classes)]
        return shown


@dataclass(frozen=True)
class TaskStream:
    """Classes divided into tasks.

    Args:
        groups: the classes of each task.
    """

    groups: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Stage]:
        seen: tuple[int, ...] = ()
        for number, classes in enumerate(self.groups):
            seen += classes
            yield Stage(number, classes, seen)


def task_stream(
    classes: int | Sequence[int], *, base: int = 0, step: int = 2, seed: int | None = None
) -> TaskStream:
    """Divide classes into tasks by the protocol B`base`-C`step`.

    Args:
        classes: their number, or their names in order of appearance.
        base: classes of the first task; 0 for as many as in the others.
        step: classes of each further task; the last may have fewer.
        seed: shuffle the order first.

    Raises:
        InputError: if there is no class, a class comes twice, or a size is out of range.
    """
    order = list(range(classes)) if isinstance(classes, int) else list(classes)
    if not order or len(set(order)) != len(order):
        raise InputError(f"classes must be at least one and each come once, got {classes}")
    if step < 1 or not 0 <= base <= len(order):
        raise InputError(
            f"step must be at least 1 and base from 0 to the {len(order)} classes, got {step} and {base}"
        )
    if seed is not None:
        shuffled = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        order = [order[index] for index in shuffled.tolist()]
    cuts = [0, *range(base or min(step, len(order)), len(order), step), len(order)]
    return TaskStream(tuple(tuple(order[a:b]) for a, b in pairwise(cuts)))


def has_any(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Which samples have one of the classes.

    Args:
        labels: integers `(n,)`, or multi-hot `(n, classes)`.
        classes: the classes asked for.

    Raises:
        InputError: if the labels have another shape.
    """
    if labels.ndim == 1:
        return torch.isin(labels, torch.tensor(list(classes), dtype=labels.dtype))
    if labels.ndim != 2:
        raise InputError(f"labels must be (n,) integers or (n, classes) multi-hot, got {tuple(labels.shape)}")
    return labels[:, list(classes)].any(1)
