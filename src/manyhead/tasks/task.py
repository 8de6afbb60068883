"""A task: a head, a loss, metrics and a name."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyhead.errors import InputError

if TYPE_CHECKING:  # a second of import that only tasks with metrics need
    from torchmetrics import Metric, MetricCollection


class Task(nn.Module):
    """One thing to predict from the network's output.

    A target may be missing for some samples: NaN where it is a float, `missing_label` where it is an
    integer, or False in a mask given with the batch. Missing entries reach neither loss nor metrics.

    Args:
        name: name of the task, unique in its `MultiTask`, without '.' and '/'.
        head: module that maps the network's output to this task's prediction.
        loss: `loss(prediction, target)` of the entries that have a target, their axes joined into one:
            a prediction `(batch, stocks, classes)` with a target `(batch, stocks)` arrives as
            `(entries, classes)` and `(entries,)`. Returns a scalar, a mean over entries.
        metrics: torchmetrics by name, fed with the same entries.
        missing_label: the integer that stands for 'no label'.

    Raises:
        InputError: if the name cannot be used, the loss cannot be called or the head is no module.
    """

    def __init__(
        self,
        name: str,
        head: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        metrics: "Mapping[str, Metric] | None" = None,
        missing_label: int = -100,
    ) -> None:
        super().__init__()
        if not name or "." in name or "/" in name:
            raise InputError(f"name of a task must not be empty nor hold '.' or '/', got {name!r}")
        if not callable(loss):
            raise InputError(f"task {name!r} needs a loss(prediction, target), got {loss!r}")
        if not isinstance(head, nn.Module):
            raise InputError(f"the head of task {name!r} must be a module, got {type(head).__name__}")
        self.name = name
        self.head = head
        self.loss_function = loss
        # a metric's state belongs to one evaluation, so it is kept out of the weights by torchmetrics
        self.metrics = _collected(metrics) if metrics else None
        self.missing_label = missing_label

    def forward(self, representation: Tensor) -> Tensor:
        """The prediction from the network's output."""
        prediction: Tensor = self.head(representation)
        return prediction

    def observed(
        self, prediction: Tensor, target: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The entries that have a target.

        Args:
            prediction: `(*entries, ...)`.
            target: `(*entries)`, or `(*entries, ...)` where the prediction has the same shape.
            mask: boolean, shape of the leading axes of both; True where the target may be used.

        Returns:
            prediction and target with the axes of the mask joined into one, `(n, ...)`.

        Raises:
            InputError: if the shapes do not fit together.
        """
        if target.is_floating_point():
            there = ~torch.isnan(target)
        else:
            there = target != self.missing_label
        if mask is not None:
            mask = mask.to(torch.bool)
            if mask.shape != target.shape[: mask.ndim]:
                raise InputError(
                    f"mask of task {self.name!r} must have the leading axes of its target "
                    f"{tuple(target.shape)}, got {tuple(mask.shape)}"
                )
            there = there & mask.reshape(mask.shape + (1,) * (target.ndim - mask.ndim))
        if prediction.shape[: there.ndim] != there.shape:
            if math.prod(prediction.shape) != math.prod(target.shape):
                raise InputError(
                    f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} of task "
                    f"{self.name!r} do not fit: the prediction must begin with the target's axes"
                )
            prediction = prediction.reshape(target.shape)  # (batch, 1) against (batch,)
        return prediction[there], target[there]

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """The loss over the entries that have a target; None where there is none."""
        prediction, target = self.observed(prediction, target, mask)
        return None if target.numel() == 0 else self.loss_function(prediction, target)

    def update_metrics(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Feed the metrics with the entries that have a target."""
        prediction, target = self.observed(prediction, target, mask)
        if self.metrics is not None and target.numel():
            self.metrics.update(prediction, target)


def _collected(metrics: "Mapping[str, Metric]") -> "MetricCollection":
    from torchmetrics import MetricCollection

    return MetricCollection(dict(metrics))
