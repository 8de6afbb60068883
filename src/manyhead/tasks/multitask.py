"""One network, several tasks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Losses
from manyhead.tasks.task import Task

Batch = Mapping[str, Any]


class MultiTask(nn.Module):
    """A network and the tasks that read its output.

    A batch is a mapping with `inputs` (whatever the network takes), `targets` (task name -> tensor) and,
    if wanted, `masks` (task name -> boolean tensor). A task that the batch has no target for, or only
    missing ones, is left out of the losses of that batch.

    Args:
        network: maps the inputs to one representation that every head reads, or to a mapping from task
            name to representation (experts behind a gate for each task).
        tasks: the tasks, with distinct names.

    Raises:
        InputError: if there is no task or two share a name.
    """

    def __init__(self, network: nn.Module, tasks: Iterable[Task]) -> None:
        super().__init__()
        tasks = list(tasks)
        names = [task.name for task in tasks]
        if not names or len(set(names)) != len(names):
            raise InputError(f"tasks must have distinct names, at least one task, got {names}")
        self.network = network
        self.tasks = nn.ModuleDict({task.name: task for task in tasks})

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in order."""
        return list(self.tasks)

    def task(self, name: str) -> Task:
        """The task of that name."""
        if name not in self.tasks:
            raise InputError(f"there is no task {name!r}; the tasks are {self.names}")
        found = self.tasks[name]
        assert isinstance(found, Task)
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters of the network, which every task uses."""
        heads = {id(parameter) for parameter in self.tasks.parameters()}
        return [p for p in self.network.parameters() if p.requires_grad and id(p) not in heads]

    def heads(self, representation: Any) -> dict[str, Tensor]:
        """Every task's prediction from the network's output."""
        if isinstance(representation, Mapping):
            return {name: self.tasks[name](representation[name]) for name in self.names}
        return {name: self.tasks[name](representation) for name in self.names}

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Every task's prediction, by task name."""
        return self.heads(self.network(inputs))

    def losses(self, batch: Batch) -> Losses:
        """The loss of every task that the batch has a label for.

        Returns:
            losses with the representation and the shared parameters, as balancers want them.
        """
        _check(batch, self.names)
        representation = self.network(batch["inputs"])
        predictions = self.heads(representation)
        masks = batch.get("masks") or {}
        values = {}
        for name, target in batch["targets"].items():
            loss = self.task(name).loss(predictions[name], target, masks.get(name))
            if loss is not None:
                values[name] = loss
        # a representation for each task is no common place to differentiate at
        common = (
            representation if isinstance(representation, Tensor) and representation.requires_grad else None
        )
        return Losses(values, representation=common, shared=self.shared_parameters())

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss and metrics of every task over an iterable of batches.

        The loss of a task is its mean over batches, weighted by the entries that have a label.

        Returns:
            '<task>/loss' and '<task>/<metric>' -> value; tasks without any label are absent.
        """
        training = self.training
        self.eval()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for name in self.names:
            if (metrics := self.task(name).metrics) is not None:
                metrics.reset()
        try:
            for batch in batches:
                _check(batch, self.names)
                predictions = self(batch["inputs"])
                masks = batch.get("masks") or {}
                for name, target in batch["targets"].items():
                    task = self.task(name)
                    prediction, labels = task.observed(predictions[name], target, masks.get(name))
                    if labels.numel() == 0:
                        continue
                    entries = len(labels)
                    sums[name] = sums.get(name, 0.0) + entries * float(task.loss_function(prediction, labels))
                    counts[name] = counts.get(name, 0) + entries
                    if task.metrics is not None:
                        task.metrics.update(prediction, labels)
        finally:
            self.train(training)
        values = {f"{name}/loss": sums[name] / counts[name] for name in self.names if name in counts}
        for name in self.names:
            metrics = self.task(name).metrics
            if metrics is not None and name in counts:
                values |= {f"{name}/{key}": float(value) for key, value in metrics.compute().items()}
        return values


def _check(batch: Batch, names: list[str]) -> None:
    for key in ("inputs", "targets"):
        if key not in batch:
            raise InputError(f"a batch must hold 'inputs' and 'targets', got the keys {sorted(batch)}")
    unknown = [name for name in batch["targets"] if name not in names]
    if unknown:
        raise InputError(f"the batch has targets for {unknown[0]!r}; the tasks are {names}")
