"""How much of a window's saving a blocked kernel can obtain: the analytical simulator.

Hassani et al., 'Generalized Neighborhood Attention', 2025, arXiv 2504.16922. A kernel works on tiles of
queries and of keys; a key tile has to be visited if any query of the query tile sees part of it, and
needs no mask if all of them see all of it. Windows are products over axes, hence so are the counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.grid import Grid, as_grid, per_axis
from manyhead.pattern.window import AxisWindow, Window

Tiling = Literal["static", "dynamic", "flat"]


@dataclass(frozen=True, eq=False)
class Simulation:
    """Tile counts of one window, grid and tile size.

    Args:
        visited_per_tile: key tiles visited by each query tile, `(residue classes, query tiles)`.
        full_per_tile: those that need no mask, likewise.
        dense: tile pairs of dense attention.
        flop_speedup: tokens over keys per query, what the window saves in operations.
    """

    visited_per_tile: NDArray[np.int64]
    full_per_tile: NDArray[np.int64]
    dense: int
    flop_speedup: float

    @property
    def visited(self) -> int:
        return int(self.visited_per_tile.sum())

    @property
    def full(self) -> int:
        return int(self.full_per_tile.sum())

    @property
    def speedup_bound(self) -> float:
        """Dense tile pairs over those visited."""
        return self.dense / self.visited

    @property
    def block_sparse_fraction(self) -> float:
        """Share of the visited tiles that need no mask."""
        return self.full / self.visited

    @property
    def perfectly_block_sparse(self) -> bool:
        return self.full == self.visited


def _axis_bounds(
    axis: AxisWindow, length: int, padded: int, queries: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First key and one past the last of group coordinates, those of padding like the last group's."""
    size = length if axis.size is None else axis.size
    if axis.causal:
        leader = np.minimum(queries // axis.stride * axis.stride + axis.stride - 1, length - 1)
        return np.maximum(leader - size + 1, 0), np.minimum(queries, length - 1) + 1
    leader = np.minimum(queries // axis.stride * axis.stride + axis.stride // 2, length - 1)
    start = np.clip(leader - size // 2, 0, length - size)
    return start, start + size


def _axis_counts(
    axis: AxisWindow, tokens: int, query_tile: int, key_tile: int, tiling: Tiling, count_padding: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Key tiles visited and full per residue class and query tile of one axis."""
    longest = -(-tokens // axis.dilation)
    tiles = -(-longest // query_tile)
    visited = np.zeros((axis.dilation, tiles), np.int64)
    full = np.zeros_like(visited)
    for group in range(axis.dilation):
        length = -((group - tokens) // axis.dilation)
        for tile in range(tiles):
            end = (tile + 1) * query_tile
            queries = np.arange(tile * query_tile, end if count_padding else min(end, length))
            if not len(queries):
                continue  # only padding
            low, high = _axis_bounds(axis, length, longest, queries)
            first, last = int(low.min()), int(high.max())
            if tiling == "dynamic":
                visited[group, tile] = -(-(last - first) // key_tile)
                origin = first
            else:
                visited[group, tile] = -(-last // key_tile) - first // key_tile
                origin = 0
            inner, outer = int(low.max()) - origin, int(high.min()) - origin
            full[group, tile] = max(0, outer // key_tile - -(-inner // key_tile))
    return visited, full


def _product(tables: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Outer product over axes of `(classes, tiles)` tables, row-major."""
    total = tables[0]
    for table in tables[1:]:
        total = total[:, None, :, None] * table[None, :, None, :]
        total = total.reshape(total.shape[0] * total.shape[1], -1)
    return total


def _flat(grid: Grid, window: Window, rows: int, keys: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tiles of consecutive tokens in row-major order, by brute force."""
    mask = window.mask(grid).numpy()
    tokens = math.prod(grid)
    padded = np.zeros((-(-tokens // rows) * rows, -(-tokens // keys) * keys), bool)
    padded[:tokens, :tokens] = mask
    tiles = padded.reshape(-1, rows, padded.shape[1] // keys, keys)
    return tiles.any((1, 3)).sum(1)[None], tiles.all((1, 3)).sum(1)[None]


def simulate(
    grid: int | Sequence[int],
    window: Window,
    query_tile: int | tuple[int, ...],
    key_tile: int | tuple[int, ...],
    *,
    tiling: Tiling = "static",
    count_padding: bool = False,
) -> Simulation:
    """Count the tiles that a blocked kernel visits.

    Args:
        grid: sizes of the token grid.
        window: a window with border 'shift'.
        query_tile: queries per tile and axis.
        key_tile: keys per tile and axis.
        tiling: 'static' (key tiles start at the grid's origin), 'dynamic' (at the first key that the
            query tile needs) or 'flat' (tiles of consecutive tokens in row-major order).
        count_padding: whether tiles of nothing but padding count, padded queries taking the window of
            the last group, as the official block mask has it.

    Raises:
        InputError: if the window does not stand on the grid, or a tile size is below one.
    """
    sizes = as_grid(grid)
    window.check(sizes, sizes)
    if window.border != "shift":
        raise InputError(f"the simulator takes windows with border 'shift', got {window.border!r}")
    query_tiles = per_axis(query_tile, len(sizes), "query_tile")
    key_tiles = per_axis(key_tile, len(sizes), "key_tile")
    if min(*query_tiles, *key_tiles) < 1:
        raise InputError(f"tiles have at least one token per axis, got {query_tiles} and {key_tiles}")
    if tiling not in ("static", "dynamic", "flat"):
        raise InputError(f"tiling is 'static', 'dynamic' or 'flat', got {tiling!r}")
    axes, tokens = window.axes(len(sizes)), math.prod(sizes)
    rows, keys = math.prod(query_tiles), math.prod(key_tiles)
    if tiling == "flat":
        visited, full = _flat(sizes, window, rows, keys)
    else:
        counts = [
            _axis_counts(axis, n, q, k, tiling, count_padding)
            for axis, n, q, k in zip(axes, sizes, query_tiles, key_tiles, strict=True)
        ]
        visited, full = _product([v for v, _ in counts]), _product([f for _, f in counts])
    per_query = math.prod(axis.size or n for axis, n in zip(axes, sizes, strict=True))
    return Simulation(visited, full, -(-tokens // rows) * -(-tokens // keys), tokens / per_query)


def block_sparse_stride(
    grid: int | Sequence[int],
    window: Window,
    query_tile: int | tuple[int, ...],
    key_tile: int | tuple[int, ...],
    *,
    powers_of_two: bool = False,
) -> tuple[int, ...] | None:
    """The smallest stride per axis with which every visited tile is full, or None if there is none.

    Args:
        grid: sizes of the token grid.
        window: the window; its own strides are not used.
        query_tile: queries per tile and axis.
        key_tile: keys per tile and axis.
        powers_of_two: whether to try powers of two only.
    """
    sizes = as_grid(grid)
    window.check(sizes, sizes)
    found = []
    tiles = (per_axis(query_tile, len(sizes), "query_tile"), per_axis(key_tile, len(sizes), "key_tile"))
    for axis, tokens, query, key in zip(window.axes(len(sizes)), sizes, *tiles, strict=True):
        size = axis.size or tokens
        tried = [2**i for i in range(size.bit_length())] if powers_of_two else range(1, size + 1)
        for stride in tried:
            visited, full = _axis_counts(axis._replace(stride=stride), tokens, query, key, "static", False)
            if (visited == full).all():
                found.append(stride)
                break
        else:
            return None
    return tuple(found)
