"""A pattern says which query token sees which key token; this is what all patterns share.

Each pattern defines itself twice. `sees` is the readable definition: a formula on coordinates, from
which the dense mask and FlexAttention's `mask_mod` are made. `reach` is the same set per axis as
arithmetic progressions, from which kernels take their tiles and pairs are counted without a mask.
Property tests tie the two.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid, Reach, as_grid, coordinates, token_coordinates

Coordinates = tuple[Tensor, ...]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
CHUNK = 1 << 22  # entries of a mask that counting holds at a time
STRIP = 1 << 18  # entries that are computed at a time when a mask is made


@dataclass(frozen=True)
class Place:
    """Where `sees` is asked: the grids, and sample and head where the pattern differs by them.

    Args:
        query_grid: grid of the queries.
        key_grid: grid of the keys.
        sample: index of the sample, broadcastable to the coordinates, or None.
        head: index of the head likewise, or None.
    """

    query_grid: Grid
    key_grid: Grid
    sample: Tensor | None = None
    head: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One part of a pattern for kernels: a box per query, and what still has to be asked inside it."""

    reach: tuple[Reach, ...]
    inside: "Pattern | None" = None


class Pattern:
    """Who sees whom on a token grid; a frozen value that `&` and `|` combine."""

    samples: int | None = None  # number of samples that it is made for, None if it is the same for all
    heads: int | None = None  # number of heads likewise

    # -- what a pattern defines ---------------------------------------------------------------------

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        """Raise InputError if the pattern cannot stand on these grids."""

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        """Boolean definition: coordinates of queries and keys, broadcastable, to who sees whom."""
        raise NotImplementedError

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...] | None:
        """The pattern as a box per query, one `Reach` per axis, or None where it is no box."""
        return None

    def terms(self, query_grid: Grid, key_grid: Grid) -> list[Term]:
        """Disjoint boxes (with conditions inside) whose union the pattern is."""
        reach = self.reach(query_grid, key_grid)
        return [Term(_whole(query_grid, key_grid), self) if reach is None else Term(reach)]

    def for_sample(self, sample: int) -> "Pattern":
        """The pattern of one sample."""
        return self

    def for_head(self, head: int) -> "Pattern":
        """The pattern of one head."""
        return self

    def query_grid(self, key_grid: Grid) -> Grid:
        """Grid of the queries that the pattern is made for, given that of the keys."""
        return key_grid

    def sentence(self) -> str:
        """The pattern in words, beginning in lower case and without a full stop."""
        return repr(self)

    # -- what every pattern can do ------------------------------------------------------------------

    def __and__(self, other: "Pattern") -> "Pattern":
        return And(self, other)

    def __or__(self, other: "Pattern") -> "Pattern":
        return Or(self, other)

    def grids(
        self, query_grid: int | Sequence[int], key_grid: int | Sequence[int] | None
    ) -> tuple[Grid, Grid]:
        """Both grids as tuples, checked; one grid given is that of the keys."""
        if key_grid is None:
            key_grid = as_grid(query_grid)
            query_grid = self.query_grid(key_grid)
        query_grid, key_grid = as_grid(query_grid, "query_grid"), as_grid(key_grid, "key_grid")
        self.check(query_grid, key_grid)
        return query_grid, key_grid

    def mask(
        self,
        query_grid: int | Sequence[int],
        key_grid: int | Sequence[int] | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """The dense definition.

        Args:
            query_grid: grid of the queries, or of both where `key_grid` is left out.
            key_grid: grid of the keys.
            device: where to make the mask.

        Returns:
            Booleans `(queries, keys)`, tokens in row-major order; `(samples or 1, heads or 1, queries,
            keys)` where the pattern differs by sample or head.

        Raises:
            InputError: if the pattern cannot stand on the grids.
        """
        query_grid, key_grid = self.grids(query_grid, key_grid)
        keys, queries = math.prod(key_grid), math.prod(query_grid)
        strip = max(1, STRIP // keys)
        if strip >= queries:
            return self._rows(query_grid, key_grid, slice(None), device)
        lead = (self.samples or 1, self.heads or 1) if self.samples or self.heads else ()
        mask = torch.empty(*lead, queries, keys, dtype=torch.bool, device=device)
        for first in range(0, queries, strip):  # the arithmetic on coordinates takes more than the mask
            rows = slice(first, first + strip)
            mask[..., rows, :] = self._rows(query_grid, key_grid, rows, device)
        return mask

    def _rows(self, query_grid: Grid, key_grid: Grid, rows: slice, device: torch.device | None) -> Tensor:
        """Rows of the dense mask."""
        query = tuple(axis[rows, None] for axis in token_coordinates(query_grid, device))
        key = tuple(axis[None, :] for axis in token_coordinates(key_grid, device))
        place = Place(query_grid, key_grid)
        shape: tuple[int, ...] = (query[0].shape[0], key[0].shape[1])
        if self.samples or self.heads:
            sample = torch.arange(self.samples or 1, device=device)[:, None, None, None]
            head = torch.arange(self.heads or 1, device=device)[None, :, None, None]
            place = replace(place, sample=sample, head=head)
            shape = (self.samples or 1, self.heads or 1, *shape)
        return self.sees(query, key, place).expand(shape).contiguous()

    def mask_mod(
        self, query_grid: int | Sequence[int], key_grid: int | Sequence[int] | None = None
    ) -> MaskMod:
        """The pattern as FlexAttention's `mask_mod(batch, head, query, key)` on flat token indices."""
        query_grid, key_grid = self.grids(query_grid, key_grid)

        def sees_flat(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            place = Place(query_grid, key_grid, batch, head)
            return self.sees(coordinates(query, query_grid), coordinates(key, key_grid), place)

        return sees_flat

    def pairs(self, query_grid: int | Sequence[int], key_grid: int | Sequence[int] | None = None) -> int:
        """Number of True entries of `mask`, counted without building it."""
        query_grid, key_grid = self.grids(query_grid, key_grid)
        if self.samples:
            return sum(self.for_sample(i).pairs(query_grid, key_grid) for i in range(self.samples))
        if self.heads:
            return sum(self.for_head(i).pairs(query_grid, key_grid) for i in range(self.heads))
        return self.count(query_grid, key_grid)

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        """Pairs of a pattern that is the same for all samples and heads; grids are checked."""
        reach = self.reach(query_grid, key_grid)
        if reach is not None:
            return math.prod(axis.pairs for axis in reach)
        rows = max(1, CHUNK // math.prod(key_grid))  # a strip of rows at a time
        starts = range(0, math.prod(query_grid), rows)
        strips = (self._rows(query_grid, key_grid, slice(s, s + rows), None) for s in starts)
        return sum(int(strip.sum()) for strip in strips)

    def flops(
        self,
        grid: int | Sequence[int],
        heads: int,
        head_dim: int,
        batch: int = 1,
        *,
        backward: bool = False,
    ) -> int:
        """Floating-point operations of the matrix products that exact attention needs.

        Two products forward (4 operations per pair and channel), five more backward with the logits
        computed again (10 operations).
        """
        per_pair = (14 if backward else 4) * head_dim
        pairs = self.pairs(grid)
        return pairs * per_pair * (1 if self.heads else heads) * (1 if self.samples else batch)

    def same(self, other: "Pattern", query_grid: int | Sequence[int], key_grid: int | None = None) -> bool:
        """Whether two patterns are the same set of pairs on these grids."""
        mine, others = self.mask(query_grid, key_grid), other.mask(query_grid, key_grid)
        try:
            mine, others = torch.broadcast_tensors(mine, others)
        except RuntimeError:
            return False
        return bool((mine == others).all())

    def describe(self) -> str:
        """The pattern as a sentence."""
        words = self.sentence()
        return words[0].upper() + words[1:] + "."


def _whole(query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...]:
    """Every query sees every key; grids of different rank are flat to kernels."""
    if len(query_grid) != len(key_grid):
        raise InputError(f"query grid {query_grid} and key grid {key_grid} differ in their number of axes")
    return tuple(Reach.whole(q, k) for q, k in zip(query_grid, key_grid, strict=True))


def _shared(name: str, left: int | None, right: int | None) -> int | None:
    if left and right and left != right:
        raise InputError(f"patterns for {left} and for {right} {name} cannot be combined")
    return left or right


@dataclass(frozen=True)
class _Pair(Pattern):
    """Two patterns combined."""

    left: Pattern
    right: Pattern

    def __post_init__(self) -> None:
        for side in (self.left, self.right):
            if not isinstance(side, Pattern):
                raise InputError(f"patterns combine with patterns, got {type(side).__name__}")
        object.__setattr__(self, "samples", _shared("samples", self.left.samples, self.right.samples))
        object.__setattr__(self, "heads", _shared("heads", self.left.heads, self.right.heads))

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        self.left.check(query_grid, key_grid)
        self.right.check(query_grid, key_grid)

    def for_sample(self, sample: int) -> Pattern:
        return type(self)(self.left.for_sample(sample), self.right.for_sample(sample))

    def for_head(self, head: int) -> Pattern:
        return type(self)(self.left.for_head(head), self.right.for_head(head))

    def query_grid(self, key_grid: Grid) -> Grid:
        left, right = self.left.query_grid(key_grid), self.right.query_grid(key_grid)
        if left != right:
            raise InputError(
                f"on keys {key_grid} one pattern is made for queries {left}, the other for {right}"
            )
        return left


class And(_Pair):
    """Pairs that both patterns allow."""

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        return self.left.sees(query, key, place) & self.right.sees(query, key, place)

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...] | None:
        left, right = self.left.reach(query_grid, key_grid), self.right.reach(query_grid, key_grid)
        if left is None or right is None:
            return None
        both = [a.intersect(b) for a, b in zip(left, right, strict=True)]
        return None if any(axis is None for axis in both) else tuple(axis for axis in both if axis)

    def terms(self, query_grid: Grid, key_grid: Grid) -> list[Term]:
        found = []
        for a in self.left.terms(query_grid, key_grid):
            for b in self.right.terms(query_grid, key_grid):
                both = [x.intersect(y) for x, y in zip(a.reach, b.reach, strict=True)]
                if all(axis is not None for axis in both):
                    reach = tuple(axis for axis in both if axis is not None)
                    found.append(Term(reach, _join(a.inside, b.inside)))
                    continue
                # the boxes do not intersect in a box: keep the smaller one, ask for the other inside it
                small, large, whole = (a, b, self.right) if _size(a) <= _size(b) else (b, a, self.left)
                found.append(
                    Term(small.reach, _join(_join(small.inside, large.inside), _Box(large.reach, whole)))
                )
        return found

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        for union, other in ((self.left, self.right), (self.right, self.left)):
            if isinstance(union, Or) and self.reach(query_grid, key_grid) is None:
                split = Or(And(union.left, other), And(union.right, other))
                return split.count(query_grid, key_grid)
        return super().count(query_grid, key_grid)

    def sentence(self) -> str:
        return f"{self.left.sentence()}, and at the same time {self.right.sentence()}"


class Or(_Pair):
    """Pairs that at least one of two patterns allows."""

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        return self.left.sees(query, key, place) | self.right.sees(query, key, place)

    def terms(self, query_grid: Grid, key_grid: Grid) -> list[Term]:
        first = self.left.terms(query_grid, key_grid)
        rest = self.right.terms(query_grid, key_grid)
        return first + [Term(term.reach, _join(term.inside, Not(self.left))) for term in rest]

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        left, right = self.left.count(query_grid, key_grid), self.right.count(query_grid, key_grid)
        return left + right - And(self.left, self.right).count(query_grid, key_grid)

    def sentence(self) -> str:
        return f"{self.left.sentence()}, or {self.right.sentence()}"


@dataclass(frozen=True)
class Not(Pattern):
    """Pairs that a pattern does not allow; kernels use it to make the terms of a union disjoint."""

    pattern: Pattern

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", self.pattern.samples)
        object.__setattr__(self, "heads", self.pattern.heads)

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        self.pattern.check(query_grid, key_grid)

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        return ~self.pattern.sees(query, key, place)

    def for_sample(self, sample: int) -> Pattern:
        return Not(self.pattern.for_sample(sample))

    def for_head(self, head: int) -> Pattern:
        return Not(self.pattern.for_head(head))

    def count(self, query_grid: Grid, key_grid: Grid) -> int:
        return math.prod(query_grid) * math.prod(key_grid) - self.pattern.count(query_grid, key_grid)

    def sentence(self) -> str:
        return f"not ({self.pattern.sentence()})"


@dataclass(frozen=True, eq=False)
class _Box(Pattern):
    """Boxes given by tables, asked by coordinates."""

    boxes: tuple[Reach, ...]
    origin: Pattern

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...]:
        return self.boxes

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        answer = torch.ones((), dtype=torch.bool, device=key[0].device)
        for axis, q, k in zip(self.boxes, query, key, strict=True):
            start = torch.as_tensor(axis.start, device=q.device)[q]
            width = torch.as_tensor(axis.count, device=q.device)[q] * axis.step
            offset = (k - start) % axis.keys if axis.wrap else k - start
            answer = answer & (offset >= 0) & (offset < width) & (offset % axis.step == 0)
        return answer


def _size(term: Term) -> int:
    return math.prod(axis.pairs for axis in term.reach)


def _join(left: Pattern | None, right: Pattern | None) -> Pattern | None:
    return And(left, right) if left and right else left or right
