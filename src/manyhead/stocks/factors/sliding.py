"""Statistics of the last d days, for several d at once, by merging shorter windows into longer ones.

A window of 60 days is the newer 30 days and the 30 before them; 30 is 20 and 10, and so on, so that the five
windows of Alpha158 cost seven merges each. No running sum is carried along a series: a row's
value depends on the days of its own window only, is the same bits wherever a computation starts, and
loses nothing to cancellation. Moments merge as in Chan, Golub and LeVeque, 'Updating formulae and a
pairwise algorithm for computing sample variances', 1979.

Arrays are (days, symbols). Days before the first row count as absent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = NDArray[np.float32]
KeyAge = tuple[Values, NDArray[np.int16]]
State = TypeVar("State")
Number = TypeVar("Number", np.float32, np.float64)


class Merge(NamedTuple):
    """A window of `width` days made of its `newer` days and the `older` days before them."""

    width: int
    newer: int
    older: int


@lru_cache
def plan(windows: tuple[int, ...]) -> tuple[Merge, ...]:
    """List merges that build every window from single days, shortest first."""
    known = {1}
    merges: list[Merge] = []

    def build(width: int) -> None:
        if width in known:
            return
        halves = [newer for newer in known if width - newer in known]
        newer = max(halves, default=(width + 1) // 2)
        build(width - newer)
        build(newer)
        known.add(width)
        merges.append(Merge(width, newer, width - newer))

    for window in sorted(windows):
        build(window)
    return tuple(merges)


def sliding(
    leaf: State, windows: Sequence[int], merge: Callable[[State, State, int], State]
) -> dict[int, State]:
    """Build the state of every window; `merge(newer, older, shift)` must move `older` by `shift` days."""
    states = {1: leaf}
    for step in plan(tuple(windows)):
        states[step.width] = merge(states[step.newer], states[step.older], step.newer)
    return {window: states[window] for window in windows}


def sums(values: NDArray[Number], windows: Sequence[int]) -> dict[int, NDArray[Number]]:
    """Sum over each window; `values` must hold a number everywhere."""

    def merge(newer: NDArray[Number], older: NDArray[Number], shift: int) -> NDArray[Number]:
        whole = newer.copy()
        whole[shift:] += older[:-shift]
        return whole

    return sliding(values, windows, merge)


def highest(values: Values, windows: Sequence[int]) -> dict[int, Values]:
    """Maximum over each window, missing values left out."""

    def merge(newer: Values, older: Values, shift: int) -> Values:
        whole = newer.copy()
        np.fmax(newer[shift:], older[:-shift], out=whole[shift:])
        return whole

    return sliding(values, windows, merge)


def age_of_highest(keys: Values, windows: Sequence[int]) -> dict[int, NDArray[np.int16]]:
    """Days since the maximum of each window, the oldest of equals; `keys` must hold no NaN."""

    def merge(newer: KeyAge, older: KeyAge, shift: int) -> KeyAge:
        key, age = newer[0].copy(), newer[1].copy()
        earlier = older[0][:-shift] >= key[shift:]
        np.copyto(key[shift:], older[0][:-shift], where=earlier)
        np.copyto(age[shift:], older[1][:-shift] + np.int16(shift), where=earlier)
        return key, age

    states = sliding((keys, np.zeros(keys.shape, np.int16)), windows, merge)
    return {window: age for window, (_, age) in states.items()}


@dataclass(frozen=True)
class Tally:
    """How many values each window holds, and the weights with which its two parts merge.

    Args:
        present: (days, symbols), where a value exists.
        windows: lengths in days.
    """

    present: NDArray[np.bool_]
    windows: tuple[int, ...]
    count: dict[int, Floats]
    # by width, on the days that have an older part: n_older / n, and n_newer * n_older / n
    share: dict[int, Floats]
    weight: dict[int, Floats]

    @classmethod
    def of(cls, present: NDArray[np.bool_], windows: tuple[int, ...]) -> "Tally":
        """Count."""
        steps = plan(windows)
        count = {1: present.astype(np.float64)}
        share, weight = {}, {}
        for width, shift, older in steps:
            newer, before = count[shift], count[older][:-shift]
            count[width] = newer.copy()
            count[width][shift:] += before
            share[width] = before / np.maximum(count[width][shift:], 1)
            weight[width] = newer[shift:] * share[width]
        return cls(present, windows, count, share, weight)


class Moments(NamedTuple):
    """Mean and sum of squared deviations; 0 and 0 for a window without values."""

    mean: Floats
    squares: Floats


def moments(values: NDArray[Any], tally: Tally) -> dict[int, Moments]:
    """Mean and squared deviations of the values that the tally counts."""
    leaf = np.where(tally.present, values, 0).astype(np.float64)
    states = {1: Moments(leaf, np.zeros(leaf.shape))}
    for width, shift, older in plan(tally.windows):
        mean, squares = (part.copy() for part in states[shift])
        before = states[older]
        apart = before.mean[:-shift] - mean[shift:]
        mean[shift:] += apart * tally.share[width]
        np.multiply(apart, apart, out=apart)
        apart *= tally.weight[width]
        apart += before.squares[:-shift]
        squares[shift:] += apart
        states[width] = Moments(mean, squares)
    return states


def products(
    x: dict[int, Moments], y: dict[int, Moments], tally: Tally, *, aging: bool = False
) -> dict[int, Floats]:
    """Sum of the products of two series' deviations, from their moments under the same tally.

    Args:
        x: moments of the first series; with `aging`, those of `ages`.
        y: moments of the second series.
        tally: which days both have.
        aging: x is time, counted from each window's own last day.
    """
    states = {1: np.zeros(tally.present.shape)}
    for width, shift, older in plan(tally.windows):
        whole = states[shift].copy()
        apart = x[older].mean[:-shift] - x[shift].mean[shift:]
        if aging:
            apart -= shift
        apart *= y[older].mean[:-shift] - y[shift].mean[shift:]
        apart *= tally.weight[width]
        apart += states[older][:-shift]
        whole[shift:] += apart
        states[width] = whole
    return states


def ages(tally: Tally) -> dict[int, Moments]:
    """Moments of time over the days that the tally counts: 0 for the last day of a window, -1 before it."""
    zero = np.zeros(tally.present.shape)
    states = {1: Moments(zero, zero)}
    for width, shift, older in plan(tally.windows):
        mean, squares = (part.copy() for part in states[shift])
        before = states[older]
        apart = before.mean[:-shift] - mean[shift:]
        apart -= shift
        mean[shift:] += apart * tally.share[width]
        np.multiply(apart, apart, out=apart)
        apart *= tally.weight[width]
        apart += before.squares[:-shift]
        squares[shift:] += apart
        states[width] = Moments(mean, squares)
    return states


def deviation(squares: Floats, count: Floats) -> Floats:
    """Sample standard deviation; NaN below two values."""
    return np.sqrt(squares / np.where(count > 1, count - 1, np.nan))
