"""Hypothesis strategies for grids and patterns, and the checks that every pattern must pass."""

import math
from typing import Any

import torch

from manyhead.errors import InputError, optional
from manyhead.grid import Grid, coordinates
from manyhead.pattern import (
    Blocks,
    Causal,
    Everything,
    GridPartition,
    Halo,
    Pattern,
    Prefix,
    Shifted,
    Window,
)


def grids(axes: int | None = None, most: int = 60) -> Any:
    """Strategy of small grids, 1-D to 3-D, of sizes that rarely divide.

    Args:
        axes: number of axes; any, if left out.
        most: most tokens.
    """
    st = optional("hypothesis.strategies", "dev")

    def sizes(number: int) -> Any:
        largest = max(2, round(most ** (1 / number)))
        return st.tuples(*[st.integers(1, largest)] * number)

    return sizes(axes) if axes else st.integers(1, 3).flatmap(sizes)


def patterns(grid: Grid, depth: int = 1) -> Any:
    """Strategy of patterns that stand on a grid, combined up to a depth.

    Args:
        grid: queries and keys.
        depth: how often `&` and `|` may be nested.
    """
    st = optional("hypothesis.strategies", "dev")

    def each(make: Any) -> Any:
        return st.tuples(*(make(size) for size in grid))

    windows = st.builds(
        _window,
        each(lambda size: st.tuples(st.integers(2, max(2, size)), st.integers(1, 4), st.integers(1, 3))),
        each(lambda size: st.booleans()),
        st.sampled_from(["shift", "pad", "wrap"]),
        st.just(grid),
    )
    simple = st.one_of(
        st.just(Everything()),
        st.builds(Causal, each(lambda size: st.booleans())),
        windows,
        windows,
        st.builds(Blocks, each(lambda size: st.integers(1, 4))),
        st.builds(GridPartition, each(lambda size: st.integers(1, min(size, 4)))),
        st.builds(Halo, each(lambda size: st.integers(1, 3)), each(lambda size: st.integers(0, 3))),
        st.builds(
            Shifted,
            each(lambda size: st.integers(1, 4)),
            each(lambda size: st.integers(0, 3)),
            st.sampled_from(["pad", "wrap"]),
        ),
        st.builds(Prefix, st.integers(1, math.prod(grid)), st.booleans()),
    )
    if depth == 0:
        return simple
    less = patterns(grid, depth - 1)
    return st.one_of(
        simple, st.builds(lambda a, b: a & b, less, less), st.builds(lambda a, b: a | b, less, less)
    )


def _window(axes: Any, causal: tuple[bool, ...], border: Any, grid: Grid) -> Window:
    """A window cut down until it fits the grid."""
    size, stride, dilation = [], [], []
    for (k, s, d), tokens in zip(axes, grid, strict=True):
        d = min(d, max(1, tokens // k))
        if border == "wrap" and tokens % d:
            d = 1
        whole = k * d > tokens
        size.append(-1 if whole else k)
        stride.append(1 if whole else min(s, k))
        dilation.append(1 if whole else d)
    return Window(tuple(size), tuple(stride), tuple(dilation), causal, border)


def check_pattern(pattern: Pattern, grid: Grid) -> None:
    """Check that all forms of a pattern are one set of pairs on a grid of keys.

    Raises:
        AssertionError: if the mask, `mask_mod`, the progressions, the terms or the count differ.
        InputError: if the pattern cannot stand on the grid.
    """
    query_grid = pattern.query_grid(grid)
    mask = pattern.mask(query_grid, grid)
    assert pattern.pairs(query_grid, grid) == int(mask.sum()), "pairs differ from the mask's sum"
    queries, keys = math.prod(query_grid), math.prod(grid)
    if not pattern.samples and not pattern.heads:
        zero = torch.zeros((), dtype=torch.int64)
        sees = pattern.mask_mod(query_grid, grid)
        flat = sees(zero, zero, torch.arange(queries)[:, None], torch.arange(keys)[None])
        assert torch.equal(flat.expand(queries, keys), mask), "mask_mod differs from the mask"
    reach = pattern.reach(query_grid, grid)
    if reach is not None:
        dense = torch.ones(1, 1, dtype=torch.int64)
        for axis in reach:
            dense = torch.kron(dense, torch.as_tensor(axis.matrix()).long())
        assert torch.equal(dense.bool(), mask), "the progressions differ from the mask"
    if len(query_grid) == len(grid) and not pattern.samples and not pattern.heads:
        total = torch.zeros(queries, keys, dtype=torch.int64)
        place = tuple(axis[:, None] for axis in coordinates(torch.arange(queries), query_grid))
        other = tuple(axis[None] for axis in coordinates(torch.arange(keys), grid))
        from manyhead.pattern import Place

        for term in pattern.terms(query_grid, grid):
            box = torch.ones(1, 1, dtype=torch.int64)
            for axis in term.reach:
                box = torch.kron(box, torch.as_tensor(axis.matrix()).long())
            if term.inside is not None:
                box = box * term.inside.sees(place, other, Place(query_grid, grid)).long()
            total += box
        assert torch.equal(total, mask.long()), "the terms are no disjoint cover of the mask"
    words = pattern.describe()
    if not words.endswith("."):
        raise InputError(f"describe() gives a sentence, got {words!r}")
