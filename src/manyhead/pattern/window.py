"""The window: every query sees a box around itself, with stride, dilation and causal axes.

Hassani et al., 'Faster Neighborhood Attention', 2024, arXiv 2403.04690, and 'Generalized Neighborhood
Attention', 2025, arXiv 2504.16922. With `k` the size, `s` the stride, `d` the dilation of an axis of
`X` tokens, position `p` has the residue class `g = p mod d`, in it the coordinate `x = p // d`, and the
class has `L = ceil((X - g) / d)` members. All queries of a stride group follow one leader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Grid, Reach, per_axis
from manyhead.pattern.base import Coordinates, Pattern, Place

Border = Literal["shift", "pad", "valid", "wrap"]
WHOLE = -1  # as a size: the whole axis


class AxisWindow(NamedTuple):
    """The window of one axis; size `WHOLE` has become None."""

    size: int | None
    stride: int
    dilation: int
    causal: bool


def whole_numbers(name: str, value: int | Sequence[int], least: int, *, whole: bool = False) -> None:
    """Refuse sizes that are no whole numbers from `least` (or -1, where that means the whole axis)."""
    for size in value if isinstance(value, tuple) else (value,):
        if (
            isinstance(size, bool)
            or not isinstance(size, int)
            or (size < least and not (whole and size == WHOLE))
        ):
            also = " or -1 for the whole axis" if whole else ""
            raise InputError(f"{name} takes whole numbers from {least}{also}, got {value!r}")


def frozen(value: object) -> object:
    """Lists become tuples, so that a pattern is a value."""
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Window(Pattern):
    """A box of `size` keys per axis around each query.

    Args:
        size: keys per axis, at least 2, or -1 for the whole axis; even sizes reach one further back.
        stride: queries that share one window, 1 to `size`.
        dilation: distance between neighbouring keys.
        causal: whether an axis sees only keys up to the query.
        border: what happens where the window leaves the grid: 'shift' moves it inside, so that every
            query has `size` keys (NATTEN's rule); 'pad' cuts it, as masked zero padding does; 'valid'
            keeps only the queries whose window is complete, so that the query grid is smaller by
            `(size - 1) * dilation`; 'wrap' joins the ends of the axis to a ring.

    Each value is one for all axes or a tuple of one per axis.

    Raises:
        InputError: if a value is out of its range.
    """

    size: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    causal: bool | tuple[bool, ...] = False
    border: Border = "shift"

    def __post_init__(self) -> None:
        for name in ("size", "stride", "dilation", "causal"):
            object.__setattr__(self, name, frozen(getattr(self, name)))
        whole_numbers("size", self.size, 2, whole=True)
        whole_numbers("stride", self.stride, 1)
        whole_numbers("dilation", self.dilation, 1)
        if not all(
            isinstance(c, bool) for c in (self.causal if isinstance(self.causal, tuple) else (self.causal,))
        ):
            raise InputError(f"causal takes True or False per axis, got {self.causal!r}")
        if self.border not in get_args(Border):
            raise InputError(f"border is one of {', '.join(get_args(Border))}, got {self.border!r}")
        lengths = {
            len(v) for v in (self.size, self.stride, self.dilation, self.causal) if isinstance(v, tuple)
        }
        if len(lengths) > 1:
            raise InputError(f"size, stride, dilation and causal are for different numbers of axes: {self!r}")
        for axis in self.axes(lengths.pop() if lengths else 1):
            if axis.size is not None and axis.stride > axis.size:
                raise InputError(
                    f"stride must be at most the size of the window, {axis.size}; got {axis.stride}"
                )
            if axis.size is None and (axis.stride, axis.dilation) != (1, 1):
                raise InputError("a window of the whole axis (-1) takes stride 1 and dilation 1")
            if self.border == "valid" and axis.stride != 1:
                raise InputError(f"border 'valid' takes stride 1, got {axis.stride}")

    def axes(self, axes: int) -> list[AxisWindow]:
        """Size, stride, dilation and causal flag of every axis."""
        return [
            AxisWindow(None if size == WHOLE else size, stride, dilation, causal)
            for size, stride, dilation, causal in zip(
                per_axis(self.size, axes, "size"),
                per_axis(self.stride, axes, "stride"),
                per_axis(self.dilation, axes, "dilation"),
                per_axis(self.causal, axes, "causal"),
                strict=True,
            )
        ]

    def check(self, query_grid: Grid, key_grid: Grid) -> None:
        for number, (axis, keys) in enumerate(zip(self.axes(len(key_grid)), key_grid, strict=True)):
            if axis.size is None:
                continue
            if axis.size * axis.dilation > keys:
                raise InputError(
                    f"a window of size {axis.size} and dilation {axis.dilation} needs an axis of at least "
                    f"{axis.size * axis.dilation} tokens; axis {number} has {keys}"
                )
            if self.border == "wrap" and keys % axis.dilation:
                raise InputError(
                    f"border 'wrap' needs an axis that is a multiple of the dilation {axis.dilation}; "
                    f"axis {number} has {keys}"
                )
        if query_grid != self.query_grid(key_grid):
            raise InputError(
                f"on keys {key_grid} a window with border {self.border!r} has queries "
                f"{self.query_grid(key_grid)}, got {query_grid}"
            )

    def query_grid(self, key_grid: Grid) -> Grid:
        if self.border != "valid":
            return key_grid
        return tuple(
            keys if axis.size is None else keys - (axis.size - 1) * axis.dilation
            for axis, keys in zip(self.axes(len(key_grid)), key_grid, strict=True)
        )

    def sees(self, query: Coordinates, key: Coordinates, place: Place) -> Tensor:
        answer = torch.ones((), dtype=torch.bool, device=key[0].device)
        for axis, q, k, keys in zip(self.axes(len(key)), query, key, place.key_grid, strict=True):
            answer = answer & self._axis_sees(axis, q, k, keys)
        return answer

    def _axis_sees(self, axis: AxisWindow, query: Tensor, key: Tensor, keys: int) -> Tensor:
        """The rule of one axis on positions, as the papers give it."""
        size, stride, dilation, causal = axis
        if size is None:
            return key <= query if causal else (key >= 0) & (query >= 0)
        if self.border == "valid":
            offset = key - query
            return (offset >= 0) & (offset < size * dilation) & (offset % dilation == 0)
        group, x, y = query % dilation, query // dilation, key // dilation
        length = (keys - group + dilation - 1) // dilation
        same_group = key % dilation == group
        centre = stride - 1 if causal else stride // 2
        leader = torch.minimum((x // stride) * stride + centre, length - 1)
        start = leader - (size - 1 if causal else size // 2)
        if self.border == "wrap":
            last = x if causal else start + size - 1
            return same_group & ((y - start) % length <= last - start)
        if causal:
            return same_group & (y >= start) & (y <= x)
        if self.border == "shift":
            start = torch.minimum(torch.clamp(start, min=0), length - size)
        return same_group & (y >= start) & (y < start + size)

    def reach(self, query_grid: Grid, key_grid: Grid) -> tuple[Reach, ...]:
        return tuple(
            self._axis_reach(axis, queries, keys)
            for axis, queries, keys in zip(self.axes(len(key_grid)), query_grid, key_grid, strict=True)
        )

    def _axis_reach(self, axis: AxisWindow, queries: int, keys: int) -> Reach:
        """The rule of one axis as progressions."""
        position = np.arange(queries)
        if axis.size is None:
            return Reach(
                np.zeros_like(position), position + 1 if axis.causal else np.full(queries, keys), 1, keys
            )
        if self.border == "valid":
            return Reach(position, np.full(queries, axis.size), axis.dilation, keys)
        group, x = position % axis.dilation, position // axis.dilation
        length = -((group - keys) // axis.dilation)
        leader = x - x % axis.stride + (axis.stride - 1 if axis.causal else axis.stride // 2)
        leader = np.minimum(leader, length - 1)
        first = leader - (axis.size - 1 if axis.causal else axis.size // 2)
        end = x + 1 if axis.causal else first + axis.size
        if self.border == "wrap":
            return Reach(
                (first % length) * axis.dilation + group, end - first, axis.dilation, keys, wrap=True
            )
        if self.border == "shift" and not axis.causal:
            first = np.clip(first, 0, length - axis.size)
            end = first + axis.size
        first, end = np.maximum(first, 0), np.minimum(end, length)
        return Reach(first * axis.dilation + group, end - first, axis.dilation, keys)

    def sentence(self) -> str:
        size = "the whole axis" if self.size == WHOLE else f"a window of {_by(self.size)} tokens around it"
        extras = []
        if _differs(self.stride):
            extras.append(f"shared by groups of {_by(self.stride)} queries")
        if _differs(self.dilation):
            extras.append(f"{_by(self.dilation)} apart")
        if isinstance(self.causal, tuple):
            extras.append("causal on axis " + ", ".join(str(i) for i, c in enumerate(self.causal) if c))
            if not any(self.causal):
                extras.pop()
        elif self.causal:
            extras.append("causal")
        rule = {
            "shift": "moved inside the grid at borders",
            "pad": "cut at borders",
            "valid": "for queries whose window is complete",
            "wrap": "wrapped around at borders",
        }[self.border]
        return f"each query sees {', '.join([size, *extras])}, {rule}"


def _differs(value: int | tuple[int, ...]) -> bool:
    """Whether a stride or dilation is anything else than one."""
    return any(v != 1 for v in (value if isinstance(value, tuple) else (value,)))


def _by(value: int | tuple[int, ...]) -> str:
    return " x ".join(
        "all" if v == WHOLE else str(v) for v in (value if isinstance(value, tuple) else (value,))
    )
