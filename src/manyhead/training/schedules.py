"""Learning-rate schedules for `fit`: what is stepped, and when."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from manyhead.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """A torch scheduler and the moment at which it is stepped.

    Args:
        build: `build(optimizer, steps)`, with the number of steps of the whole run.
        every: 'step' or 'epoch'. `ReduceLROnPlateau` is stepped each epoch with the monitored value.
    """

    build: Callable[[Optimizer, int], LRScheduler]
    every: Literal["step", "epoch"] = "epoch"


def each_epoch(build: Callable[[Optimizer], LRScheduler]) -> Schedule:
    """Step a torch scheduler after every epoch: `each_epoch(lambda o: StepLR(o, 10))`."""
    return Schedule(lambda optimizer, steps: build(optimizer), "epoch")


def each_step(build: Callable[[Optimizer], LRScheduler]) -> Schedule:
    """Step a torch scheduler after every optimizer step."""
    return Schedule(lambda optimizer, steps: build(optimizer), "step")


def plateau(factor: float = 0.1, patience: int = 10, **options: Any) -> Schedule:
    """Cut the learning rate when the monitored value stops improving (`ReduceLROnPlateau`).

    Args:
        factor: what the rate is multiplied with.
        patience: epochs without improvement before that.
        options: others of `ReduceLROnPlateau`, such as `threshold` and `min_lr`; `mode` must be that of
            `fit`, 'min' if left out.
    """
    return Schedule(
        lambda optimizer, steps: ReduceLROnPlateau(optimizer, factor=factor, patience=patience, **options)
    )


def warmup_cosine(warmup: int | float = 0, floor: float = 0.0) -> Schedule:
    """Rise linearly, then fall along half a cosine to the end of the run.

    Args:
        warmup: steps of the rise; a float below 1 is a share of all steps.
        floor: share of the peak rate that is left at the end.

    Raises:
        InputError: if `warmup` is negative or `floor` lies outside 0..1.
    """
    if warmup < 0 or not 0 <= floor <= 1:
        raise InputError(f"warmup must not be negative and floor lie in 0..1, got {warmup} and {floor}")

    def build(optimizer: Optimizer, steps: int) -> LRScheduler:
        rise = int(warmup * steps) if isinstance(warmup, float) and warmup < 1 else int(warmup)

        def share(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            done = min(1.0, (step - rise) / max(1, steps - rise))
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

        return LambdaLR(optimizer, share)

    return Schedule(build, "step")
