"""Wavelet split of return windows into a slow and a fast part.

Stockformer (arXiv 2401.06139), section 3.1: a discrete wavelet transform of each window, once inverted with
the details set to zero (low frequencies) and once with the approximation set to zero (high).
Boundaries are padded with zeros. As every step is linear, the split of windows of one length is one
constant matrix: it is built once and applied to any batch by a matrix product. The whole window is
read, so that both parts of a day depend on later days of the same window, never on another window.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead.errors import InputError, optional

Matrix = NDArray[np.float64]


def filter_bank(wave: str) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Return the decomposition and reconstruction filters of a named discrete wavelet.

    Args:
        wave: a name that PyWavelets knows, such as 'sym2' or 'db4'.

    Returns:
        low-pass and high-pass decomposition, low-pass and high-pass reconstruction.

    Raises:
        InputError: if there is no such discrete wavelet, or PyWavelets is absent.
    """
    pywt = optional("pywt", "stocks")
    if wave not in pywt.wavelist(kind="discrete"):
        raise InputError(f"wave must be a discrete wavelet such as 'sym2', 'db4' or 'haar', got {wave!r}")
    low, high, low_back, high_back = (np.array(taps) for taps in pywt.Wavelet(wave).filter_bank)
    return low, high, low_back, high_back


def analysis(length: int, taps: Matrix) -> Matrix:
    """Return the matrix that filters a zero-padded signal and keeps every second sample.

    Coefficient k is sum_j taps[j] * x[2k + 1 - j]: shape (floor((length + len(taps) - 1) / 2), length).
    """
    count = (length + len(taps) - 1) // 2
    lag = 2 * np.arange(count)[:, None] + 1 - np.arange(length)[None, :]
    return np.where((lag >= 0) & (lag < len(taps)), taps[lag.clip(0, len(taps) - 1)], 0.0)


def synthesis(length: int, count: int, taps: Matrix) -> Matrix:
    """Return the matrix that up-samples `count` coefficients, filters, and keeps `length` samples.

    Sample n is sum_k taps[n + len(taps) - 2 - 2k] * coefficient[k].
    """
    lag = np.arange(length)[:, None] + len(taps) - 2 - 2 * np.arange(count)[None, :]
    return np.where((lag >= 0) & (lag < len(taps)), taps[lag.clip(0, len(taps) - 1)], 0.0)


@lru_cache(maxsize=64)
def split_matrices(length: int, wave: str = "sym2", level: int = 1) -> tuple[Matrix, Matrix]:
    """Return the matrices that take a window to its low-frequency and high-frequency part.

    Args:
        length: days of a window.
        wave: discrete wavelet, see `filter_bank`.
        level: levels of decomposition; the high part is the sum of the details of all levels.

    Returns:
        low (length, length) and high (length, length); their sum is the identity.

    Raises:
        InputError: if `length` or `level` is below 1 or the wavelet unknown.
    """
    if length < 1:
        raise InputError(f"length must be at least 1 day, got {length}")
    if level < 1:
        raise InputError(f"level must be at least 1, got {level}")
    low, high, low_back, high_back = filter_bank(wave)
    down, detail = analysis(length, low), analysis(length, high)
    up = synthesis(length, len(down), low_back)
    details = synthesis(length, len(detail), high_back) @ detail
    if level == 1:
        return up @ down, details
    slower, faster = split_matrices(len(down), wave, level - 1)
    return up @ slower @ down, details + up @ faster @ down


def wavelet_split(
    windows: Tensor, axis: int = -2, wave: str = "sym2", level: int = 1
) -> tuple[Tensor, Tensor]:
    """Split windows along their time axis into low and high frequencies.

    Args:
        windows: any shape with the days of a window on `axis`, by default `(..., days, symbols)`.
        axis: the time axis.
        wave: discrete wavelet, see `filter_bank`.
        level: levels of decomposition.

    Returns:
        low and high, each of the shape of `windows`; low + high equals `windows` up to rounding.

    Raises:
        InputError: see `split_matrices`.
    """
    length = windows.shape[axis]
    both = torch.from_numpy(np.concatenate(split_matrices(length, wave, level)))
    both = both.to(windows.device, windows.dtype)  # (2 * length, length)
    parts = torch.tensordot(both, windows, dims=([1], [axis])).movedim(0, axis)
    low, high = parts.split(length, dim=axis)
    return low, high
