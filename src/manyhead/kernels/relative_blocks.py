"""Local attention in blocks with relative positions for keys and values.

Blocks of `block` tokens see themselves and their neighbours; positions as in Shaw et al., 2018, arXiv
1803.02155: `logit_ij = q_i . (k_j + r^K)`, `out_i = sum_j a_ij (v_j + r^V)`, both of the clipped `j - i`.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    flank: int,
    key_table: Tensor,
    value_table: Tensor,
    *,
    causal: bool,
    absent: Tensor | None = None,
) -> Tensor:
    """Attend to one's own block and `flank` blocks before it, and after it if not causal.

    Args:
        q: scaled queries `(batch, heads, tokens, d)`.
        k: keys, likewise.
        v: values, likewise.
        block: tokens of a block.
        flank: neighbouring blocks on a side.
        key_table: `(heads, 2 m + 1, d)`, a row for each clipped distance from -m to m.
        value_table: likewise.
        causal: whether a token sees itself and earlier ones only.
        absent: True where a key is padding, `(batch, tokens)`.
    """
    tokens = q.shape[2]
    blocks = -(-tokens // block)
    fill = blocks * block - tokens
    after = 0 if causal else flank
    q = pad(q, (0, 0, 0, fill)).unflatten(2, (blocks, block))
    width = (flank + 1 + after) * block
    k, v = (
        pad(x, (0, 0, flank * block, fill + after * block)).unfold(2, width, block).mT for x in (k, v)
    )  # (batch, heads, blocks, width, d)
    at = torch.arange(blocks * block, device=q.device).view(blocks, block, 1)
    key_at = (torch.arange(blocks, device=q.device)[:, None] - flank) * block + torch.arange(
        width, device=q.device
    )
    distance = key_at[:, None] - at  # (blocks, block, width), the same in every block
    seen = (key_at[:, None] >= 0) & (key_at[:, None] < tokens)
    if causal:
        seen = seen & (distance <= 0)
    if absent is not None:
        there = pad(~absent, (flank * block, fill + after * block)).unfold(1, width, block)
        seen = seen & there[:, None, :, None]  # (batch, 1, blocks, block, width)
    m = key_table.shape[1] // 2
    row = distance[0].clamp(-m, m) + m
    logits = q @ k.mT + torch.einsum("zhnid,hijd->zhnij", q, key_table[:, row])
    weights = logits.masked_fill(~seen, -1e9).softmax(-1)
    out = weights @ v + torch.einsum("zhnij,hijd->zhnid", weights, value_table[:, row])
    return out.flatten(2, 3)[:, :, :tokens]
