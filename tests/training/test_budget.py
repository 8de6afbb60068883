"""Rivals get as many steps as a budget has room for, the same number each."""

import time

import pytest
import torch

from manyhead.errors import InputError
from manyhead.training.budget import affordable_steps


def work(seconds: float) -> torch.Tensor:
    """Use the processor for a while, then return a loss."""
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass
    return torch.zeros((), requires_grad=True) * 1.0


def test_a_budget_pays_for_all_rivals_together() -> None:
    steps = affordable_steps(10.0, [lambda: work(0.01), lambda: work(0.03)])
    assert 100 < steps <= 10.0 / 0.04


def test_bounds_and_refusals() -> None:
    assert affordable_steps(10.0, [lambda: work(0.01)], most=7) == 7
    assert affordable_steps(1e-6, [lambda: work(0.01)]) == 1
    with pytest.raises(InputError, match="above zero"):
        affordable_steps(0.0, [lambda: work(0.01)])
    with pytest.raises(InputError, match="a rival"):
        affordable_steps(1.0, [])
