"""Equal steps for rivals that are compared, as many as a time budget allows them together."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from manyhead.errors import InputError

# an optimizer's step, clipping and drawing a batch cost this much beside the two passes
BESIDE = 1.2


def affordable_steps(seconds: float, losses: Sequence[Callable[[], Tensor]], most: int = 10_000) -> int:
    """How many steps each rival can make so that all of them fit into a budget.

    Every rival runs forward and backward three times; the faster of the last two counts. Time is the
    thread's own, so that other work on the machine does not shorten training.

    Args:
        seconds: of all rivals together.
        losses: for each rival, a function that draws a batch and returns its loss.
        most: steps that are enough.

    Returns:
        Steps of each, at least 1.

    Raises:
        InputError: if there is no rival, or the budget is not above zero.
    """
    if not losses or seconds <= 0:
        raise InputError(f"a budget above zero and a rival are needed, got {seconds} s and {len(losses)}")
    step = 0.0
    for loss in losses:
        found = []
        for _ in range(3):
            begun = time.thread_time()
            torch.autograd.backward(loss())
            found.append(time.thread_time() - begun)
        step += min(found[1:])
    return max(1, min(most, int(seconds / (BESIDE * step))))
