"""Dynamic time warping of many pairs of degree rings at once, exact or by fastDTW.

Salvador and Chan, 'Toward accurate dynamic time warping in linear time and space', 2007: halve both
sequences, warp those, and search the full ones only near the path found. The cost of a match is that of
Ribeiro, Saverese and Figueiredo, 'struc2vec', 2017, arXiv 1704.03165, section 3.1. All pairs of a
batch advance together, row by row, each inside its own window; sequences are (length, pairs) arrays,
padded behind each one's end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

UP, LEFT, DIAGONAL = 0, 1, 2  # ties go to the first
NOWHERE = np.iinfo(np.int64).max // 4
CELLS = 30_000_000  # cells whose moves a batch keeps


@dataclass(frozen=True)
class Batch:
    """Padded sequences of many pairs: degrees and counts (longest, pairs), lengths (pairs,)."""

    degree: Matrix
    count: Matrix
    length: Indices

    def __getitem__(self, pairs: NDArray[np.bool_]) -> "Batch":
        length = self.length[pairs]
        longest = int(length.max())
        return Batch(self.degree[:longest, pairs], self.count[:longest, pairs], length)

    def halved(self) -> "Batch":
        """Average neighbouring entries; an odd last one is dropped."""
        half = len(self.degree) // 2
        degree = (self.degree[0 : 2 * half : 2] + self.degree[1 : 2 * half : 2]) / 2
        count = (self.count[0 : 2 * half : 2] + self.count[1 : 2 * half : 2]) / 2
        return Batch(degree, count, self.length // 2)


@dataclass(frozen=True)
class Band:
    """First and last column of each row, (rows, pairs); an empty row ends before it begins."""

    first: Indices
    last: Indices


def whole(left: Batch, right: Batch) -> Band:
    """Return the band that holds every cell of every pair."""
    row = np.arange(len(left.degree))[:, None]
    inside = row < left.length
    zero = np.zeros(inside.shape, dtype=np.int64)
    return Band(zero, np.where(inside, right.length - 1, -1))


def near(path: Band, left: Batch, right: Batch, radius: int) -> Band:
    """Return the cells of the full grid within `radius` cells of a path of the halved one."""
    rows = (len(left.degree) + 1) // 2
    first = np.full((rows + 2 * radius, path.first.shape[1]), NOWHERE)
    last = np.full_like(first, -1)
    first[radius : radius + len(path.first)] = path.first
    last[radius : radius + len(path.last)] = path.last
    spread = range(2 * radius + 1)
    low = np.min([first[shift : shift + rows] for shift in spread], axis=0) - radius
    high = np.max([last[shift : shift + rows] for shift in spread], axis=0) + radius
    fine_low = np.repeat(np.maximum(2 * low, 0), 2, axis=0)[: len(left.degree)]
    fine_high = np.repeat(np.minimum(2 * high + 1, right.length - 1), 2, axis=0)[: len(left.degree)]
    inside = np.arange(len(left.degree))[:, None] < left.length
    return Band(np.where(inside, fine_low, 0), np.where(inside, fine_high, -1))


def warp(left: Batch, right: Batch, band: Band, want_path: bool) -> tuple[Matrix, Band]:
    """Find the cheapest warping path inside a band.

    Matching (degree a, count m) with (b, n) costs ((max(a, b) + .5) / (min(a, b) + .5) - 1) * max(m, n).

    Returns:
        the cost of each pair's path, and the path itself as a band (empty if not wanted).
    """
    rows, pairs = band.first.shape
    width = int((band.last - band.first).max()) + 1
    place, pair = np.arange(width)[:, None], np.arange(pairs)
    edge = np.full((1, pairs), np.inf)
    before = np.full((width + 2, pairs), np.inf)  # the row above, one cell of infinity on either side
    moves = np.empty((rows, width, pairs) if want_path else (0, 0, 0), dtype=np.uint8)
    total = np.zeros(pairs)
    longest = len(right.degree) - 1
    for row in range(rows):
        column = band.first[row] + place
        there = np.minimum(column, longest)
        degree, count = right.degree[there, pair], right.count[there, pair]
        own, many = left.degree[row], left.count[row]
        cost = (np.maximum(own, degree) + 0.5) / (np.minimum(own, degree) + 0.5) - 1
        cost = np.where(column <= band.last[row], cost * np.maximum(many, count), np.inf)
        if row == 0:
            up, diagonal = np.full_like(cost, np.inf), np.where(column == 0, cost, np.inf)
        else:
            index = np.clip(place + (band.first[row] - band.first[row - 1]), 0, width + 1)
            up = before[np.minimum(index + 1, width + 1), pair] + cost
            diagonal = before[index, pair] + cost
        best = np.minimum(up, diagonal)
        for cell in range(1, width):
            np.minimum(best[cell], best[cell - 1] + cost[cell], out=best[cell])
        if want_path:
            aside = np.concatenate([edge, best[:-1]]) + cost
            moves[row] = np.where(best == up, UP, np.where(best == aside, LEFT, DIAGONAL))
        before = np.concatenate([edge, best, edge])
        ends = left.length - 1 == row
        total[ends] = best[(right.length - 1 - band.first[row])[ends], pair[ends]]
    return total, _path(moves, left, right, band) if want_path else Band(band.first[:0], band.last[:0])


def _path(moves: NDArray[np.uint8], left: Batch, right: Batch, band: Band) -> Band:
    """Walk back from the last cell of every pair to its first."""
    first, last = np.full_like(band.first, NOWHERE), np.full_like(band.last, -1)
    row, column, pair = left.length - 1, right.length - 1, np.arange(len(left.length))
    while len(pair):
        first[row, pair] = column
        last[row, pair] = np.maximum(last[row, pair], column)
        move = moves[row, column - band.first[row, pair], pair]
        row = row - (move != LEFT)
        column = column - (move != UP)
        on = (row >= 0) & (column >= 0)
        row, column, pair = row[on], column[on], pair[on]
    return Band(first, last)


def fast(left: Batch, right: Batch, radius: int = 1, want_path: bool = False) -> tuple[Matrix, Band]:
    """Warp a batch by fastDTW; see `warp` for what is returned."""
    band = whole(left, right)
    long = np.minimum(left.length, right.length) >= radius + 2  # shorter ones are warped exactly
    if long.any():
        big_left, big_right = left[long], right[long]
        _, path = fast(big_left.halved(), big_right.halved(), radius, want_path=True)
        close = near(path, big_left, big_right, radius)
        band.first[: len(close.first), long] = close.first
        band.last[: len(close.last), long] = close.last
    return warp(left, right, band, want_path)


def padded(rings: Sequence[Matrix]) -> Batch:
    """Stack rings of different lengths behind each other's ends."""
    length = np.array([len(ring) for ring in rings])
    values = np.zeros((int(length.max()), len(rings), 2))
    for index, ring in enumerate(rings):
        values[: len(ring), index] = ring
    return Batch(np.ascontiguousarray(values[..., 0]), np.ascontiguousarray(values[..., 1]), length)


def distances(rings: Sequence[Matrix], pairs: Indices, *, exact: bool = False) -> Matrix:
    """Return the warping distance of pairs of rings.

    Args:
        rings: each (length, 2), see `rings.Layer`.
        pairs: (count, 2) indices into `rings`.
        exact: search all paths instead of fastDTW's; never gives a larger distance.

    Returns:
        (count,).
    """
    if not len(pairs):
        return np.zeros(0)
    length = np.array([len(ring) for ring in rings])
    first, second = length[pairs].T
    order = np.lexsort((second, first))  # neighbours in the order need little padding
    result = np.empty(len(pairs))
    begin = 0
    while begin < len(order):
        end = begin + 1
        rows = columns = 0
        while end <= len(order):
            rows = max(rows, int(first[order[end - 1]]))
            columns = max(columns, int(second[order[end - 1]]))
            if rows * (columns if exact else min(columns, 64)) * (end - begin) > CELLS:
                break
            end += 1
        chosen = order[begin : max(end - 1, begin + 1)]
        left = padded([rings[index] for index in pairs[chosen, 0]])
        right = padded([rings[index] for index in pairs[chosen, 1]])
        total, _ = warp(left, right, whole(left, right), False) if exact else fast(left, right)
        result[chosen] = total
        begin += len(chosen)
    return result
