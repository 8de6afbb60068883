"""Two dense kernels: the readable reference, and PyTorch's scaled dot-product attention."""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manyhead.grid import Reach
from manyhead.kernels.base import (
    PER_CALL,
    PER_PASS,
    PER_PRODUCT,
    Bias,
    Kernel,
    Request,
    heads_first,
    heads_last,
)
from manyhead.kernels.frames import compute_dtype
from manyhead.kernels.relative import RelativeBias


class Reference(Kernel):
    """The definition: logits, mask, softmax, weighted sum, each as a dense array."""

    name = "reference"

    def refusal(self, request: Request) -> str | None:
        return None

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, request: Request, scale: float, bias: Bias
    ) -> tuple[Tensor, Tensor | None]:
        assert not isinstance(bias, RelativeBias)  # which comes as a bias of all pairs
        dtype = compute_dtype(q.dtype)
        query, key, value = (heads_first(x).to(dtype) for x in (q, k, v))
        key, value = (x.repeat_interleave(request.groups, 1) for x in (key, value))
        logits = (query @ key.transpose(-1, -2)) * scale  # (B, H, queries, keys)
        if bias is not None:
            logits = logits + bias
        mask = request.pattern.mask(request.query_grid, request.key_grid, q.device)
        logits = logits.masked_fill(~mask, -math.inf)
        lse = torch.logsumexp(logits.masked_fill(~mask.any(-1, keepdim=True), 0.0), -1, keepdim=True)
        out = torch.exp(logits - lse) @ value  # a query that sees nothing gets zeros
        lse = lse.masked_fill(~mask.any(-1, keepdim=True), -math.inf)
        lse = lse[..., 0].transpose(1, 2).unflatten(1, request.query_grid)
        return heads_last(out, request.query_grid).to(q.dtype), lse if request.lse else None

    def peak_bytes(self, request: Request) -> int:
        logits = request.batch * request.heads * request.queries * request.keys * request.statsize
        mask = request.queries * request.keys
        return int(logits * (4.0 if request.grad else 3.0)) + 2 * mask + 2 * request.out_bytes

    def seconds(self, request: Request) -> float:
        pairs = request.batch * request.heads * request.queries * request.keys
        products = (5 if request.grad else 2) * request.head_dim
        return PER_CALL + pairs * (products * PER_PRODUCT + (18 if request.grad else 8) * PER_PASS)


def _plain(request: Request) -> str | None:
    """How SDPA takes a pattern without a mask: 'all', 'causal' or not at all."""
    reach = request.pattern.reach(request.query_grid, request.key_grid)
    if reach is None:
        whole = request.pattern.pairs(request.query_grid, request.key_grid) == request.queries * request.keys
        return "all" if whole and not request.pattern.samples and not request.pattern.heads else None
    if all(axis.is_whole for axis in reach):
        return "all"
    if len(reach) == 1 and reach[0].queries == reach[0].keys and _is_causal(reach[0]):
        return "causal"
    return None


def _is_causal(axis: Reach) -> bool:
    return bool((axis.start == 0).all() and (axis.count == range(1, axis.keys + 1)).all() and not axis.wrap)


class Sdpa(Kernel):
    """PyTorch's fused attention, with a dense mask where the pattern is neither full nor 1-D causal."""

    name = "sdpa"

    def refusal(self, request: Request) -> str | None:
        if request.lse:
            return "scaled_dot_product_attention returns no log-sum-exp that can be differentiated"
        return None

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, request: Request, scale: float, bias: Bias
    ) -> tuple[Tensor, Tensor | None]:
        assert not isinstance(bias, RelativeBias)  # which comes as a bias of all pairs
        query, key, value = (heads_first(x) for x in (q, k, v))
        plain = _plain(request)
        mask = nothing = None
        if plain is None:
            mask = request.pattern.mask(request.query_grid, request.key_grid, q.device)
            sees = mask.any(-1, keepdim=True)
            if not bool(sees.all()):
                nothing, mask = ~sees, mask | ~sees  # such rows would be NaN
        if bias is not None:
            if plain == "causal":
                mask = request.pattern.mask(request.query_grid, request.key_grid, q.device)
            mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=plain == "causal" and bias is None,
            scale=scale,
            enable_gqa=request.groups > 1,
        )
        if nothing is not None:
            out = out.masked_fill(nothing, 0.0)
        return heads_last(out, request.query_grid), None

    def peak_bytes(self, request: Request) -> int:
        base = request.out_bytes + request.batch * request.heads * request.queries * request.statsize
        if request.groups > 1:
            base += 2 * request.batch * request.heads * request.keys * request.head_dim * request.itemsize
        rows = 256 if request.queries >= 768 else 64 if request.queries >= 192 else 32
        buffer = rows * (min(512, request.keys) + request.head_dim) * 4 * torch.get_num_threads()
        pairs = 0
        if _plain(request) is None:
            pairs = (
                request.queries * request.keys * (request.pattern.samples or 1) * (request.pattern.heads or 1)
            )
        forward = base + pairs * (1 + request.itemsize)  # the mask, and the same as numbers
        if not request.grad:
            return forward + buffer
        return max(forward + buffer, base + pairs * request.itemsize + request.gradient_bytes + 2 * buffer)

    def seconds(self, request: Request) -> float:
        pairs = float(request.batch * request.heads * request.queries * request.keys)
        products = (5 if request.grad else 2) * request.head_dim
        passes = 5.7 if request.grad else 2.3
        shared = PER_CALL if request.grad else 0.0
        plain = _plain(request)
        if plain == "causal":
            pairs *= 0.5
        elif plain is None:
            # the mask is made and converted
            shared = request.queries * request.keys * 3.2 * PER_PASS + (10 if request.grad else 4) * PER_CALL
        return PER_CALL + pairs * (products * PER_PRODUCT + passes * PER_PASS) + shared
