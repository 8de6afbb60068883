"""PyTorch's FlexAttention on a GPU: the pattern as `mask_mod`, compiled into block-sparse tiles.

Dong et al., 'Flex Attention', 2024, arXiv 2412.05496. It has no backward pass on a CPU.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manyhead.grid import Grid
from manyhead.kernels.base import PER_CALL, PER_PRODUCT, Bias, Kernel, Request, heads_first, heads_last
from manyhead.pattern.base import Pattern


@lru_cache(maxsize=64)
def _block_mask(
    pattern: Pattern, query_grid: Grid, key_grid: Grid, batch: int | None, heads: int | None, device: str
) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    queries, keys = math.prod(query_grid), math.prod(key_grid)
    return create_block_mask(
        pattern.mask_mod(query_grid, key_grid), batch, heads, queries, keys, device=device
    )


@lru_cache(maxsize=1)
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


class Flex(Kernel):
    """FlexAttention, on CUDA only."""

    name = "flex"

    def refusal(self, request: Request) -> str | None:
        if not request.device.startswith("cuda"):
            return f"FlexAttention has no backward pass on {request.device}"
        if request.bias:
            return "a dense bias is left to scaled_dot_product_attention"
        if request.dtype == torch.float64:
            return "FlexAttention computes in float32 at most"
        return None

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, request: Request, scale: float, bias: Bias
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = (heads_first(x).contiguous() for x in (q, k, v))
        pattern = request.pattern
        mask = _block_mask(
            pattern,
            request.query_grid,
            request.key_grid,
            request.batch if pattern.samples else None,
            request.heads if pattern.heads else None,
            str(q.device),
        )
        run = _compiled() if q.is_cuda else _eager()
        options = {"block_mask": mask, "scale": scale, "enable_gqa": request.groups > 1}
        if request.lse:
            out, lse = run(query, key, value, return_lse=True, **options)
            return heads_last(out, request.query_grid), lse.transpose(1, 2).unflatten(1, request.query_grid)
        return heads_last(run(query, key, value, **options), request.query_grid), None

    def peak_bytes(self, request: Request) -> int:
        copies = 2 * request.gradient_bytes + request.out_bytes if request.grad else request.gradient_bytes
        return copies + 2 * request.out_bytes

    def seconds(self, request: Request) -> float:
        pairs = request.pattern.pairs(request.query_grid, request.key_grid)
        pairs *= (1 if request.pattern.samples else request.batch) * (
            1 if request.pattern.heads else request.heads
        )
        products = (7 if request.grad else 2) * request.head_dim
        return PER_CALL + 2 * pairs * products * PER_PRODUCT / 1000


def _eager() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention
