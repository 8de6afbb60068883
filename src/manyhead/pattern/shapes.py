"""Patterns without a sliding window: everything, causal, blocks, lattices, halos, prefixes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid, Reach, per_axis
from manyhead.pattern.base import Coordinates, Pattern, Place, Term
from manyhead.pattern.window import WHOLE, _by, frozen, whole_numbers


def _same_grids(name: str, query_grid: Grid, key_grid: Grid) -> None:
    if query_grid != key_grid:
        raise InputError(f"{name} needs queries and keys on one grid, got {query_grid} and {key_grid}")


@dataclass(frozen=True)
class Everything(Pattern):
    """Every query sees every key; the grids may differ."""

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        return (query[0] >= 0) & (key[0] >= 0)

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...] | None:
        if len(query_grid) != len(key_grid):
            return None
        return tuple(Reach.whole(q, k) for q, k in zip(query_grid, key_grid, strict=True))

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        return math.prod(query_grid) * math.prod(key_grid)

    def sentence(self) -> str:
        return "each query sees every key"


@dataclass(frozen=True)
class Causal(Pattern):
    """Keys up to the query on the causal axes, every key on the others.

    Args:
        axes: True for all axes, or one flag per axis.
    """

    axes: bool | tuple[bool, ...] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", frozen(self.axes))
        if not all(
            isinstance(c, bool) for c in (self.axes if isinstance(self.axes, tuple) else (self.axes,))
        ):
            raise InputError(f"axes takes True or False per axis, got {self.axes!r}")

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        _same_grids("Causal", query_grid, key_grid)
        per_axis(self.axes, len(key_grid), "axes")

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        answer = (query[0] >= 0) & (key[0] >= 0)
        for causal, q, k in zip(per_axis(self.axes, len(key), "axes"), query, key, strict=True):
            answer = answer & (k <= q) if causal else answer
        return answer

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...]:
        return tuple(
            Reach(np.zeros(n, np.int64), np.arange(1, n + 1), 1, n) if causal else Reach.whole(n, n)
            for causal, n in zip(per_axis(self.axes, len(key_grid), "axes"), key_grid, strict=True)
        )

    def sentence(self) -> str:
        if isinstance(self.axes, tuple):
            named = ", ".join(str(i) for i, causal in enumerate(self.axes) if causal)
            return f"each query sees keys up to itself on axis {named}" if named else Everything().sentence()
        return "each query sees keys up to itself" if self.axes else Everything().sentence()


class _AxisRule(Pattern):
    """A pattern that is one rule per axis on queries and keys of one grid."""

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        _same_grids(type(self).__name__, query_grid, key_grid)
        self.rules(key_grid)

    def rules(self, grid: Grid) -> list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]]:
        """Per axis the definition on positions and the progressions."""
        raise NotImplementedError

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        answer = (query[0] >= 0) & (key[0] >= 0)
        for (rule, _), q, k in zip(self.rules(place.key_grid), query, key, strict=True):
            answer = answer & rule(q, k)
        return answer

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...]:
        return tuple(reach for _, reach in self.rules(key_grid))


def _anything(query: Tensor, key: Tensor) -> Tensor:
    return (query >= 0) & (key >= 0)


def _same_block(size: int, query: Tensor, key: Tensor) -> Tensor:
    return query // size == key // size


def _same_residue(step: int, query: Tensor, key: Tensor) -> Tensor:
    return query % step == key % step


@dataclass(frozen=True)
class Blocks(_AxisRule):
    """Neighbouring tokens in blocks of `size` see each other (window attention without shift).

    Args:
        size: block size per axis, -1 for the whole axis; the last block of an axis may be smaller.
    """

    size: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", frozen(self.size))
        whole_numbers("size", self.size, 1, whole=True)

    def rules(self, grid: Grid) -> list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]]:
        found: list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]] = []
        for tokens, size in zip(grid, per_axis(self.size, len(grid), "size"), strict=True):
            if size == WHOLE:
                found.append((_anything, Reach.whole(tokens, tokens)))
                continue
            start = np.arange(tokens) // size * size
            reach = Reach(start, np.minimum(size, tokens - start), 1, tokens)
            found.append((partial(_same_block, size), reach))
        return found

    def sentence(self) -> str:
        return f"each query sees its own block of {_by(self.size)} tokens"


@dataclass(frozen=True)
class GridPartition(_AxisRule):
    """Lattices of `size` tokens spread over the whole grid (MaxViT's grid attention).

    Tu et al., 'MaxViT', 2022, arXiv 2204.01697. On an axis of `X` tokens the lattice has the spacing
    `ceil(X / size)`.

    Args:
        size: lattice points per axis, -1 for the whole axis.
    """

    size: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", frozen(self.size))
        whole_numbers("size", self.size, 1, whole=True)

    def rules(self, grid: Grid) -> list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]]:
        found: list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]] = []
        for number, (tokens, size) in enumerate(
            zip(grid, per_axis(self.size, len(grid), "size"), strict=True)
        ):
            if size > tokens:
                raise InputError(f"a lattice of {size} points does not fit axis {number} of {tokens} tokens")
            step = 1 if size == WHOLE else -(-tokens // size)
            start = np.arange(tokens) % step
            reach = Reach(start, -((start - tokens) // step), step, tokens)
            found.append((partial(_same_residue, step), reach))
        return found

    def sentence(self) -> str:
        return f"each query sees the lattice of {_by(self.size)} tokens across the grid that it belongs to"


@dataclass(frozen=True)
class Halo(_AxisRule):
    """The queries of a block share a window: the block and a halo around it, cut at borders.

    Vaswani et al., 'Scaling Local Self-Attention for Parameter Efficient Visual Backbones', 2021,
    arXiv 2103.12731.

    Args:
        block: block size per axis, -1 for the whole axis.
        halo: how far the window reaches beyond the block.
    """

    block: int | tuple[int, ...]
    halo: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", frozen(self.block))
        object.__setattr__(self, "halo", frozen(self.halo))
        whole_numbers("block", self.block, 1, whole=True)
        whole_numbers("halo", self.halo, 0)

    def rules(self, grid: Grid) -> list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]]:
        found: list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]] = []
        blocks, halos = per_axis(self.block, len(grid), "block"), per_axis(self.halo, len(grid), "halo")
        for tokens, block, halo in zip(grid, blocks, halos, strict=True):
            if block == WHOLE:
                found.append((_anything, Reach.whole(tokens, tokens)))
                continue
            first = np.arange(tokens) // block * block
            start = np.maximum(first - halo, 0)
            reach = Reach(start, np.minimum(first + block + halo, tokens) - start, 1, tokens)

            def rule(q: Tensor, k: Tensor, block: int = block, halo: int = halo) -> Tensor:
                offset = k - q // block * block
                return (offset >= -halo) & (offset < block + halo)

            found.append((rule, reach))
        return found

    def sentence(self) -> str:
        return (
            f"each query sees its block of {_by(self.block)} tokens and a halo of {_by(self.halo)} around it"
        )


@dataclass(frozen=True)
class Shifted(_AxisRule):
    """Blocks moved by `shift` tokens, as in every second layer of Swin (arXiv 2103.14030).

    Args:
        size: block size per axis, -1 for the whole axis.
        shift: how far the blocks are moved, half a block if left out.
        border: 'pad' keeps the pieces at both ends apart (Swin's mask); 'wrap' joins them.
    """

    size: int | tuple[int, ...]
    shift: int | tuple[int, ...] | None = None
    border: Literal["pad", "wrap"] = "pad"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", frozen(self.size))
        object.__setattr__(self, "shift", frozen(self.shift))
        whole_numbers("size", self.size, 1, whole=True)
        if self.shift is not None:
            whole_numbers("shift", self.shift, 0)
        if self.border not in ("pad", "wrap"):
            raise InputError(f"border of shifted blocks is 'pad' or 'wrap', got {self.border!r}")

    def rules(self, grid: Grid) -> list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]]:
        found: list[tuple[Callable[[Tensor, Tensor], Tensor], Reach]] = []
        sizes = per_axis(self.size, len(grid), "size")
        shifts = per_axis(self.shift, len(grid), "shift")
        for tokens, size, given in zip(grid, sizes, shifts, strict=True):
            if size == WHOLE:
                found.append((_anything, Reach.whole(tokens, tokens)))
                continue
            shift = (size // 2 if given is None else given) % size
            place = np.arange(tokens)
            if self.border == "wrap":
                first = (place - shift) % tokens // size * size
                count = np.minimum(size, tokens - first)
                reach = Reach((first + shift) % tokens, count, 1, tokens, wrap=True)

                def rule(q: Tensor, k: Tensor, s: int = shift, size: int = size, n: int = tokens) -> Tensor:
                    return (q - s) % n // size == (k - s) % n // size
            else:
                first = (place - shift) // size * size + shift
                start = np.maximum(first, 0)
                reach = Reach(start, np.minimum(first + size, tokens) - start, 1, tokens)

                def rule(q: Tensor, k: Tensor, s: int = shift, size: int = size, n: int = tokens) -> Tensor:
                    return (q + size - s) // size == (k + size - s) // size

            found.append((rule, reach))
        return found

    def sentence(self) -> str:
        moved = "half a block" if self.shift is None else f"{_by(self.shift)} tokens"
        ends = "cut at borders" if self.border == "pad" else "wrapped around at borders"
        block = f"each query sees its own block of {_by(self.size)} tokens"
        return f"{block}, the blocks moved by {moved} and {ends}"


@dataclass(frozen=True)
class Prefix(Pattern):
    """The first `length` tokens in row-major order are seen by every query.

    Args:
        length: number of prefix (global) tokens.
        sees_all: whether the prefix tokens, as queries, also see every key (global tokens).
    """

    length: int
    sees_all: bool = False

    def __post_init__(self) -> None:
        whole_numbers("length", self.length, 1)

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        if self.length > math.prod(key_grid):
            raise InputError(
                f"a prefix of {self.length} tokens is longer than the {math.prod(key_grid)} keys"
            )
        if self.sees_all:
            _same_grids("Prefix with sees_all", query_grid, key_grid)

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        answer = (_flat(key, place.key_grid) < self.length) & (query[0] >= 0)
        return answer | (_flat(query, place.query_grid) < self.length) if self.sees_all else answer

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...] | None:
        row = math.prod(key_grid[1:])
        if self.sees_all or self.length % row or len(query_grid) != len(key_grid):
            return None
        return self._leading(query_grid, key_grid)

    def _leading(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...]:
        """The rows of the leading axis that hold the prefix, seen by every query."""
        first = np.full(query_grid[0], -(-self.length // math.prod(key_grid[1:])))
        rest = (Reach.whole(q, k) for q, k in zip(query_grid[1:], key_grid[1:], strict=True))
        return (Reach(np.zeros_like(first), first, 1, key_grid[0]), *rest)

    def terms(self, query_grid: Grid, key_grid: Grid) -> list[Term]:
        if len(query_grid) != len(key_grid):
            return super().terms(query_grid, key_grid)
        keys = Prefix(self.length)
        exact = keys.reach(query_grid, key_grid) is not None
        found = [Term(self._leading(query_grid, key_grid), None if exact else keys)]
        if self.sees_all:  # the queries of the prefix see the other keys too
            rows = -(-self.length // math.prod(key_grid[1:]))
            count = np.where(np.arange(query_grid[0]) < rows, key_grid[0], 0)
            first = Reach(np.zeros(query_grid[0], np.int64), count, 1, key_grid[0])
            rest = (Reach.whole(q, k) for q, k in zip(query_grid[1:], key_grid[1:], strict=True))
            found.append(Term((first, *rest), _RestOfPrefix(self.length)))
        return found

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        queries, keys = math.prod(query_grid), math.prod(key_grid)
        seen = queries * self.length
        return seen + self.length * (keys - self.length) if self.sees_all else seen

    def sentence(self) -> str:
        seen = f"each query sees the first {self.length} tokens"
        return seen + ", which see every key" if self.sees_all else seen


@dataclass(frozen=True)
class _RestOfPrefix(Pattern):
    """Queries of the prefix to keys behind it."""

    length: int

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        before = _flat(query, place.query_grid) < self.length
        return before & (_flat(key, place.key_grid) >= self.length)


def _flat(place: Coordinates, grid: Grid) -> Tensor:
    flat = torch.zeros((), dtype=torch.int64, device=place[0].device)
    for axis, size in zip(place, grid, strict=True):
        flat = flat * size + axis
    return flat
