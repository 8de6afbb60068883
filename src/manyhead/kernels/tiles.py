"""Tiling of a box pattern: runs of queries and, for each, the box of keys that any of them sees.

Every axis falls apart into residue classes modulo its step (dilation), each class is cut into tiles of
neighbouring queries, and each tile has one box of neighbouring keys, its halo included. A tile of an
n-D grid is the product of those of its axes, so everything here is small tables per axis.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from manyhead.grid import Reach, Table

# Costs on one CPU core in nanoseconds, fitted to measurements of `benchmarks/plan.py`; only ratios count.
PER_PRODUCT = 0.029  # one multiply-add of a matrix product
PER_LOGIT = 2.0  # the softmax of one logit
PER_COPY = 1.2  # one entry of keys or values copied into a tile
PER_TILE = 450.0  # one tile of a batched product
PER_SLICE = 50_000.0  # one tile that has to be sliced by itself
REGULAR = 1.3  # how much wider boxes may become for all to be alike
SMALLEST_PRODUCT = 24  # rows below which a matrix product runs no faster


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """The tiles of one axis.

    Args:
        step: number of residue classes.
        size: queries per tile, in coordinates of a class.
        queries: queries per class, the longest.
        low: first key of every query in class coordinates, `(classes, tiles, size)`.
        high: one past its last key, likewise; equal to `low` for queries that see nothing.
        start: first key of every tile's box, `(tiles,)`.
        width: keys per box, `(tiles,)`.
        regular: whether the boxes are equally wide and `size` apart, so that one view holds them all.
        begin: class coordinate of the first place of the key frame.
        frame: places of the key frame; coordinates outside the class are padding, or wrapped around.
        ring: class length where the axis is a ring, else 0.
    """

    step: int
    size: int
    queries: int
    low: Table
    high: Table
    start: Table
    width: Table
    regular: bool
    begin: int
    frame: int
    ring: int

    @property
    def tiles(self) -> int:
        return len(self.start)


def tile_axis(reach: Reach, size: int) -> AxisTiles:
    """Cut one axis into tiles of `size` queries per residue class."""
    step = reach.step
    queries, keys = -(-reach.queries // step), -(-reach.keys // step)
    tiles = -(-queries // size)
    low, high = np.zeros((step, tiles * size), np.int64), np.zeros((step, tiles * size), np.int64)
    position = np.arange(reach.queries)
    group, x = position % step, position // step
    first = reach.start // step
    if reach.wrap:
        first = x - (x - first) % keys  # the ring is cut just behind each query
    low[group, x] = first
    high[group, x] = first + reach.count
    low.shape = high.shape = (step, tiles, size)
    sees = high > low
    start = np.where(sees, low, np.iinfo(np.int64).max).min((0, 2))
    end = np.where(sees, high, np.iinfo(np.int64).min).max((0, 2))
    some = sees.any((0, 2))
    start, width = np.where(some, start, 0), np.where(some, end - start, 0)
    # boxes that move with their tiles: a little wider at the borders, but all alike
    offset = np.arange(tiles) * size
    left = int((offset - start)[some].max(initial=0))
    wide = int((start + width - offset)[some].max(initial=0)) + left
    regular = tiles > 1 and wide <= REGULAR * int(width.max()) and wide * tiles <= REGULAR * int(width.sum())
    if regular:
        start, width = offset - left, np.full(tiles, wide)
    begin = min(0, int(start.min()))
    frame = max(keys, int((start + width).max())) - begin
    return AxisTiles(
        step, size, queries, low, high, start, width, regular, begin, frame, keys if reach.wrap else 0
    )


@dataclass(frozen=True, eq=False)
class Tiling:
    """The tiles of a grid: one `AxisTiles` per axis."""

    axes: tuple[AxisTiles, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Tiles per axis."""
        return tuple(axis.tiles for axis in self.axes)

    @property
    def classes(self) -> int:
        return math.prod(axis.step for axis in self.axes)

    @property
    def tile(self) -> tuple[int, ...]:
        """Queries of a tile per axis."""
        return tuple(axis.size for axis in self.axes)

    def box(self) -> tuple[int, ...]:
        """The widest key box per axis."""
        return tuple(int(axis.width.max()) for axis in self.axes)

    @property
    def logits(self) -> int:
        """Logits that are computed, per head: queries of tiles times keys of boxes, masked ones included."""
        return self.classes * math.prod(axis.size * int(axis.width.sum()) for axis in self.axes)


def cost(tiling: Tiling, head_dim: int, groups: int = 1) -> float:
    """Nanoseconds of one head's forward pass on one core, by the constants above."""
    rows = groups * math.prod(tiling.tile)
    slow = max(1.0, SMALLEST_PRODUCT / rows)
    logits = tiling.logits * groups
    boxes = tiling.classes * math.prod(int(axis.width.sum()) for axis in tiling.axes)
    slices = math.prod(axis.tiles for axis in tiling.axes if not axis.regular)
    return (
        logits * (2 * head_dim * PER_PRODUCT * slow + PER_LOGIT)
        + boxes * 2 * head_dim * PER_COPY
        + math.prod(tiling.shape) * tiling.classes * PER_TILE
        + (slices - 1) * PER_SLICE
    )


def _sizes(reach: Reach) -> list[int]:
    """Tile sizes worth trying on an axis: powers of two, the whole class, and where windows move."""
    queries = -(-reach.queries // reach.step)
    sizes = {2**i for i in range(10) if 2**i <= queries} | {min(queries, 512)}
    moves = np.flatnonzero(np.diff(reach.start[:: reach.step]) != 0) + 1
    if len(moves) and moves[0] > 1:  # blocks and strides: whole groups of queries share a window
        group = int(moves[0])
        sizes |= {group * i for i in range(1, 9) if group * i <= min(queries, 512)}
    for tiles in range(1, 9):
        sizes.add(min(-(-queries // tiles), 512))
    return sorted(sizes)


def choose(reach: tuple[Reach, ...], head_dim: int, groups: int = 1) -> Tiling:
    """The tiling of least estimated cost."""
    options = [{size: tile_axis(axis, size) for size in _sizes(axis)} for axis in reach]
    best: tuple[float, Tiling] | None = None
    for sizes in itertools.product(*options):
        rows = math.prod(sizes)
        if rows > 1024 and rows > min(math.prod(min(option) for option in options), 1024):
            continue
        tiling = Tiling(tuple(option[size] for option, size in zip(options, sizes, strict=True)))
        price = cost(tiling, head_dim, groups)
        if best is None or price < best[0]:
            best = price, tiling
    assert best is not None  # the smallest sizes are always tried
    return best[1]


@lru_cache(maxsize=256)
def _relative(key: tuple[bytes, ...], shape: tuple[int, ...], width: int) -> Tensor:
    """The additive mask of one axis from where windows begin and end relative to their boxes."""
    low, high = (np.frombuffer(part, np.int64).reshape(shape)[..., None] for part in key)
    place = np.arange(width)
    inside = (place >= low) & (place < high)
    return torch.from_numpy(np.where(inside, 0.0, -np.inf).astype(np.float32))


def axis_mask(axis: AxisTiles, tiles: slice, width: int, start: Table) -> Tensor | None:
    """Additive mask of some tiles of one axis, or None if all is seen.

    Its shape is `(classes or 1, tiles or 1, size, width)`, 1 where they are all alike.

    Args:
        axis: the tiles of the axis.
        tiles: which of them.
        width: keys per box, the same for all of them.
        start: where their boxes begin, `(tiles,)`.
    """
    low, high = (bound[:, tiles] - start[:, None] for bound in (axis.low, axis.high))
    if (low <= 0).all() and (high >= width).all():
        return None
    if axis.step > 1 and (low == low[:1]).all() and (high == high[:1]).all():
        low, high = low[:1], high[:1]  # all classes alike
    if low.shape[1] > 1 and (low == low[:, :1]).all() and (high == high[:, :1]).all():
        low, high = low[:, :1], high[:, :1]  # all tiles alike
    return _relative((low.tobytes(), high.tobytes()), low.shape, width)
