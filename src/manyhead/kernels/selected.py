"""Attention of selected (query, head) pairs only: what is not selected costs nothing.

The reference is dense attention with unselected outputs set to zero.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 256  # queries of a block; under a causal mask a block's keys end where its last query stands


def selected_attention(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, *, causal: bool = False) -> Tensor:
    """Softmax attention where each query works in some heads only.

    Args:
        q: queries `(batch, heads, tokens, head_dim)`.
        k: keys `(batch, heads, keys, head_dim)`.
        v: values `(batch, heads, keys, head_dim)`.
        selected: `(batch, routed, tokens)`, which queries the last `routed` heads compute; the heads
            before them compute all.
        causal: whether query t sees keys up to t only.

    Returns:
        `(batch, heads, tokens, head_dim)`, zero where a query is not selected.
    """
    batch, heads, tokens, head_dim = q.shape
    shared = heads - selected.shape[1]
    parts = []
    if shared:
        parts.append(
            scaled_dot_product_attention(q[:, :shared], k[:, :shared], v[:, :shared], is_causal=causal)
        )
    if shared == heads:
        return parts[0]
    chosen = selected.reshape(-1, tokens)  # (batch * routed, tokens)
    flat = q[:, shared:].reshape(-1, head_dim)
    rows = chosen.flatten().nonzero()[:, 0]
    counts = chosen.sum(1).tolist()
    queries = torch.split(flat.index_select(0, rows), counts)
    places = torch.split(chosen.nonzero()[:, 1], counts)
    outs = []
    every = (part[:, shared:].flatten(0, 1).unbind(0) for part in (k, v))
    for query, place, key, value in zip(queries, places, *every, strict=True):
        outs += [_causal(query, key, value, place)] if causal else [_one(query, key, value)]
    routed = torch.zeros_like(flat).index_copy(0, rows, torch.cat(outs)).view(batch, -1, tokens, head_dim)
    return torch.cat([*parts, routed], 1)


def _one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    out: Tensor = scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], attn_mask=mask)[
        0, 0
    ]
    return out


def _causal(q: Tensor, k: Tensor, v: Tensor, place: Tensor) -> Tensor:
    """Queries at ascending `place`s, in blocks that read no keys behind their last query."""
    if not len(q):
        return q
    outs = []
    for query, at in zip(torch.split(q, BLOCK), torch.split(place, BLOCK), strict=True):
        end = int(at[-1]) + 1
        mask = torch.arange(end, device=q.device) <= at[:, None]
        outs.append(_one(query, k[:end], v[:end], mask[None, None]))
    return torch.cat(outs)
