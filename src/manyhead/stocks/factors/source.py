"""Where factors come from: a source gives rows of (days, symbols, factors) on demand.

A window model reads the same row in up to twenty windows, and 4,000 stocks x 3,500 days x 360 factors are
20 GB. So nothing downstream asks for an array: it asks a `FactorSource` for the rows that it needs. A source
may hold them (`Factors`), compute them (`LaggedAlpha360`), or derive them from another (preprocessing).
Every source gives the same bits for a row, however the rows are cut into requests.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from manyhead.errors import InputError

Rows = NDArray[np.float32]  # (days, symbols, factors)

# prices of today over today's close belong to both of Qlib's sets
SHARED = frozenset({"OPEN0", "HIGH0", "LOW0", "VWAP0"})
BLOCK = 32  # rows a request of `store` asks for; small enough to stay in the second-level cache


@runtime_checkable
class FactorSource(Protocol):
    """Factors of a panel, row by row.

    `names` holds one name a factor, `days` the number of rows, and `rows(start, stop)` returns
    (stop - start, symbols, factors) float32, NaN where missing. The result may be a view: do not write
    into it.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def days(self) -> int: ...

    def rows(self, start: int, stop: int) -> Rows: ...


@dataclass(frozen=True)
class Factors:
    """Factors held as one array.

    Args:
        names: one name a factor.
        values: (days, symbols, factors) float32.

    Raises:
        InputError: if names and values do not belong together, or a name comes twice.
    """

    names: tuple[str, ...]
    values: Rows

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[-1] != len(self.names):
            raise InputError(
                f"values must be (days, symbols, {len(self.names)}) for {len(self.names)} names, "
                f"got shape {self.values.shape}"
            )
        require_distinct(self.names)

    @property
    def days(self) -> int:
        """Number of rows."""
        return len(self.values)

    def rows(self, start: int, stop: int) -> Rows:
        """Return a view of some rows."""
        return self.values[start:stop]


@dataclass(frozen=True)
class Stretch:
    """Some rows of a source, computed once and held; no other row may be asked for.

    Args:
        names: one name a factor.
        days: rows of the source.
        start: row at which the values begin.
        values: (held rows, symbols, factors) float32.
    """

    names: tuple[str, ...]
    days: int
    start: int
    values: Rows

    def rows(self, start: int, stop: int) -> Rows:
        """Return a view of some rows.

        Raises:
            InputError: if they are not all held.
        """
        if not self.start <= start <= stop <= self.start + len(self.values):
            held = f"{self.start}..{self.start + len(self.values)}"
            raise InputError(f"rows {start}..{stop} of the factors are not held, {held} are")
        return self.values[start - self.start : stop - self.start]


def stretch(source: FactorSource, rows: range) -> Stretch:
    """Compute some rows of a source and hold them."""
    values = np.ascontiguousarray(source.rows(rows.start, rows.stop))
    return Stretch(source.names, source.days, rows.start, values)


@dataclass(frozen=True)
class Joined:
    """Several sources side by side.

    Args:
        sources: at least one, all over the same days.

    Raises:
        InputError: if their days differ or a factor's name comes twice.
    """

    sources: tuple[FactorSource, ...]

    def __post_init__(self) -> None:
        days = {source.days for source in self.sources}
        if len(days) != 1:
            raise InputError(f"factor sources to join must cover the same days, got {sorted(days)}")
        require_distinct(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all sources, in order."""
        return tuple(name for source in self.sources for name in source.names)

    @property
    def days(self) -> int:
        """Number of rows."""
        return self.sources[0].days

    def rows(self, start: int, stop: int) -> Rows:
        """Return the rows of all sources, side by side."""
        return np.concatenate([source.rows(start, stop) for source in self.sources], axis=-1)


@dataclass(frozen=True)
class Chosen:
    """Some factors of a source, in the order given.

    Args:
        source: where rows come from.
        names: factors to keep.

    Raises:
        InputError: if the source has no such factor.
    """

    source: FactorSource
    names: tuple[str, ...]
    _columns: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        place = {name: index for index, name in enumerate(self.source.names)}
        absent = [name for name in self.names if name not in place]
        if absent:
            raise InputError(f"there is no factor {absent[0]!r} among the {len(place)} of this source")
        object.__setattr__(self, "_columns", np.array([place[name] for name in self.names], np.int64))

    @property
    def days(self) -> int:
        """Number of rows."""
        return self.source.days

    def rows(self, start: int, stop: int) -> Rows:
        """Return the kept factors of some rows."""
        return self.source.rows(start, stop)[..., self._columns]


def join(sources: Sequence[FactorSource]) -> FactorSource:
    """Put factor sources side by side; a single one is returned as it is.

    The four of Alpha158's factors that are Alpha360's too (OPEN0, HIGH0, LOW0, VWAP0) are kept once.

    Raises:
        InputError: if there is none, if their days differ, or if a factor's name comes twice.
    """
    if not sources:
        raise InputError("at least one factor source is needed, got none")
    seen: set[str] = set()
    kept: list[FactorSource] = []
    for source in sources:
        rest = tuple(name for name in source.names if name not in seen or name not in SHARED)
        kept.append(source if rest == source.names else Chosen(source, rest))
        seen.update(rest)
    return kept[0] if len(kept) == 1 else Joined(tuple(kept))


def store(source: FactorSource, stop: int | None = None, threads: int | None = None) -> Factors:
    """Compute the rows of a source and hold them.

    Args:
        source: any source.
        stop: row before which to stop; None takes every day.
        threads: rows are computed block by block by so many; None takes PyTorch's number.
    """
    days = source.days if stop is None else stop
    symbols = source.rows(0, 0).shape[1]
    values = np.empty((days, symbols, len(source.names)), np.float32)

    def fill(start: int, end: int) -> None:
        values[start:end] = source.rows(start, end)

    in_blocks(days, fill, threads)
    return Factors(source.names, values)


def in_blocks(
    days: int, work: Callable[[int, int], None], threads: int | None = None, block: int = BLOCK
) -> None:
    """Call `work(start, stop)` over `days` rows, block by block, by several threads."""
    spans = [(start, min(start + block, days)) for start in range(0, days, block)]
    workers = min(torch.get_num_threads() if threads is None else threads, len(spans))
    if workers <= 1:
        for start, stop in spans:
            work(start, stop)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda span: work(*span), spans):
            pass


def require_distinct(names: Sequence[str]) -> None:
    """Raise InputError if a factor's name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"factor {name!r} comes twice; every factor needs a name of its own")
        seen.add(name)
