"""Patterns that carry data: a mask, valid lengths, chosen queries, one pattern per head or sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid, Reach, coordinates
from manyhead.pattern.base import Coordinates, Pattern, Place
from manyhead.pattern.shapes import _flat


@dataclass(frozen=True, eq=False)
class Explicit(Pattern):
    """A mask given entry by entry.

    Args:
        allowed: Booleans `(queries, keys)`, or `(samples or 1, heads or 1, queries, keys)`.

    Raises:
        InputError: if it is not Boolean or has another number of axes.
    """

    allowed: Tensor

    def __post_init__(self) -> None:
        allowed = torch.as_tensor(self.allowed)
        if allowed.dtype != torch.bool or allowed.ndim not in (2, 4):
            raise InputError(
                f"allowed takes Booleans (queries, keys) or (samples, heads, queries, keys); "
                f"got {allowed.dtype} of shape {tuple(allowed.shape)}"
            )
        object.__setattr__(self, "allowed", allowed)
        if allowed.ndim == 4:
            object.__setattr__(self, "samples", allowed.shape[0] if allowed.shape[0] > 1 else None)
            object.__setattr__(self, "heads", allowed.shape[1] if allowed.shape[1] > 1 else None)

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        shape = (math.prod(query_grid), math.prod(key_grid))
        if tuple(self.allowed.shape[-2:]) != shape:
            raise InputError(
                f"a mask of {tuple(self.allowed.shape[-2:])} does not fit "
                f"{shape[0]} queries and {shape[1]} keys"
            )

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        allowed = self.allowed.to(key[0].device)
        q, k = _flat(query, place.query_grid), _flat(key, place.key_grid)
        if allowed.ndim == 2:
            return allowed[q, k]
        zero = torch.zeros((), dtype=torch.int64, device=q.device)
        sample = zero if self.samples is None or place.sample is None else place.sample
        head = zero if self.heads is None or place.head is None else place.head
        return allowed[sample, head, q, k]

    def for_sample(self, sample: int) -> Pattern:
        return self if self.samples is None else Explicit(self.allowed[sample : sample + 1])

    def for_head(self, head: int) -> Pattern:
        return self if self.heads is None else Explicit(self.allowed[:, head : head + 1])

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        return int(self.allowed.sum())

    def sentence(self) -> str:
        share = float(self.allowed.float().mean())
        return f"each query sees what a given mask allows ({share:.1%} of all pairs)"


@dataclass(frozen=True)
class _Keys(Pattern):
    """The first keys of every axis."""

    lengths: tuple[int, ...]

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        answer = query[0] >= 0
        for k, length in zip(key, self.lengths, strict=True):
            answer = answer & (k < length)
        return answer

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...] | None:
        if len(query_grid) != len(key_grid):
            return None
        return tuple(
            Reach(np.zeros(q, np.int64), np.full(q, length), 1, k)
            for q, k, length in zip(query_grid, key_grid, self.lengths, strict=True)
        )

    def sentence(self) -> str:
        return f"each query sees the first {' x '.join(map(str, self.lengths))} keys"


@dataclass(frozen=True)
class Valid(Pattern):
    """Keys within each sample's own length: padding is not seen.

    Args:
        lengths: one length per sample (1-D grids), or one tuple of a length per axis.

    Raises:
        InputError: if there is no sample or a length is negative.
    """

    lengths: tuple[int | tuple[int, ...], ...]

    def __post_init__(self) -> None:
        given = self.lengths.tolist() if isinstance(self.lengths, Tensor) else self.lengths
        lengths = tuple(tuple(v) if isinstance(v, list | tuple) else int(v) for v in given)
        object.__setattr__(self, "lengths", lengths)
        if not lengths:
            raise InputError("lengths takes one length per sample, got none")
        if any(min(per_axis) < 0 for per_axis in self._by_axis()):
            raise InputError(f"lengths are at or above zero, got {lengths}")
        object.__setattr__(self, "samples", len(lengths))

    def _by_axis(self) -> list[tuple[int, ...]]:
        return [value if isinstance(value, tuple) else (value,) for value in self.lengths]

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        for sample, lengths in enumerate(self._by_axis()):
            if len(lengths) != len(key_grid):
                raise InputError(
                    f"lengths has {len(lengths)} per sample for keys of {len(key_grid)} axes {key_grid}"
                )
            if any(length > size for length, size in zip(lengths, key_grid, strict=True)):
                raise InputError(f"length {lengths} of sample {sample} is above the key grid {key_grid}")

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        if place.sample is None:
            raise InputError("valid lengths differ by sample; ask for one with for_sample")
        table = torch.tensor(self._by_axis(), device=key[0].device)
        answer = query[0] >= 0
        for axis, k in enumerate(key):
            answer = answer & (k < table[place.sample, axis])
        return answer

    def for_sample(self, sample: int) -> Pattern:
        return _Keys(self._by_axis()[sample])

    def sentence(self) -> str:
        return f"each query sees keys within the lengths {', '.join(map(str, self.lengths))} of the samples"


@dataclass(frozen=True)
class _Choice(Pattern):
    """One of several patterns, by sample or by head."""

    patterns: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", tuple(self.patterns))
        if not self.patterns or not all(isinstance(p, Pattern) for p in self.patterns):
            raise InputError(f"{type(self).__name__} takes one pattern each, got {self.patterns!r}")

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        for pattern in self.patterns:
            pattern.check(query_grid, key_grid)

    def query_grid(self, key_grid: Grid) -> Grid:
        grids = {pattern.query_grid(key_grid) for pattern in self.patterns}
        if len(grids) != 1:
            raise InputError(
                f"on keys {key_grid} the patterns are made for different queries {sorted(grids)}"
            )
        return grids.pop()

    def _select(self, index: Tensor, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        answer = self.patterns[0].sees(query, key, place)
        for number, pattern in enumerate(self.patterns[1:], 1):
            answer = torch.where(index == number, pattern.sees(query, key, place), answer)
        return answer


class PerSample(_Choice):
    """One pattern per sample of the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "samples", len(self.patterns))
        heads = {pattern.heads for pattern in self.patterns} - {None}
        if any(p.samples for p in self.patterns) or len(heads) > 1:
            raise InputError("the patterns of PerSample are each for one sample, and for equally many heads")
        object.__setattr__(self, "heads", next(iter(heads), None))

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        if place.sample is None:
            raise InputError("the pattern differs by sample; ask for one with for_sample")
        return self._select(place.sample, query, key, place)

    def for_sample(self, sample: int) -> Pattern:
        return self.patterns[sample]

    def for_head(self, head: int) -> Pattern:
        return PerSample(tuple(pattern.for_head(head) for pattern in self.patterns))

    def sentence(self) -> str:
        return "; ".join(f"in sample {i} {p.sentence()}" for i, p in enumerate(self.patterns))


class PerHead(_Choice):
    """One pattern per head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "heads", len(self.patterns))
        samples = {pattern.samples for pattern in self.patterns} - {None}
        if any(p.heads for p in self.patterns) or len(samples) > 1:
            raise InputError("the patterns of PerHead are each for one head, and for equally many samples")
        object.__setattr__(self, "samples", next(iter(samples), None))

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        if place.head is None:
            raise InputError("the pattern differs by head; ask for one with for_head")
        return self._select(place.head, query, key, place)

    def for_sample(self, sample: int) -> Pattern:
        return PerHead(tuple(pattern.for_sample(sample) for pattern in self.patterns))

    def for_head(self, head: int) -> Pattern:
        return self.patterns[head]

    def sentence(self) -> str:
        return "; ".join(f"in head {i} {p.sentence()}" for i, p in enumerate(self.patterns))


@dataclass(frozen=True)
class Chosen(Pattern):
    """Only some queries of a pattern: the query grid becomes `(len(positions),)`.

    Args:
        pattern: what each query sees.
        positions: flat row-major positions of the queries on the pattern's query grid, or one
            coordinate tuple each.
    """

    pattern: Pattern
    positions: tuple[int | tuple[int, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        given: Sequence[object] = (
            self.positions.tolist() if isinstance(self.positions, Tensor) else list(self.positions)
        )
        positions = tuple(tuple(p) if isinstance(p, list | tuple) else int(p) for p in given)  # type: ignore[call-overload]
        if not positions:
            raise InputError("positions takes at least one query, got none")
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "samples", self.pattern.samples)
        object.__setattr__(self, "heads", self.pattern.heads)

    def flat(self, key_grid: Grid) -> list[int]:
        """Flat positions on the query grid of the pattern.

        Raises:
            InputError: if a position lies outside the grid.
        """
        grid = self.pattern.query_grid(key_grid)
        flat = []
        for position in self.positions:
            if isinstance(position, tuple):
                if len(position) != len(grid) or any(
                    not 0 <= p < n for p, n in zip(position, grid, strict=True)
                ):
                    raise InputError(f"position {position} is not on the query grid {grid}")
                position = int(np.ravel_multi_index(position, grid))
            if not 0 <= position < math.prod(grid):
                raise InputError(f"position {position} is not among the {math.prod(grid)} queries of {grid}")
            flat.append(position)
        return flat

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        self.flat(key_grid)
        number = len(self.positions)
        if query_grid != (number,):
            raise InputError(f"{number} chosen queries have the grid ({number},), got {query_grid}")
        self.pattern.check(self.pattern.query_grid(key_grid), key_grid)

    def query_grid(self, key_grid: Grid) -> Grid:
        return (len(self.positions),)

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        grid = self.pattern.query_grid(place.key_grid)
        flat = torch.tensor(self.flat(place.key_grid), device=query[0].device)[query[0]]
        return self.pattern.sees(coordinates(flat, grid), key, replace(place, query_grid=grid))

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...] | None:
        if len(key_grid) != 1:
            return None
        base = self.pattern.reach(self.pattern.query_grid(key_grid), key_grid)
        if base is None or base[0].step != 1:
            return None  # a subset breaks up the residue classes
        rows = self.flat(key_grid)
        return (replace(base[0], start=base[0].start[rows], count=base[0].count[rows]),)

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        base = self.pattern.reach(self.pattern.query_grid(key_grid), key_grid)
        if base is None:
            return super().count(query_grid, key_grid)
        where = np.unravel_index(self.flat(key_grid), self.pattern.query_grid(key_grid))
        counts = [axis.count[place] for axis, place in zip(base, where, strict=True)]
        return int(np.prod(counts, axis=0).sum())

    def for_sample(self, sample: int) -> Pattern:
        return Chosen(self.pattern.for_sample(sample), self.positions)

    def for_head(self, head: int) -> Pattern:
        return Chosen(self.pattern.for_head(head), self.positions)

    def sentence(self) -> str:
        return f"for {len(self.positions)} chosen queries, {self.pattern.sentence()}"
