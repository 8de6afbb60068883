"""Attention within blocks of neighbours or within lattices that span the grid.

Tu et al., 'MaxViT', 2022, arXiv 2204.01697: block attention and grid attention with a learned relative
bias. Ding et al., 'DaViT', 2022, arXiv 2204.03645: window attention without it.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.grid import crop, from_blocks, from_lattices, pad_to_multiple, per_axis, to_blocks, to_lattices
from manyhead.mixers.base import NONCAUSAL_SELF, Mixer, Traits
from manyhead.mixers.neighborhood import check_heads, split_heads

Padding = Literal["refuse", "mask", "attend"]


class BlockAttention(Mixer):
    """Dense attention within each block of neighbouring tokens.

    Args:
        channels: size of the last axis of the input.
        heads: number of heads, a divisor of `channels`.
        size: tokens of a block per axis.
        relative: whether to learn a bias per head and offset, key minus query, in steps of the block.
        padding: for sizes that are no multiple of the block: 'refuse', 'mask' (padding is not seen) or
            'attend' (it takes part, as in DaViT).

    Shape:
        input and output `(batch, *grid, channels)`.

    Raises:
        InputError: if heads do not divide the channels, or the grid does not fit.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("block-diagonal", True, True, True, True, "L P^2", "L P^2")

    def __init__(
        self,
        channels: int,
        heads: int,
        size: int | Sequence[int],
        *,
        relative: bool = False,
        padding: Padding = "mask",
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if padding not in ("refuse", "mask", "attend"):
            raise InputError(f"padding is 'refuse', 'mask' or 'attend', got {padding!r}")
        self.heads, self.padding = heads, padding
        self.size = tuple(size) if isinstance(size, Sequence) else (size, size)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.table: nn.Parameter | None = None
        if relative:
            self.table = nn.Parameter(torch.empty(heads, *(2 * side - 1 for side in self.size)))
            nn.init.normal_(self.table, std=0.02)

    def relative_bias(self) -> Tensor | None:
        """Bias `(heads, tokens, tokens)` of a block, rows queries."""
        if self.table is None:
            return None
        places = torch.meshgrid(*(torch.arange(side) for side in self.size), indexing="ij")
        index: list[Tensor | slice] = [slice(None)]
        for place, side in zip(places, self.size, strict=True):
            flat = place.flatten()
            index.append(flat[None, :] - flat[:, None] + side - 1)
        return self.table[tuple(index)]

    def resize(self, size: int | Sequence[int]) -> None:
        """Change the block and interpolate the bias table linearly, for another resolution."""
        self.size = per_axis(tuple(size) if isinstance(size, Sequence) else size, len(self.size), "size")
        if self.table is not None:
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.size)]
            sides = [2 * side - 1 for side in self.size]
            with torch.no_grad():
                table = interpolate(self.table[None], sides, mode=mode, align_corners=False)[0]
            self.table = nn.Parameter(table)

    def _cut(self, x: Tensor) -> Tensor:
        return to_blocks(x, self.size)

    def _join(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        return from_blocks(x, grid)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        axes, grid = len(self.size), list(x.shape[1:-1])
        if len(grid) != axes:
            raise InputError(f"x has {axes} grid axes, got the shape {tuple(x.shape)}")
        whole = all(tokens % side == 0 for tokens, side in zip(grid, self.size, strict=True))
        if not whole and self.padding == "refuse":
            raise InputError(f"the grid {tuple(grid)} is no multiple of the block {self.size}")
        parts = self._cut(pad_to_multiple(x, self.size))
        blocks = parts.shape[1 : 1 + axes]
        tokens = parts.flatten(0, axes).flatten(1, axes)  # (batch * blocks, tokens, channels)
        q, k, v = (part.transpose(1, 2) for part in split_heads(self.qkv(tokens), self.heads))
        bias = self.relative_bias()
        if not whole and self.padding == "mask":
            seen = self._cut(
                pad_to_multiple(torch.ones(1, *grid, dtype=torch.bool, device=x.device), self.size)
            )
            seen = (
                seen.reshape(1, -1, 1, 1, math.prod(self.size))
                .expand(x.shape[0], -1, -1, -1, -1)
                .flatten(0, 1)
            )
            hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -math.inf)
            none = ~seen.any(-1, keepdim=True)  # a block of padding only
            hidden = hidden.masked_fill(none, 0.0)
            bias = hidden if bias is None else bias + hidden
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = out.transpose(1, 2).reshape(-1, *blocks, *self.size, x.shape[-1])
        padded = [tokens + -tokens % side for tokens, side in zip(grid, self.size, strict=True)]
        mixed: Tensor = self.proj(crop(self._join(out, padded), grid))
        return mixed

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Dense weights `(batch, heads, queries, keys)` on a grid of whole blocks."""
        grid = list(x.shape[1:-1])
        if any(tokens % side for tokens, side in zip(grid, self.size, strict=True)):
            raise InputError(f"the mixing matrix takes grids of whole blocks {self.size}, got {tuple(grid)}")
        axes = len(self.size)
        place = torch.arange(math.prod(grid), device=x.device).reshape(1, *grid)
        where = self._cut(place)[0].flatten(0, axes - 1).flatten(1)  # (blocks, tokens)
        q, k, _ = split_heads(self.qkv(x).flatten(1, -2), self.heads)
        q, k = (
            part[:, where].transpose(-3, -2) for part in (q, k)
        )  # (batch, blocks, heads, tokens, head_dim)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        bias = self.relative_bias()
        weights = (logits if bias is None else logits + bias).softmax(-1).transpose(1, 2)
        dense: Tensor = weights.new_zeros(x.shape[0], self.heads, place.numel(), place.numel())
        dense[:, :, where[:, :, None], where[:, None, :]] = weights
        return dense


class GridAttention(BlockAttention):
    """Dense attention within each lattice of `size` tokens spread over the whole grid.

    Arguments and shapes as of `BlockAttention`; `size` is the number of lattice points per axis, and
    offsets of the bias are lattice steps.
    """

    traits = Traits("permuted block-diagonal", True, True, True, True, "L G^2", "L G^2")

    def _cut(self, x: Tensor) -> Tensor:
        return to_lattices(x, self.size)

    def _join(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        return from_lattices(x, grid)
