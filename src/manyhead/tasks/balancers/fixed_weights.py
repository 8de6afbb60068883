"""A weighted sum of the task losses with weights that the user chooses."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Scalarisation


class FixedWeights(Scalarisation):
    """Minimise `sum_i w_i L_i`.

    Args:
        weights: task name -> weight, finite and not negative.

    Raises:
        InputError: if a weight is negative or not finite; in `backward`, if a task has no weight.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weights[{name!r}] must be finite and not negative, got {weight}")
        self.weights = {name: float(weight) for name, weight in weights.items()}

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the losses, a scalar."""
        unknown = [name for name in losses if name not in self.weights]
        if unknown:
            raise InputError(f"weights has no entry for task {unknown[0]!r}; it has {sorted(self.weights)}")
        return torch.stack([self.weights[name] * loss.reshape(()) for name, loss in losses.items()]).sum()
