"""One pattern in other dialects: a picture, NATTEN's arguments, and the way back from a mask."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid, as_grid, per_axis
from manyhead.pattern.base import And, Pattern
from manyhead.pattern.members import Explicit
from manyhead.pattern.shapes import Blocks, Causal, Everything, GridPartition, Halo, Prefix, Shifted
from manyhead.pattern.window import WHOLE, Border, Window

Matrix = NDArray[np.bool_]


def picture(
    pattern: Pattern,
    grid: int | Sequence[int],
    query: int | tuple[int, ...] | None = None,
    *,
    sample: int = 0,
    head: int = 0,
) -> str:
    """Draw a pattern in text: '#' is seen, '.' is not, 'Q' is the query.

    Args:
        pattern: what to draw.
        grid: grid of the keys.
        query: whose view to draw on the grid; without it the whole mask is drawn, one query a line.
        sample: which sample, where the pattern differs by it.
        head: which head likewise.
    """
    sizes = as_grid(grid)
    queries = pattern.query_grid(sizes)
    mask = pattern.for_sample(sample).for_head(head).mask(queries, sizes)
    mask = mask.reshape(-1, *mask.shape[-2:])[0]
    if query is None:
        return "\n".join("".join("#" if seen else "." for seen in row) for row in mask.tolist())
    flat = query if isinstance(query, int) else int(np.ravel_multi_index(query, queries))
    marks = np.where(mask[flat].numpy(), "#", ".")
    if queries == sizes:
        marks[flat] = "Q"
    rows = marks.reshape(-1, sizes[-1])
    lines = ["".join(row) for row in rows]
    height = sizes[-2] if len(sizes) > 1 else 1
    planes = ["\n".join(lines[i : i + height]) for i in range(0, len(lines), height)]
    return "\n\n".join(planes)


def from_natten(
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
) -> Window:
    """The window of NATTEN's arguments."""
    return Window(kernel_size, stride, dilation, is_causal)


def to_natten(pattern: Pattern, grid: int | Sequence[int]) -> dict[str, tuple[Any, ...]]:
    """NATTEN's arguments for a pattern on a grid.

    Returns:
        `kernel_size`, `stride`, `dilation` and `is_causal`, one value per axis each.

    Raises:
        InputError: if NATTEN has no such pattern, with the reason.
    """
    sizes = as_grid(grid)
    if pattern.samples or pattern.heads:
        raise InputError("NATTEN has one pattern for all samples and heads")
    if isinstance(pattern, Window) and pattern.border != "shift":
        raise InputError(f"NATTEN moves windows inside the grid; it has no border {pattern.border!r}")
    pattern.check(pattern.query_grid(sizes), sizes)
    if not 1 <= len(sizes) <= 3:
        raise InputError(f"NATTEN takes grids of one to three axes, got {len(sizes)}")
    if pattern.reach(sizes, sizes) is None:
        raise InputError(f"NATTEN takes one box around each query; here {pattern.sentence()}")
    mask = pattern.mask(sizes).numpy()
    axes = _separate(mask, sizes)
    found = [_natten_axis(axis) for axis in axes] if axes is not None else [None]
    if any(axis is None for axis in found):
        raise InputError(f"NATTEN has no window in which {pattern.sentence()}")
    columns = list(zip(*(axis for axis in found if axis is not None), strict=True))
    return dict(zip(("kernel_size", "stride", "dilation", "is_causal"), columns, strict=True))


def _natten_axis(matrix: Matrix) -> tuple[int, int, int, bool] | None:
    tokens = len(matrix)
    if tokens == 1:
        return None
    for size, stride, dilation, causal in _windows(matrix):
        window = Window(tokens if size == WHOLE else size, stride, dilation, causal)
        if np.array_equal(window.reach((tokens,), (tokens,))[0].matrix(), matrix):
            return tokens if size == WHOLE else size, stride, dilation, causal
    return None


def _separate(mask: Matrix, grid: Grid) -> list[Matrix] | None:
    """The mask as a product of one matrix per axis, or None."""
    axes: list[Matrix] = []
    full = mask.reshape(*grid, *grid)
    for axis in range(len(grid)):
        others = tuple(i for i in range(2 * len(grid)) if i not in (axis, len(grid) + axis))
        axes.append(np.asarray(full.any(others)))
    product = np.ones((1, 1), bool)
    for matrix in axes:
        product = np.kron(product, matrix)
    return axes if np.array_equal(product, mask) else None


def _windows(matrix: Matrix) -> Iterator[tuple[int, int, int, bool]]:
    """Sizes, strides, dilations and causal flags that could give a matrix, simplest first."""
    tokens, counts = len(matrix), matrix.sum(1)
    size = int(counts.max())
    yield WHOLE, 1, 1, False
    yield WHOLE, 1, 1, True
    row = np.flatnonzero(matrix[int(counts.argmax())])
    gaps = np.diff(row)
    dilation = int(gaps[gaps > 0].min()) if len(gaps) else 1
    for k, causal in itertools.product((size, size + 1), (False, True)):
        for stride in range(1, k + 1):
            for d in {1, dilation}:
                if k >= 2 and k * d <= tokens:
                    yield k, stride, d, causal


def _axis_candidates(matrix: Matrix) -> Iterator[Pattern]:
    """Patterns of one axis that could give a matrix, simplest first."""
    tokens, counts = len(matrix), matrix.sum(1)
    size = int(counts.max())
    yield Everything()
    yield Causal()
    yield Blocks(size)
    yield GridPartition(size)
    for k, stride, d, causal in _windows(matrix):
        if k != WHOLE:
            borders: tuple[Border, ...] = ("shift", "pad", "wrap")
            for border in borders:
                yield Window(k, stride, d, causal, border)
    for block in range(1, size + 1):
        if (size - block) % 2 == 0:
            yield Halo(block, (size - block) // 2)
        yield Halo(block, max(0, size - block))
    for shift in range(1, size):
        yield Shifted(size, shift)
        yield Shifted(size, shift, "wrap")
    for length in range(1, tokens):
        yield Prefix(length)
    for wide in range(2, tokens + 1):
        yield Window(wide) & Causal()


def _match(matrix: Matrix) -> Pattern | None:
    tokens = (len(matrix),)
    for candidate in _axis_candidates(matrix):
        try:
            if np.array_equal(candidate.mask(tokens).numpy(), matrix):
                return candidate
        except InputError:
            continue  # it does not fit an axis of this size
    return None


def _along(pattern: Pattern, axis: int, axes: int) -> Pattern | None:
    """A pattern of one axis as one of a grid, whole on the other axes."""
    if axes == 1 or isinstance(pattern, Everything):
        return pattern

    def place(value: Any, rest: Any) -> tuple[Any, ...]:
        return tuple(value if i == axis else rest for i in range(axes))

    if isinstance(pattern, And):
        left, right = _along(pattern.left, axis, axes), _along(pattern.right, axis, axes)
        return left & right if left and right else None
    if isinstance(pattern, Causal):
        return Causal(place(True, False))
    if isinstance(pattern, Window):
        rest = (place(pattern.stride, 1), place(pattern.dilation, 1), place(pattern.causal, False))
        return Window(place(pattern.size, WHOLE), *rest, pattern.border)
    if isinstance(pattern, Blocks):
        return Blocks(place(pattern.size, WHOLE))
    if isinstance(pattern, GridPartition):
        return GridPartition(place(pattern.size, WHOLE))
    if isinstance(pattern, Halo):
        return Halo(place(pattern.block, WHOLE), place(pattern.halo, 0))
    if isinstance(pattern, Shifted):
        return Shifted(place(pattern.size, WHOLE), place(pattern.shift, 0), pattern.border)
    return None


def _merge(parts: list[Pattern]) -> Pattern:
    """Patterns of one kind on different axes as one value, others joined by `&`."""
    parts = [part for part in parts if not isinstance(part, Everything)]
    if not parts:
        return Everything()
    total = parts[0]
    for part in parts[1:]:
        joined = _join(total, part)
        total = And(total, part) if joined is None else joined
    return total


def _join(left: Pattern, right: Pattern) -> Pattern | None:
    if isinstance(left, Window) and isinstance(right, Window) and left.border == right.border:
        axes = len(right.size) if isinstance(right.size, tuple) else 1
        rows = [
            [per_axis(getattr(window, name), axes, name) for name in ("size", "stride", "dilation", "causal")]
            for window in (left, right)
        ]
        pick = [i for i in range(axes) if rows[1][0][i] != WHOLE]
        values = [
            tuple(b[i] if i in pick else a[i] for i in range(axes))
            for a, b in zip(rows[0], rows[1], strict=True)
        ]
        size, stride, dilation, causal = values
        return Window(size, stride, dilation, causal, left.border)
    for kind in (Blocks, GridPartition):
        if isinstance(left, kind) and isinstance(right, kind):
            both = zip(left.size, right.size, strict=True)  # type: ignore[arg-type]
            return kind(tuple(a if b == WHOLE else b for a, b in both))
    return None


def from_mask(mask: Tensor, grid: int | Sequence[int]) -> Pattern:
    """The simplest expression equal to a mask on a grid, or the mask itself.

    Tried are products over axes of all, causal, block, lattice, window, halo, shifted and prefix
    patterns, and in 1-D their union with prefix tokens.

    Args:
        mask: Booleans `(tokens, tokens)`.
        grid: grid of queries and keys.

    Raises:
        InputError: if the mask does not fit the grid.
    """
    sizes = as_grid(grid)
    tokens = math.prod(sizes)
    if mask.dtype != torch.bool or tuple(mask.shape) != (tokens, tokens):
        raise InputError(f"mask takes Booleans {(tokens, tokens)}, got {mask.dtype} of {tuple(mask.shape)}")
    matrix = mask.numpy()
    axes = _separate(matrix, sizes)
    if axes is not None:
        found = [_match(axis) for axis in axes]
        placed = [_along(p, i, len(sizes)) if p is not None else None for i, p in enumerate(found)]
        if all(part is not None for part in placed):
            total = _merge([part for part in placed if part is not None])
            if torch.equal(total.mask(sizes), mask):
                return total
    if len(sizes) == 1:
        length = int(np.argmin(np.concatenate([matrix.all(0), [False]])))  # columns that everyone sees
        if length:
            candidates = (
                Window(k, 1, d, c) for k in range(2, tokens) for d in (1, 2, 3) for c in (False, True)
            )
            for candidate in itertools.chain([Causal()], (Blocks(k) for k in range(2, tokens)), candidates):
                union = candidate | Prefix(length)
                try:
                    if torch.equal(union.mask(sizes), mask):
                        return union
                except InputError:
                    continue
    return Explicit(mask)
