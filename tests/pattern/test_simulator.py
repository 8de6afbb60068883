"""The simulator's product form equals a brute-force count, and the paper's facts come out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.pattern import Window
from manyhead.pattern.simulator import block_sparse_stride, simulate


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_product_form_is_the_brute_force_count(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))
    grid = tuple(data.draw(st.integers(4, 10)) for _ in range(axes))
    size = tuple(data.draw(st.integers(2, n)) for n in grid)
    stride = tuple(data.draw(st.integers(1, k)) for k in size)
    causal = tuple(data.draw(st.booleans()) for _ in grid)
    query = tuple(data.draw(st.integers(1, 4)) for _ in grid)
    key = tuple(data.draw(st.integers(1, 4)) for _ in grid)
    window = Window(size, stride, 1, causal)
    found = simulate(grid, window, query, key)
    # windows of a causal query end at the query itself, so a box per axis is what a tile kernel asks for
    mask = window.mask(grid).numpy().reshape(*grid, *grid)
    visited, full = [], []
    query_starts = itertools.product(*(range(0, n, t) for n, t in zip(grid, query, strict=True)))
    for start in query_starts:
        rows = tuple(slice(s, s + t) for s, t in zip(start, query, strict=True))
        part = mask[rows].reshape(-1, *grid)
        seen = all_seen = 0
        for corner in itertools.product(*(range(0, n, t) for n, t in zip(grid, key, strict=True))):
            columns = tuple(slice(c, c + t) for c, t in zip(corner, key, strict=True))
            tile = part[(slice(None), *columns)]
            seen += bool(tile.any())
            whole = all(c + t <= n for c, t, n in zip(corner, key, grid, strict=True))
            all_seen += bool(tile.all()) and whole
        visited.append(seen)
        full.append(all_seen)
    assert found.visited_per_tile.flatten().tolist() == visited
    assert found.full_per_tile.flatten().tolist() == full
    assert found.dense == math.ceil(np.prod(grid) / np.prod(query)) * math.ceil(np.prod(grid) / np.prod(key))


def test_the_papers_facts() -> None:
    bound = simulate((256, 256), Window((80, 80), (16, 16)), (16, 16), (16, 8)).speedup_bound
    assert bound == pytest.approx(10.24)
    plain = Window((80, 80))
    assert simulate((256, 256), plain, (16, 16), (16, 8)).speedup_bound == pytest.approx(7.06, abs=0.01)
    dynamic = simulate((256, 256), plain, (16, 16), (16, 8), tiling="dynamic")
    assert dynamic.speedup_bound == pytest.approx(7.83, abs=0.01)
    video = simulate((30, 48, 80), Window((18, 24, 24), (16, 8, 8)), (4, 8, 8), (2, 8, 8))
    assert video.speedup_bound == pytest.approx(10.42, abs=0.01)
    assert video.flop_speedup == pytest.approx(11.11, abs=0.01)
    assert simulate((30, 48, 80), Window((18, 24, 24)), (4, 8, 8), (2, 8, 8)).speedup_bound == pytest.approx(
        4.92, abs=0.01
    )
    assert block_sparse_stride(32768, Window(2048), 128, 128, powers_of_two=True) == (256,)


def test_flat_tiles_touch_more() -> None:
    window = Window((8, 8))
    assert (
        simulate((16, 16), window, (4, 4), (4, 4), tiling="flat").visited
        > simulate((16, 16), window, (4, 4), (4, 4)).visited
    )


def test_dilation_counts_every_residue_class() -> None:
    found = simulate(17, Window(4, dilation=3), 2, 2)
    assert found.visited_per_tile.shape == (3, 3)
    assert found.visited >= math.ceil(17 * 4 / 4)
