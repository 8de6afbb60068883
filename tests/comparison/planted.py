"""Small task sets of which it is known what sharing does; the functions are what `--data` names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.comparison import Score, TaskSet
from manyhead.tasks import LinearHead, MultiTask, Task


class Rows:
    """Inputs `(n, 4)` and targets by task."""

    def __init__(self, inputs: Tensor, targets: dict[str, Tensor]) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: Tensor) -> dict[str, Any]:
        return {"inputs": self.inputs[rows], "targets": {name: y[rows] for name, y in self.targets.items()}}


class Beside(nn.Module):
    """Its input, and one more channel made from a copy of it that sends no gradient back."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.map(x.detach())], -1)


def _squares(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean()


def _rows(seed: int, count: int) -> Rows:
    """Task 'up' wants the last channel to be +g, task 'down' wants -g; of the others both want the same."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    noise = torch.randn(count, 5, generator=generator)
    g = x.sum(1, keepdim=True)
    return Rows(
        x, {"up": torch.cat([x.flip(1), g], 1) + noise, "down": torch.cat([x.flip(1), -g], 1) + noise}
    )


def _build_opposed(names: Sequence[str]) -> MultiTask:
    network = nn.Sequential(nn.Linear(4, 4), Beside())
    return MultiTask(network, [Task(name, nn.Identity(), _squares) for name in names])


def opposed(seed: int, budget: str) -> TaskSet:
    """Two tasks that agree in the first layer and want the opposite of the second."""
    train, validation, test = (_rows(3 * seed + part, count) for part, count in enumerate((96, 60, 200)))
    return TaskSet(_build_opposed, train, validation, test, {"up": Score(), "down": Score()}, batch_size=16)


def _build_partial(names: Sequence[str]) -> MultiTask:
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    return MultiTask(network, [Task(name, LinearHead(8), _squares) for name in names])


def partly_labelled(seed: int, budget: str) -> TaskSet:
    """Three tasks; every training sample has a label for one of them alone."""
    parts = []
    for part, count in enumerate((60, 40, 40)):
        generator = torch.Generator().manual_seed(7 * seed + part)
        x = torch.randn(count, 4, generator=generator)
        targets = {name: x[:, place].clone() for place, name in enumerate("abc")}
        if part == 0:
            owner = torch.arange(count) % 3
            for place, target in enumerate(targets.values()):
                target[owner != place] = torch.nan
        parts.append(Rows(x, targets))
    return TaskSet(_build_partial, *parts, scores=dict.fromkeys("abc", Score()), batch_size=10)


def no_task_set(seed: int, budget: str) -> dict[str, int]:
    return {"seed": seed}


def one_task(seed: int, budget: str) -> TaskSet:
    held = opposed(seed, budget)
    return TaskSet(held.build, held.train, held.validation, held.test, {"up": Score()})


def empty_test(seed: int, budget: str) -> TaskSet:
    held = opposed(seed, budget)
    return TaskSet(held.build, held.train, held.validation, _rows(0, 0), held.scores)


def wrong_model(seed: int, budget: str) -> TaskSet:
    held = opposed(seed, budget)
    return TaskSet(
        lambda names: nn.Linear(1, 1),  # type: ignore[arg-type, return-value]
        held.train,
        held.validation,
        held.test,
        held.scores,
    )


def unknown_score(seed: int, budget: str) -> TaskSet:
    held = opposed(seed, budget)
    scores = {"up": Score("accuracy", "higher"), "down": Score()}
    return TaskSet(held.build, held.train, held.validation, held.test, scores, batch_size=16)


def bad_direction(seed: int, budget: str) -> TaskSet:
    held = opposed(seed, budget)
    scores = {"up": Score("loss", "bigger"), "down": Score()}  # type: ignore[arg-type]
    return TaskSet(held.build, held.train, held.validation, held.test, scores)


def _build_kinds(names: Sequence[str]) -> MultiTask:
    heads = {"up": (LinearHead(4), _squares), "kind": (LinearHead(4, 3), nn.functional.cross_entropy)}
    return MultiTask(nn.Linear(4, 4), [Task(name, *heads[name]) for name in names])


def _kinds(validation_class: int) -> TaskSet:
    parts = []
    for part in range(3):
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(part))
        kind = torch.full((12,), validation_class) if part == 1 else torch.arange(12) % 3
        parts.append(Rows(x, {"up": x[:, 0], "kind": kind}))
    return TaskSet(_build_kinds, *parts, scores={"up": Score(), "kind": Score()}, batch_size=4)


def single_class(seed: int, budget: str) -> TaskSet:
    return _kinds(1)


def unlabelled(seed: int, budget: str) -> TaskSet:
    return _kinds(-100)
