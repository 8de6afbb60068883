"""Losses of boosting: their value and the negative gradient that trees are fitted to."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Loss(Protocol):
    """A loss of targets (n, outputs) and raw scores (n, outputs)."""

    def value(self, target: Values, raw: Values) -> Values:
        """Loss of every row, (n,)."""

    def negative_gradient(self, target: Values, raw: Values) -> Values:
        """Minus the derivative by the raw scores, (n, outputs)."""


class SquaredError:
    """Half the squared error, summed over outputs."""

    def value(self, target: Values, raw: Values) -> Values:
        result: Values = 0.5 * ((target - raw) ** 2).sum(1)
        return result

    def negative_gradient(self, target: Values, raw: Values) -> Values:
        return target - raw


def softmax(raw: Values) -> Values:
    """Probabilities of the classes, (n, classes)."""
    power = np.exp(raw - raw.max(1, keepdims=True))
    result: Values = power / power.sum(1, keepdims=True)
    return result


class CrossEntropy:
    """Softmax cross-entropy against one-hot targets, two columns for two classes."""

    def value(self, target: Values, raw: Values) -> Values:
        shifted = raw - raw.max(1, keepdims=True)
        result: Values = np.log(np.exp(shifted).sum(1)) - (target * shifted).sum(1)
        return result

    def negative_gradient(self, target: Values, raw: Values) -> Values:
        return target - softmax(raw)
