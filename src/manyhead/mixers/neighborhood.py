"""Neighbourhood attention: every token attends to the window around it.

Hassani et al., 'Neighborhood Attention Transformer', 2022, arXiv 2204.07143; dilated in 2209.15001;
generalised with strides in 2504.16922. The projections and their order follow NATTEN.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from manyhead.attention import RelativeBias, attend
from manyhead.errors import InputError
from manyhead.kernels.unfused import neighborhood_qk, slots_of
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, Traits
from manyhead.pattern import Pattern, Window


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """`(..., 3 * channels)`, laid out as (3, heads, head_dim), to three `(..., heads, head_dim)`."""
    q, k, v = qkv.reshape(*qkv.shape[:-1], 3, heads, -1).unbind(-3)
    return q, k, v


def check_heads(channels: int, heads: int) -> None:
    """Refuse heads that do not divide the channels.

    Raises:
        InputError: if they do not.
    """
    if heads < 1 or channels % heads:
        raise InputError(f"heads must divide the {channels} channels, got {heads}")


class NeighborhoodAttention(Mixer):
    """Attention of every token to its window on a 1-D, 2-D or 3-D grid.

    Args:
        channels: size of the last axis of the input.
        heads: number of heads, a divisor of `channels`.
        pattern: a `Window`, or any pattern on the grid.
        bias: whether the projection to queries, keys and values has a bias.
        relative: whether to learn a relative position bias (trunc-normal, standard deviation 0.02), as
            early versions did; it is not scaled, and takes a `Window` with one size per axis.
        kernel: kernel of `attend`.

    Shape:
        input and output `(batch, *grid, channels)`.

    Raises:
        InputError: if heads do not divide the channels, or a relative bias meets another pattern.
    """

    traits = Traits("sparse, s entries per row,", True, True, True, True, "L s", "L")

    def __init__(
        self,
        channels: int,
        heads: int,
        pattern: Pattern,
        *,
        bias: bool = True,
        relative: bool = False,
        kernel: Literal["auto", "reference", "sdpa", "windows", "blocks", "flex"] = "auto",
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.pattern, self.kernel = heads, pattern, kernel
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.proj = nn.Linear(channels, channels)
        causal = getattr(pattern, "causal", False)
        if (all(causal) if isinstance(causal, tuple) else causal) and isinstance(pattern, Window):
            self.supports = frozenset({CAUSAL_SELF})
        else:
            self.supports = frozenset({NONCAUSAL_SELF})
        self.rpb: nn.Parameter | None = None
        if relative:
            if not isinstance(pattern, Window) or not isinstance(pattern.size, tuple):
                raise InputError("a relative position bias takes a Window with one size per axis")
            self.rpb = nn.Parameter(torch.empty(heads, *(2 * size - 1 for size in pattern.size)))
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        q, k, v = split_heads(self.qkv(x), self.heads)  # (batch, *grid, heads, head_dim)
        if self.rpb is None:
            out = attend(q, k, v, self.pattern, kernel=self.kernel)
            assert isinstance(out, Tensor)
        else:
            assert isinstance(self.pattern, Window)
            bias = RelativeBias(self.rpb, self.pattern.dilation)
            out = attend(q, k, v, self.pattern, bias=bias, kernel=self.kernel)
            assert isinstance(out, Tensor)
        mixed: Tensor = self.proj(out.flatten(-2))
        return mixed

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Dense attention weights `(batch, heads, queries, keys)`."""
        q, k, _ = split_heads(self.qkv(x), self.heads)
        grid = tuple(x.shape[1:-1])
        if self.rpb is not None:
            assert isinstance(self.pattern, Window)
            first = [part.movedim(-2, 1) for part in (q * q.shape[-1] ** -0.5, k)]
            slots = neighborhood_qk(first[0], first[1], self.pattern, self.rpb).softmax(-1)
            index = slots_of(self.pattern, grid, q.shape[-1]).index
            flat = slots.flatten(2, -2)
            dense = flat.new_zeros(*flat.shape[:3], flat.shape[2])
            return dense.scatter_add(3, index.expand_as(flat).to(flat.device), flat)
        q, k = (part.flatten(1, -3).transpose(1, 2) for part in (q, k))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights: Tensor = logits.masked_fill(~self.pattern.mask(grid, device=x.device), -torch.inf).softmax(
            -1
        )
        return weights
