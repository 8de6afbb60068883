"""The plain sum of the task losses: equal weights, the baseline of every balancer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from manyhead.tasks.balancers.base import Scalarisation


class Sum(Scalarisation):
    """Minimise the sum of the losses."""

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum of the losses, a scalar."""
        return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
