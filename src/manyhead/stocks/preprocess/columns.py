"""Count, mean, deviation and extremes of each factor over a span of rows, block by block."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.stocks.factors.source import BLOCK, FactorSource, in_blocks

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """What is known of each factor, all (factors,) float64.

    Args:
        count: finite values.
        total: values, missing ones included.
        mean: of the finite values, 0 without any.
        squares: sum of squared deviations from the mean.
        low: smallest value; infinities count, infinity without any.
        high: largest value; minus infinity without any.
    """

    count: Floats
    total: Floats
    mean: Floats
    squares: Floats
    low: Floats
    high: Floats

    def __add__(self, other: "Columns") -> "Columns":
        """Merge two spans (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return Columns(
            count,
            self.total + other.total,
            self.mean + apart * share,
            self.squares + other.squares + apart * apart * self.count * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )


def columns(source: FactorSource, rows: range) -> Columns:
    """Look at every value of some rows, in float64; the result does not depend on the threads."""
    parts: dict[int, Columns] = {}

    def look(start: int, stop: int) -> None:
        parts[start] = _of(source.rows(rows.start + start, rows.start + stop).astype(np.float64))

    in_blocks(len(rows), look)
    whole = parts[0]
    for start in range(BLOCK, len(rows), BLOCK):
        whole = whole + parts[start]
    return whole


def _of(values: Floats) -> Columns:
    days, symbols, factors = values.shape
    flat = values.reshape(days * symbols, factors)
    known = np.isfinite(flat)
    count = known.sum(axis=0).astype(np.float64)
    mean = np.where(known, flat, 0).sum(axis=0) / np.maximum(count, 1)
    squares = (np.where(known, flat - mean, 0) ** 2).sum(axis=0)
    return Columns(
        count,
        np.full(factors, float(days * symbols)),
        mean,
        squares,
        np.fmin.reduce(flat, axis=0, initial=np.inf),
        np.fmax.reduce(flat, axis=0, initial=-np.inf),
    )
