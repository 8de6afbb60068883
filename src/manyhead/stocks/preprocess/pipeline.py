"""An ordered pipeline of factor transformations, fitted on training rows, applied row by row.

A step turns one `FactorSource` into another. What a step learns (means, quantiles) comes from the training
rows alone and travels as plain arrays, so that a run can store it and a later day can be scored with
it. A day's result depends on that day, on the days before it that the step says it looks back to, and on
what was learnt: never on later rows, and never on how rows are requested.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.factors.source import FactorSource, Rows

State = dict[str, NDArray[Any]]  # what a step learnt; empty for most


class Step(Protocol):
    """One transformation: `fit` learns from training rows, `apply` wraps a source."""

    def fit(self, source: FactorSource, rows: range) -> State: ...

    def apply(self, source: FactorSource, state: State) -> FactorSource: ...


@dataclass(frozen=True)
class Derived:
    """A source made from another by a change of its rows.

    Args:
        source: where rows come from.
        change: (days, symbols, factors) and the calendar row of the first day -> same shape, new array.
        lookback: days before a row that `change` must see to give that row; None means all of them.
    """

    source: FactorSource
    change: Callable[[Rows, int], Rows]
    lookback: int | None = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the factors, as the source has them."""
        return self.source.names

    @property
    def days(self) -> int:
        """Number of rows."""
        return self.source.days

    def rows(self, start: int, stop: int) -> Rows:
        """Compute some rows."""
        first = 0 if self.lookback is None else max(0, start - self.lookback)
        return self.change(self.source.rows(first, stop), first)[start - first :]


class Daily:
    """A step that learns nothing and treats each day by itself; subclasses write `day`."""

    def day(self, values: NDArray[np.float64], row: int) -> NDArray[np.float64]:
        """Transform calendar row `row`: (factors, symbols), each factor's cross-section contiguous."""
        raise NotImplementedError

    def fit(self, source: FactorSource, rows: range) -> State:
        """Learn nothing."""
        return {}

    def apply(self, source: FactorSource, state: State) -> FactorSource:
        """Return the source of transformed days."""
        return _days(source, (self,))


def _days(source: FactorSource, steps: tuple[Daily, ...]) -> FactorSource:
    """Apply adjoining daily steps, in float64 from the first to the last."""

    def change(values: Rows, first: int) -> Rows:
        changed = np.empty(values.shape, np.float32)
        for index, one in enumerate(values):  # by day: sums must not depend on the days asked together
            day = np.ascontiguousarray(one.T, np.float64)
            for step in steps:
                day = step.day(day, first + index)
            changed[index] = day.T
        return changed

    return Derived(source, change)


@dataclass(frozen=True)
class Fitted:
    """A pipeline with what it learnt.

    Args:
        steps: the transformations, in order.
        states: what each learnt.
    """

    steps: tuple[Step, ...]
    states: tuple[State, ...]

    def apply(self, source: FactorSource) -> FactorSource:
        """Return the transformed source; rows are computed when asked for."""
        daily: tuple[Daily, ...] = ()
        for step, state in zip(self.steps, self.states, strict=True):
            if isinstance(step, Daily):
                daily = (*daily, step)
                continue
            if daily:
                source, daily = _days(source, daily), ()
            source = step.apply(source, state)
        return _days(source, daily) if daily else source

    def state(self) -> State:
        """Return everything learnt as one flat mapping, for a checkpoint."""
        return {f"{n}.{name}": array for n, state in enumerate(self.states) for name, array in state.items()}


@dataclass(frozen=True)
class Pipeline:
    """Transformations in order.

    Args:
        steps: each sees the result of those before it.
    """

    steps: tuple[Step, ...]

    def fit(self, source: FactorSource, rows: range) -> Fitted:
        """Learn from training rows only.

        Args:
            source: raw factors.
            rows: the training rows; each step is fitted on what its predecessors made of them.

        Raises:
            InputError: if the rows are empty or not rows of the source.
        """
        if not 0 <= rows.start < rows.stop <= source.days:
            raise InputError(f"training rows {rows.start}..{rows.stop} do not lie in 0..{source.days}")
        states: list[State] = []
        for index, step in enumerate(self.steps):
            before = Fitted(self.steps[:index], tuple(states)).apply(source)
            states.append(step.fit(before, rows))
        return Fitted(self.steps, tuple(states))

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Fitted:
        """Rebuild a fitted pipeline from the mapping that `Fitted.state` gave."""
        states: list[State] = [{} for _ in self.steps]
        for key, array in state.items():
            index, _, name = key.partition(".")
            if not index.isdigit() or int(index) >= len(states):
                raise InputError(f"this pipeline of {len(states)} steps has no place for state {key!r}")
            states[int(index)][name] = array
        return Fitted(self.steps, tuple(states))
