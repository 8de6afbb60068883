"""Patterns whose tokens fall into equal groups: reshape, then dense attention within each group."""

import math

import numpy as np
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manyhead.grid import Reach
from manyhead.kernels.base import PER_CALL, PER_PASS, PER_PRODUCT, Bias, Kernel, Request


def _partition(axis: Reach) -> tuple[int, bool] | None:
    """Tokens per group of an axis, and whether they are neighbours (a lattice if not); None if uneven."""
    size = int(axis.count[0]) if len(axis.count) else 0
    if axis.queries != axis.keys or size == 0 or axis.keys % size or (axis.count != size).any():
        return None
    place = np.arange(axis.queries)
    if axis.step == 1:
        return (size, True) if (axis.start == place // size * size).all() else None
    step = axis.keys // size
    return (size, False) if axis.step == step and (axis.start == place % step).all() else None


class Blocks(Kernel):
    """Dense attention in blocks of neighbours or lattices, without a mask."""

    name = "blocks"

    def _groups(self, request: Request) -> list[tuple[int, bool]] | None:
        reach = request.pattern.reach(request.query_grid, request.key_grid)
        if reach is None:
            return None
        found = [_partition(axis) for axis in reach]
        groups = [group for group in found if group is not None]
        return groups if len(groups) == len(found) else None

    def refusal(self, request: Request) -> str | None:
        if request.lse:
            return "blocks run through scaled_dot_product_attention, which returns no log-sum-exp"
        if request.bias:
            return "a bias over all pairs does not fit attention within blocks"
        groups = self._groups(request)
        if groups is None:
            return "the pattern does not cut this grid into equal groups that see only themselves"
        if math.prod(size for size, _ in groups) == request.keys:
            return "the pattern leaves the grid in one piece, which is dense attention"
        return None

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, request: Request, scale: float, bias: Bias
    ) -> tuple[Tensor, Tensor | None]:
        groups = self._groups(request)
        assert groups is not None
        axes = len(groups)
        split: list[int] = []
        outside, inside = [], []  # axes that number the groups, axes within one
        for axis, ((size, neighbours), tokens) in enumerate(zip(groups, request.key_grid, strict=True)):
            split += [tokens // size, size] if neighbours else [size, tokens // size]
            outside.append(1 + 2 * axis + (0 if neighbours else 1))
            inside.append(1 + 2 * axis + (1 if neighbours else 0))
        heads, order = 1 + 2 * axes, [0, *outside, 1 + 2 * axes, *inside, 2 + 2 * axes]

        def cut(x: Tensor) -> Tensor:
            x = x.reshape(x.shape[0], *split, *x.shape[-2:]).permute(order)
            return x.flatten(heads - axes + 1, -2).flatten(0, axes)  # (B * groups, H, tokens, D)

        out = scaled_dot_product_attention(cut(q), cut(k), cut(v), scale=scale, enable_gqa=request.groups > 1)
        shape = [request.batch, *(split[axis - 1] for axis in outside), request.heads]
        shape += [*(split[axis - 1] for axis in inside), request.value_dim]
        back = sorted(range(len(order)), key=order.__getitem__)
        out = out.reshape(shape).permute(back)
        return out.reshape(request.batch, *request.query_grid, request.heads, request.value_dim), None

    @staticmethod
    def _moved(request: Request, groups: list[tuple[int, bool]]) -> bool:
        """Whether putting tokens in block order copies them."""
        return len(groups) > 1 or (not groups[0][1] and request.batch > 1)

    def peak_bytes(self, request: Request) -> int:
        groups = self._groups(request)
        assert groups is not None
        out, stats = request.out_bytes, request.batch * request.heads * request.queries * request.statsize
        if self._moved(request, groups):
            if not request.grad:
                return request.gradient_bytes + out + stats
            upstream = out if request.heads > 1 else 0
            return 2 * request.gradient_bytes + 3 * out + upstream + stats
        lattice = out if request.grad and not groups[0][1] else 0
        return out + stats + lattice + (request.gradient_bytes if request.grad else 0)

    def seconds(self, request: Request) -> float:
        groups = self._groups(request)
        assert groups is not None
        size = math.prod(tokens for tokens, _ in groups)
        pairs = request.batch * request.heads * request.queries * size
        products = (7 if request.grad else 2) * request.head_dim
        moved = 0.0
        if self._moved(request, groups):
            moved = (
                (request.gradient_bytes + request.out_bytes) / request.itemsize * (3 if request.grad else 1)
            )
        calls = request.batch * request.heads * request.queries / size * 0.5e-6
        slow = max(1.0, 24 / size)
        work = pairs * (products * PER_PRODUCT * slow + (6 if request.grad else 2.5) * PER_PASS)
        return PER_CALL + work + moved * 2 * PER_PASS + calls
