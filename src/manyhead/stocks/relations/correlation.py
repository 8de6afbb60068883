"""Correlation of stocks over training rows, gaps respected."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.metrics import ranks

Floats = NDArray[np.floating]
Matrix = NDArray[np.float64]

OVERLAP = 20  # fewer common days say nothing about a pair


def pairwise(values: Matrix, overlap: int) -> Matrix:
    """Return Pearson correlations of columns, each pair over the rows that both have.

    Args:
        values: (rows, columns), NaN where missing.
        overlap: pairs with fewer common rows get 0.
    """
    there = np.isfinite(values)
    weight = there.astype(np.float64)
    count = weight.sum(axis=0)
    # centring first keeps the sums below free of cancellation
    mean = np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    kept = np.where(there, values - mean, 0.0)
    both = weight.T @ weight
    divisor = np.maximum(both, 1)
    total = kept.T @ weight  # total[i, j]: sum of i over the rows that j has too
    square = (kept**2).T @ weight
    spread = square - total**2 / divisor
    product = kept.T @ kept - total * total.T / divisor
    # a series that stands still over the common rows has no correlation; what is left then is rounding
    still = spread <= 1e-12 * np.maximum(square, np.finfo(np.float64).tiny)
    scale = np.sqrt(np.where(still | still.T, np.inf, spread * spread.T))
    result = np.clip(product / scale, -1.0, 1.0)
    result[both < overlap] = 0.0
    return np.asarray((result + result.T) / 2)


def correlation(
    returns: Floats,
    method: Literal["pearson", "spearman"] = "pearson",
    *,
    missing: Literal["pairwise", "zero"] = "pairwise",
    overlap: int = OVERLAP,
) -> Matrix:
    """Return the correlation matrix of stocks.

    Args:
        returns: (days, stocks) of training rows only, NaN where missing.
        method: Pearson, as Stockformer's code computes it, or Spearman, as its paper says.
        missing: 'pairwise' takes each pair over its common days; 'zero' reads a gap as a return of 0, as
            the released code does.
        overlap: with 'pairwise', pairs with fewer common days get 0.

    Returns:
        (stocks, stocks), symmetric, ones on the diagonal, 0 for a stock that never moves.

    Raises:
        InputError: if the array is not two-dimensional or an option is unknown.
    """
    if np.ndim(returns) != 2:
        raise InputError(f"returns must be (days, stocks), got shape {np.shape(returns)}")
    if method not in ("pearson", "spearman"):
        raise InputError(f"method must be 'pearson' or 'spearman', got {method!r}")
    if missing not in ("pairwise", "zero"):
        raise InputError(f"missing must be 'pairwise' or 'zero', got {missing!r}")
    values = np.array(returns, dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    if missing == "zero":
        values, overlap = np.nan_to_num(values), 0
    if method == "spearman":
        values = ranks(values.T).T
    result = pairwise(values, min(overlap, len(values)))
    np.fill_diagonal(result, 1.0)
    return result
