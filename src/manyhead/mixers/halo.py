"""Halo attention: the queries of a block share one window, the block and a halo around it.

Vaswani et al., 'Scaling Local Self-Attention for Parameter Efficient Visual Backbones', 2021, arXiv
2103.12731. With block `b`, halo `h` and window `w = b + 2h`, the query at `(y, x)` of a block and the
key at `(y', x')` of its window have the logit
`d^-0.5 q.k + q.(R_h[y' - y + w - 1] + R_w[x' - x + w - 1])`.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from manyhead.errors import InputError
from manyhead.grid import from_blocks, gather_halos, pad_to_multiple, to_blocks, to_halos
from manyhead.mixers.base import NONCAUSAL_SELF, Mixer, Traits


class HaloAttention(Mixer):
    """Blocked local attention with relative positions, for images.

    Args:
        channels: size of the last axis of the input.
        heads: number of heads.
        block: side of the query blocks; sizes that it does not divide are padded and cropped.
        halo: how far the window reaches beyond the block on each side.
        head_dim: channels of queries and keys per head, `out_channels / heads` if left out.
        out_channels: channels of the output, `channels` if left out; a multiple of `heads`.
        stride: 2 halves the map, by taking every second query of each block.
        average: down-sample by 2x2 average pooling after attention at stride 1 instead.
        bias: whether the projections have a bias.
        pad: 'mask' leaves positions outside the image out of the softmax; 'attend' lets them take part
            as zero keys and values (timm).
        scale_positions: whether the relative term is scaled by `head_dim ** -0.5` too.
        stride_relative: 'true' measures distances from the query's own place; 'sampled' from its place
            in the down-sampled block, as timm does.

    Shape:
        input `(batch, height, width, channels)`, output `(batch, ceil(height / stride), ceil(width /
        stride), out_channels)`.

    Raises:
        InputError: if a size does not fit.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("sparse, (b + 2h)^2 entries per row,", True, True, True, True, "L w^2", "L w^2")

    def __init__(
        self,
        channels: int,
        heads: int,
        block: int,
        halo: int,
        *,
        head_dim: int | None = None,
        out_channels: int | None = None,
        stride: Literal[1, 2] = 1,
        average: bool = False,
        bias: bool = False,
        pad: Literal["mask", "attend"] = "mask",
        scale_positions: bool = False,
        stride_relative: Literal["true", "sampled"] = "true",
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        if heads < 1 or out_channels % heads:
            raise InputError(f"heads must divide the {out_channels} output channels, got {heads}")
        if block < 1 or halo < 0:
            raise InputError(f"block is at least 1 and halo at least 0, got {block} and {halo}")
        if stride not in (1, 2):
            raise InputError(f"stride is 1 or 2, got {stride}")
        if pad not in ("mask", "attend"):
            raise InputError(f"pad is 'mask' or 'attend', got {pad!r}")
        self.heads, self.block, self.halo, self.stride = heads, block, halo, stride
        self.head_dim = out_channels // heads if head_dim is None else head_dim
        self.value_dim = out_channels // heads
        self.average = average or block % stride != 0
        self.pad, self.scale_positions, self.stride_relative = pad, scale_positions, stride_relative
        window = block + 2 * halo
        self.q = nn.Linear(channels, heads * self.head_dim, bias=bias)
        # per head the channels of keys, then those of values
        self.kv = nn.Linear(channels, heads * (self.head_dim + self.value_dim), bias=bias)
        self.height_relative = nn.Parameter(torch.randn(2 * window - 1, self.head_dim) * self.head_dim**-0.5)
        self.width_relative = nn.Parameter(torch.randn(2 * window - 1, self.head_dim) * self.head_dim**-0.5)

    def _relative(self, q: Tensor, table: Tensor, step: int) -> Tensor:
        """`q . R[key - query + w - 1]` along the first axis, `(N, b, b, w)` of `(N, b, b, head_dim)`."""
        queries, window = q.shape[1], self.block + 2 * self.halo
        place = torch.arange(queries, device=q.device) * (step if self.stride_relative == "true" else 1)
        index = torch.arange(window, device=q.device) - place[:, None] + window - 1
        rows = q.movedim(1, 0).reshape(queries, -1, q.shape[-1])  # queries of one row share its offsets
        products = torch.bmm(rows, table[index].transpose(1, 2))
        return products.reshape(queries, q.shape[0], q.shape[2], window).movedim(0, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        if x.ndim != 4:
            raise InputError(f"x has the shape (batch, height, width, channels), got {tuple(x.shape)}")
        step = 1 if self.average else self.stride
        weights, v, grid = self._weights(x, step)
        out = torch.bmm(weights.flatten(0, 3).flatten(1, 2), v)
        out = out.reshape(*weights.shape[:6], self.value_dim)  # (batch, heads, rows, columns, side, side, .)
        out = out.movedim(1, -2).flatten(-2)
        out = from_blocks(out, [-(-size // step) for size in grid])
        if self.average and self.stride > 1:
            out = avg_pool2d(out.movedim(-1, 1), self.stride, ceil_mode=True).movedim(1, -1)
        return out

    def _weights(self, x: Tensor, step: int) -> tuple[Tensor, Tensor, list[int]]:
        """Weights `(batch, heads, rows, columns, side, side, w * w)`, values, grid.

        Values are `(batch * heads * rows * columns, w * w, value_dim)`.
        """
        grid, sizes, halos = list(x.shape[1:3]), [self.block] * 2, [self.halo] * 2
        scale, window = self.head_dim**-0.5, self.block + 2 * self.halo
        query = to_blocks(self.q(x), sizes)[:, :, :, ::step, ::step]
        query = query.unflatten(-1, (self.heads, self.head_dim)).movedim(-2, 1)
        shape = query.shape[:-1]  # (batch, heads, rows, columns, side, side)
        query = query.reshape(-1, *query.shape[-3:])
        kv = pad_to_multiple(self.kv(x), sizes).unflatten(-1, (self.heads, -1)).movedim(-2, 1).flatten(0, 1)
        parts = kv.split([self.head_dim, self.value_dim], -1)
        k, v = (gather_halos(part, sizes, halos).flatten(0, 2).flatten(1, 2) for part in parts)
        place = query * scale if self.scale_positions else query
        down = self._relative(place, self.height_relative, step).contiguous().view(*shape, window)
        across = self._relative(place.transpose(1, 2), self.width_relative, step)
        across = across.transpose(1, 2).contiguous().view(*shape, window)
        # a key is left out with its row or with its column, so masks go onto the two relative terms
        rows, columns = (self._outside(size, x) for size in grid)
        down, across = down + rows[:, None, None, None], across + columns[:, None, None]
        relative = (down[..., None] + across[..., None, :]).view(len(k), -1, window * window)
        logits = torch.baddbmm(relative, (query * scale).flatten(1, 2), k.transpose(1, 2))
        return logits.softmax(-1).view(*shape, -1), v, grid

    def _outside(self, size: int, like: Tensor) -> Tensor:
        """Additive mask of an axis, `(blocks, w)`: -inf for keys outside it, or only in its padding."""
        blocks = -(-size // self.block)
        first = torch.arange(blocks, device=like.device)[:, None] * self.block - self.halo
        key = first + torch.arange(self.block + 2 * self.halo, device=like.device)
        hidden = (key < 0) | (key >= size)
        if self.pad == "attend":
            hidden = (key >= size) & (key < blocks * self.block)  # only what was added to make blocks whole
        return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
            hidden, -torch.inf
        )

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Dense weights `(batch, heads, queries, keys)`, at stride 1 and with `pad='mask'`."""
        if self.stride != 1 or self.pad != "mask":
            raise InputError("the mixing matrix is that of stride 1 and pad='mask'")
        weights, _, grid = self._weights(x, 1)
        weights = weights.flatten(-3, -2)
        place = torch.arange(grid[0] * grid[1], device=x.device, dtype=torch.float64).reshape(1, *grid) + 1
        sizes, halos = [self.block] * 2, [self.halo] * 2
        keys = to_halos(pad_to_multiple(place, sizes), sizes, halos)[0].flatten(2).long() - 1
        queries = to_blocks(place, sizes)[0].flatten(2).long() - 1  # (rows, columns, b * b)
        dense = weights.new_zeros(x.shape[0], self.heads, int(place.numel()) + 1, int(place.numel()) + 1)
        where = (queries[..., :, None].expand(-1, -1, -1, keys.shape[-1]), keys[..., None, :])
        dense[:, :, where[0], where[1]] = weights  # padding goes to the last row and column
        return dense[:, :, :-1, :-1]
