"""Homoscedastic uncertainty: each task's weight follows from a learned noise variance.

Kendall, Gal, Cipolla, 'Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
Semantics', 2018, arXiv 1705.07115, equations 7 and 10. With `s = log sigma^2`, as the authors train it:
a regression task contributes `exp(-s) L / 2 + s / 2`, a classification task `exp(-s) L + s / 2`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Scalarisation

Kind = Literal["regression", "classification"]


class HomoscedasticUncertainty(Scalarisation):
    """Weigh every task by the inverse of its learned noise variance.

    The log-variances are parameters of this module: they must reach the optimizer (`fit` sees to it,
    without weight decay) and are saved and resumed with the network.

    Args:
        tasks: names of the tasks.
        kinds: task name -> 'regression' (a squared error, which gets the factor 1/2) or
            'classification' (a cross-entropy); 'regression' where a name is left out.
        initial: the log-variance that training starts from.

    Raises:
        InputError: if there is no task, a kind is unknown; in `backward`, if a task is unknown.
    """

    def __init__(
        self, tasks: Sequence[str], kinds: Mapping[str, Kind] | None = None, initial: float = 0.0
    ) -> None:
        super().__init__()
        self.tasks = [tasks] if isinstance(tasks, str) else list(tasks)
        kinds = dict(kinds or {})
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise InputError(f"tasks must be distinct names, at least one, got {self.tasks}")
        for name, kind in kinds.items():
            if name not in self.tasks:
                raise InputError(f"kinds names the task {name!r}, which is not among {self.tasks}")
            if kind not in ("regression", "classification"):
                raise InputError(f"kinds[{name!r}] must be 'regression' or 'classification', got {kind!r}")
        self.halved = [kinds.get(name, "regression") == "regression" for name in self.tasks]
        self.log_variance = nn.Parameter(torch.full((len(self.tasks),), float(initial)))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum of the weighted losses and of the logarithms that keep the variances finite, a scalar."""
        terms = []
        for name, loss in losses.items():
            if name not in self.tasks:
                raise InputError(f"uncertainty was built for the tasks {self.tasks}, got {name!r}")
            index = self.tasks.index(name)
            log_variance = self.log_variance[index]
            factor = 0.5 if self.halved[index] else 1.0
            terms.append(factor * torch.exp(-log_variance) * loss.reshape(()) + 0.5 * log_variance)
        return torch.stack(terms).sum()
