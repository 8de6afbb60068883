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
        return _longer(newer, older[:-shift], shift)

    return sliding(values, windows, merge)


def highest(values: Values, windows: Sequence[int]) -> dict[int, Values]:
    """Maximum over each window, missing values left out."""

    def merge(newer: Values, older: Values, shift: int) -> Values:
        whole = np.empty_like(newer)
        whole[:shift] = newer[:shift]
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
    freedom: dict[int, Floats]  # count - 1, NaN below 1: what squared deviations are divided by
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
            count[width] = _longer(newer, before, shift)
            share[width] = before / np.maximum(count[width][shift:], 1)
            weight[width] = newer[shift:] * share[width]
        freedom = {width: np.where(n > 1, n - 1, np.nan) for width, n in count.items() if width in windows}
        return cls(present, windows, count, freedom, share, weight)

    def deviation(self, squares: Floats, window: int) -> Floats:
        """Sample standard deviation of a window from its squared deviations; NaN below two values."""
        ratio = squares / self.freedom[window]
        return np.sqrt(ratio, out=ratio)


class Moments(NamedTuple):
    """Mean and sum of squared deviations; 0 and 0 for a window without values."""

    mean: Floats
    squares: Floats


def moments(values: NDArray[Any], tally: Tally, *, aging: bool = False) -> dict[int, Moments]:
    """Mean and squared deviations of the values that the tally counts.

    With `aging` a value falls by one a day: zeros become time, 0 on the last day of each window.
    """
    leaf = np.where(tally.present, values, 0).astype(np.float64)
    states = {1: Moments(leaf, np.zeros(leaf.shape))}
    for width, shift, older in plan(tally.windows):
        newer, before = states[shift], states[older]
        apart = before.mean[:-shift] - newer.mean[shift:]
        if aging:
            apart -= shift
        mean = _longer(newer.mean, apart * tally.share[width], shift)
        np.multiply(apart, apart, out=apart)
        apart *= tally.weight[width]
        apart += before.squares[:-shift]
        states[width] = Moments(mean, _longer(newer.squares, apart, shift))
    return states


def products(
    x: dict[int, Moments], y: dict[int, Moments], tally: Tally, *, aging: bool = False
) -> dict[int, Floats]:
    """Sum of the products of two series' deviations, from their moments under the same tally.

    Args:
        x: moments of the first series; with `aging`, those of time.
        y: moments of the second series.
        tally: which days both have.
        aging: x is time, counted from each window's own last day.
    """
    states = {1: np.zeros(tally.present.shape)}
    for width, shift, older in plan(tally.windows):
        apart = x[older].mean[:-shift] - x[shift].mean[shift:]
        if aging:
            apart -= shift
        apart *= y[older].mean[:-shift] - y[shift].mean[shift:]
        apart *= tally.weight[width]
        apart += states[older][:-shift]
        states[width] = _longer(states[shift], apart, shift)
    return states


def _longer(newer: NDArray[Number], more: NDArray[Number], shift: int) -> NDArray[Number]:
    """Add what older days bring; the first `shift` rows have none."""
    whole = np.empty_like(newer)
    whole[:shift] = newer[:shift]
    np.add(newer[shift:], more, out=whole[shift:])
    return whole
