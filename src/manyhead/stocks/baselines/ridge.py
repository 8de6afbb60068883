"""Ridge regression on the newest day of each window, in closed form.

Hoerl and Kennard, 'Ridge regression: biased estimation for nonorthogonal problems', 1970, equation 2.1.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, Space, Table

LOWEST, HIGHEST = 1e-3, 1e1  # penalties relative to the variance of a standardised input


class Ridge(Baseline):
    """Linear in the factors; `penalty` is per observation, on inputs of variance 1."""

    space: ClassVar[Space] = {"penalty": (0.1,)}

    @classmethod
    def choices(cls, trials: int, seed: int = 0) -> list[dict[str, Any]]:
        """Spread the penalties evenly on a logarithmic scale; a single trial takes the middle one."""
        ends = (LOWEST, HIGHEST) if trials > 1 else (0.1, 0.1)
        return [{"penalty": float(penalty)} for penalty in np.geomspace(*ends, trials)]

    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Solve (X'X/n + penalty) w = X'y/n on standardised inputs."""
        self.unit = inputs.scale(train)
        targets = inputs.targets(train)
        width = inputs.width
        count, total = 0, np.zeros(width)
        square, cross, level = np.zeros((width, width)), np.zeros(width), 0.0
        for place, values in inputs.latest(train, self.unit):
            known = np.isfinite(targets[place])
            x = values[known].astype(np.float64)
            y = targets[place][known].astype(np.float64)
            count, total, level = count + len(x), total + x.sum(axis=0), level + y.sum()
            square += x.T @ x
            cross += x.T @ y
        self.weight: NDArray[np.float64] = np.zeros(width)
        if not count:
            return
        mean = total / count
        covariance = square / count - np.outer(mean, mean)
        slope = cross / count - mean * level / count
        spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        alive = spread > 1e-6 * np.maximum(1.0, np.abs(mean))  # a constant input has no weight
        unit = np.where(alive, spread, 1.0)
        system = (covariance / np.outer(unit, unit))[np.ix_(alive, alive)]
        system[np.diag_indices_from(system)] += self.choice["penalty"]
        solved = linalg.solve(system, (slope / unit)[alive], assume_a="pos")
        self.weight[alive] = solved / unit[alive]

    def score(self, inputs: Inputs, rows: Rows) -> Table:
        """Apply the weights."""
        result = np.empty((len(rows), inputs.stocks), np.float32)
        for place, values in inputs.latest(rows, self.unit):
            result[place] = values @ self.weight
        return result
