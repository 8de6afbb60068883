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
from manyhead.grid import from_blocks, pad_to_multiple, to_blocks, to_halos
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

    def _relative(self, q: Tensor, table: Tensor, axis: int, step: int) -> Tensor:
        """`q . R[key - query + w - 1]` along one axis, `(..., b, b, w)`; `axis` of q is that of the rows."""
        queries, window = q.shape[axis], self.block + 2 * self.halo
        place = torch.arange(queries, device=q.device) * (step if self.stride_relative == "true" else 1)
        index = torch.arange(window, device=q.device) - place[:, None] + window - 1
        products = q @ table.T  # (..., b, b, 2w - 1)
        shape = [1] * (products.ndim - 1) + [window]
        shape[axis] = queries
        index = index.reshape(shape).expand(*products.shape[:-1], window)
        return products.gather(-1, index)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        if x.ndim != 4:
            raise InputError(f"x has the shape (batch, height, width, channels), got {tuple(x.shape)}")
        step = 1 if self.average else self.stride
        weights, v, blocks, grid = self._weights(x, step)
        out = torch.einsum(
            "...nqk,...knv->...qnv", weights, v
        )  # (batch, rows, columns, b * b, heads, value_dim)
        out = out.reshape(*out.shape[:3], blocks, blocks, -1)
        out = from_blocks(out, [-(-size // step) for size in grid])
        if self.average and self.stride > 1:
            out = avg_pool2d(out.movedim(-1, 1), self.stride, ceil_mode=True).movedim(1, -1)
        return out

    def _weights(self, x: Tensor, step: int) -> tuple[Tensor, Tensor, int, list[int]]:
        """Weights `(batch, rows, columns, heads, b * b, w * w)`, values, queries per block side, grid."""
        grid = list(x.shape[1:3])
        b, h, sizes = self.block, self.halo, [self.block, self.block]
        query = to_blocks(self.q(x), sizes)[:, :, :, ::step, ::step]
        side = query.shape[3]
        query = query.reshape(*query.shape[:5], self.heads, self.head_dim).movedim(-2, 3)
        kv = to_halos(pad_to_multiple(self.kv(x), sizes), sizes, [h, h])  # (batch, rows, columns, w, w, kv)
        kv = kv.reshape(*kv.shape[:3], -1, self.heads, self.head_dim + self.value_dim)
        k, v = kv[..., : self.head_dim], kv[..., self.head_dim :]
        scale = self.head_dim**-0.5
        flat = query.flatten(-3, -2)  # (batch, rows, columns, heads, b * b, head_dim)
        logits = torch.einsum("...nqd,...knd->...nqk", flat, k) * scale
        relative = (
            self._relative(query, self.height_relative, -3, step)[..., :, None]
            + self._relative(query, self.width_relative, -2, step)[..., None, :]
        )  # (..., b, b, w, w)
        relative = relative.reshape(logits.shape)
        logits = logits + (relative * scale if self.scale_positions else relative)
        hidden = self._outside(grid, b, h, x.device)
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, :, None, None], -torch.inf)
        return logits.softmax(-1), v, side, grid

    def _outside(self, grid: list[int], block: int, halo: int, device: torch.device) -> Tensor | None:
        """Keys that are left out, `(rows, columns, w * w)`: outside the image, or only in its padding."""
        inside = torch.ones(1, *grid, device=device)
        padded = pad_to_multiple(inside, [block, block])
        if self.pad == "attend":
            if padded.shape == inside.shape:
                return None
            padded = 1.0 - padded  # only what was added to make blocks whole is hidden
            return to_halos(padded, [block, block], [halo, halo])[0].flatten(2) > 0
        return to_halos(padded, [block, block], [halo, halo])[0].flatten(2) == 0

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Dense weights `(batch, heads, queries, keys)`, at stride 1 and with `pad='mask'`."""
        if self.stride != 1 or self.pad != "mask":
            raise InputError("the mixing matrix is that of stride 1 and pad='mask'")
        weights, _, _, grid = self._weights(x, 1)
        place = torch.arange(grid[0] * grid[1], device=x.device, dtype=torch.float64).reshape(1, *grid) + 1
        sizes, halos = [self.block] * 2, [self.halo] * 2
        keys = to_halos(pad_to_multiple(place, sizes), sizes, halos)[0].flatten(2).long() - 1
        queries = to_blocks(place, sizes)[0].flatten(2).long() - 1  # (rows, columns, b * b)
        dense = weights.new_zeros(x.shape[0], self.heads, int(place.numel()) + 1, int(place.numel()) + 1)
        where = (queries[..., :, None].expand(-1, -1, -1, keys.shape[-1]), keys[..., None, :])
        dense[:, :, where[0], where[1]] = weights.movedim(3, 1)  # padding goes to the last row and column
        return dense[:, :, :-1, :-1]
