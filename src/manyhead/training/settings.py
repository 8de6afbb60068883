"""What `fit` was asked to do, how far it is, and what it did."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from manyhead.errors import InputError
from manyhead.training.logs import Row, check_kinds
from manyhead.training.order import Order, batches

LossFunction = Callable[[Any, Any], Mapping[str, Tensor]]


class NonFiniteLoss(RuntimeError):
    """A loss, or a weight about to be saved, is NaN or infinite; the message names task and step."""


@dataclass
class Fitted:
    """What a run did.

    Args:
        history: one dict an epoch: 'epoch', 'step', 'lr', 'train/<task>' (mean loss), what `validate`
            returned, and 'seconds' of the epoch.
        best_epoch: the epoch (from 1) whose weights the model now has; None without `monitor`, where
            the model has the last weights.
        best_value: its monitored value.
        steps: optimizer steps done in all.
        seconds: time spent in all, over all resumed parts.
        stopped: why the run ended: 'epochs', or 'patience'.
        folder: where the run is kept.
    """

    history: list[Row]
    best_epoch: int | None
    best_value: float | None
    steps: int
    seconds: float
    stopped: str = "epochs"
    folder: Path | None = None


@dataclass
class Position:
    """How far a run is: everything that a checkpoint holds besides weights and generators."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches of the epoch in hand that are done
    step: int = 0  # optimizer steps
    best_epoch: int | None = None
    best_value: float | None = None
    stopped: str = ""
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # task -> loss summed over samples, this epoch
    counts: dict[str, int] = field(default_factory=dict)  # task -> samples in that sum
    history: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """The arguments of `fit`, checked."""

    losses: LossFunction
    batch_size: int
    epochs: int
    validate: Callable[[Any], Mapping[str, float]] | None
    monitor: str | None
    mode: str
    patience: int | None
    order: Order
    drop_last: bool
    accumulate: int
    clip_norm: float | None
    seed: int
    resume: bool
    folder: Path | None
    checkpoint_every: int | None
    logs: tuple[str, ...]
    progress: bool

    def better(self, value: float, best: float | None) -> bool:
        """Whether a monitored value beats the best so far; NaN never does."""
        if best is None:
            return value == value
        return value < best if self.mode == "min" else value > best

    def batches(self, samples: int, epoch: int) -> list[Tensor]:
        """The indices of every batch of an epoch."""
        return batches(self.order(samples, epoch, self.seed), self.batch_size, drop_last=self.drop_last)

    def check(self, train: Any) -> None:
        """Refuse what cannot be used, naming the argument."""
        if not hasattr(train, "__len__") or not (hasattr(train, "batch") or hasattr(train, "__getitem__")):
            raise InputError(
                f"train must have a length and batch(indices) or __getitem__, got {type(train).__name__}"
            )
        if len(train) == 0:
            raise InputError("train must hold at least one sample, got none")
        for name in ("batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("epochs", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("patience", "checkpoint_every", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} must be positive or None, got {value}")
        if self.mode not in ("min", "max"):
            raise InputError(f"mode must be 'min' or 'max', got {self.mode!r}")
        if self.patience is not None and self.monitor is None:
            raise InputError("patience needs monitor, the value that must improve")
        check_kinds(self.logs)
