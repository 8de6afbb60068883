"""Quantiles and ranks over sliding windows, without sorting each window.

Two neighbouring sorted windows are merged into a longer sorted one by Batcher's odd-even merge (Knuth, The
Art of Computer Programming, volume 3, section 5.3.4, which allows unequal lengths): a fixed sequence
of minima and maxima of whole arrays. Where a longer window is not needed for another, only the wanted
elements are selected. Windows that lack a day are few; they are sorted one by one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from manyhead.stocks.factors.sliding import plan

Values = NDArray[np.float32]
Floats = NDArray[np.float64]


def quantiles(
    values: Values, count: dict[int, Floats], levels: Sequence[float], windows: tuple[int, ...]
) -> dict[int, list[Floats]]:
    """Quantiles of each window by linear interpolation, missing values left out.

    Args:
        values: (days, symbols), NaN where missing.
        count: values that each window holds.
        levels: of the quantiles, in 0..1.
        windows: lengths in days.

    Returns:
        window -> one (days, symbols) a level; NaN where the last day of the window is missing.
    """
    found = {window: [np.full(values.shape, np.nan) for _ in levels] for window in windows}
    steps = plan(windows)
    parts = {part for step in steps for part in (step.newer, step.older)}
    ordered: dict[int, list[Values]] = {1: [values]}
    for width, newer, older in steps:
        if len(values) < width:
            break
        first = [column[older:] for column in ordered[newer]]  # row w-1 of the panel is row 0 of width w
        second = [column[: len(values) - width + 1] for column in ordered[older]]
        if width in parts:
            ordered[width] = merged(first, second)
        if width in windows:
            for out, level in zip(found[width], levels, strict=True):
                place = level * (width - 1)
                low = int(place)
                ends = [
                    ordered[width][k] if width in parts else selected(first, second, k)
                    for k in (low, min(low + 1, width - 1))
                ]
                lower = ends[0].astype(np.float64)
                out[width - 1 :] = lower + (ends[1] - lower) * (place - low)
    for window in windows:
        _sort_gapped(values, count[window], levels, window, found[window])
    return found


def ranks(values: Values, windows: tuple[int, ...]) -> dict[int, NDArray[np.int32]]:
    """Twice the average rank of each window's last day among its values, 1-based, less one.

    With L values below the last one and E equal to it (itself included) the average rank is
    L + (E + 1) / 2; this returns 2L + E, from which it is (2L + E + 1) / 2. Missing values count for nothing.
    """
    kind = np.uint8 if 2 * max(windows) < 256 else np.int32
    twice = np.ones(values.shape, kind)  # the day itself
    found = {}
    for age in range(1, max(windows) + 1):
        if age in windows:
            found[age] = twice.astype(np.int32)
        last, past = values[age:], values[:-age]
        twice[age:] += last > past
        twice[age:] += last >= past
    return found


def merged(first: list[Values], second: list[Values]) -> list[Values]:
    """Merge two ascending lists of arrays into one, element by element."""
    if not first or not second:
        return first or second
    if len(first) == len(second) == 1:
        return [np.minimum(first[0], second[0]), np.maximum(first[0], second[0])]
    odd = merged(first[::2], second[::2])
    even = merged(first[1::2], second[1::2])
    whole = [odd[0]]
    for index, high in enumerate(odd[1:]):
        if index < len(even):
            whole += [np.minimum(even[index], high), np.maximum(even[index], high)]
        else:
            whole.append(high)
    return whole + even[len(odd) - 1 :]


def selected(first: list[Values], second: list[Values], k: int) -> Values:
    """Return the k-th smallest (from 0) of two ascending lists together.

    Of every way to take i elements of the first and k + 1 - i of the second, the right one has the
    smallest maximum.
    """
    best: Values | None = None
    for i in range(max(0, k + 1 - len(second)), min(len(first), k + 1) + 1):
        if i == 0:
            highest = second[k]
        elif i == k + 1:
            highest = first[k]
        else:
            highest = np.maximum(first[i - 1], second[k - i])
        best = highest if best is None else np.minimum(best, highest)
    assert best is not None
    return best


def _sort_gapped(
    values: Values, count: Floats, levels: Sequence[float], window: int, found: list[Floats]
) -> None:
    """Fill in the windows that lack a day but not their last one."""
    day, symbol = np.nonzero((count < window) & ~np.isnan(values))
    if len(day) == 0:
        return
    padded = np.concatenate([np.full((window - 1, values.shape[1]), np.nan, np.float32), values])
    ordered = np.sort(sliding_window_view(padded, window, axis=0)[day, symbol], axis=-1)  # NaN last
    row = np.arange(len(day))
    last = count[day, symbol].astype(np.int64) - 1
    for out, level in zip(found, levels, strict=True):
        place = level * last
        low = place.astype(np.int64)
        lower = ordered[row, low].astype(np.float64)
        upper = ordered[row, np.minimum(low + 1, last)]
        out[day, symbol] = lower + (upper - lower) * (place - low)
