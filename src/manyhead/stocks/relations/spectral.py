"""Spectral node vectors: what the strongest common movements of the training days do to each stock."""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Matrix = NDArray[np.float64]


def spectral_vectors(correlation: Matrix, dimension: int) -> NDArray[np.float32]:
    """Return the loadings of every stock on the top eigenvectors of a correlation matrix.

    Column k is the k-th eigenvector times the root of its eigenvalue, so that the inner product of two
    stocks' vectors approximates their correlation. The sign of a column makes its largest entry
    positive; negative eigenvalues (possible where gaps differ between pairs) count as 0.

    Args:
        correlation: (stocks, stocks).
        dimension: number of columns; beyond the number of stocks they are 0.

    Returns:
        (stocks, dimension) float32.
    """
    stocks = len(correlation)
    kept = min(dimension, stocks)
    value, vector = linalg.eigh(correlation, subset_by_index=[stocks - kept, stocks - 1])
    value, vector = value[::-1], vector[:, ::-1]
    largest = np.take_along_axis(vector, np.abs(vector).argmax(axis=0)[None], axis=0)
    result = np.zeros((stocks, dimension), dtype=np.float32)
    result[:, :kept] = vector * np.sign(largest) * np.sqrt(np.maximum(value, 0.0))
    return result
