"""Spatial attention with a copy step: each stock takes over the mixture of the query that attends to it most.

Ma, Xue, Lu and Chen, 'Stockformer', 2024, arXiv 2401.06139, section 3.3, in the released code's reading
(the 'sparse spatial attention' of Fang et al., 'STWave', ICDE 2023). Per day, over stocks:

    A = softmax(Q K' / sqrt(d))     C = A V     i*(n) = argmax_i A[i, n]     C'[n] = C[i*(n)]

The argmax has no gradient; the gradient flows through C. What is notable here:
- only rows of C that some stock copies are ever read, so only they are computed, and only they have a
  gradient: often far fewer than N of them, never more;
- nothing of size N^2 D exists, and the N^2 attention matrix exists for a tile of queries only: the backward
  pass recomputes the rows that it needs.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.stocks.network.layers import FeedForward, linear, normalize

TILE_BYTES = 8 * 2**20  # of attention weights alive at once: about what the caches hold
KEEP_BYTES = 32 * 2**20  # of copied attention rows kept from forward to backward; more are recomputed


def copy_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, scale: float, available: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, dense and differentiable by autograd; the yardstick of `copy_attention`.

    Args:
        query, key, value: `(days, stocks, dim)`.
        scale: multiplies the scores.
        available: `(days, stocks)` Booleans; others are not attended to and their mixtures not copied.

    Returns:
        The copied mixtures `(days, stocks, dim)` and the indices i* `(days, stocks)`.
    """
    scores = query @ key.mT * scale  # (days, queries, keys)
    if available is not None:
        scores = scores.masked_fill(~available[:, None, :], -torch.inf)
    weights = scores.softmax(-1)
    ranked = weights if available is None else weights.masked_fill(~available[:, :, None], -1.0)
    copied = ranked.argmax(-2)  # (days, stocks), ties go to the lowest index
    mixture = weights @ value
    return mixture.gather(1, copied[..., None].expand_as(mixture)), copied


def _attend(
    query: Tensor, key: Tensor, scale: float, hidden: Tensor | None, buffer: Tensor | None = None
) -> Tensor:
    """softmax(scale * query key') of a few days; `hidden` `(days, stocks)` marks keys that are not seen."""
    shape = (query.shape[0], query.shape[1], key.shape[1])
    scores = query.new_empty(shape) if buffer is None else buffer[: math.prod(shape)].view(shape)
    torch.baddbmm(scores, query, key.mT, beta=0, alpha=scale, out=scores)
    if hidden is not None:
        scores.masked_fill_(hidden[:, None, :], -torch.inf)
    return torch._softmax(scores, -1, False, out=scores)


def _spans(total: int, size: int) -> list[slice]:
    size = max(1, min(total, size))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _copied(query: Tensor, key: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
    """i*(n) for every day and stock, by tiles of days or, in large markets, of queries within a day."""
    days, stocks, _ = query.shape
    row = stocks * query.element_size()
    rows = max(1, min(stocks, TILE_BYTES // row))
    together = max(1, TILE_BYTES // (rows * row)) if rows == stocks else 1
    buffer = query.new_empty(min(days, together) * rows * stocks)
    copied = torch.empty(days, stocks, dtype=torch.int64, device=query.device)
    for day in _spans(days, together):
        unseen = None if hidden is None else hidden[day]
        best: Tensor | None = None
        for tile in _spans(stocks, rows):
            weights = _attend(query[day, tile], key[day], scale, unseen, buffer)
            if unseen is not None:
                weights.masked_fill_(unseen[:, tile, None], -1.0)
            largest, where = weights.max(-2)
            if best is None:
                best, copied[day] = largest, where
            else:  # strictly larger, so that ties stay with the lowest index
                later = largest > best
                best = torch.where(later, largest, best)
                copied[day] = torch.where(later, where + tile.start, copied[day])
    return copied


class _CopyAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: float, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key, value = qkv.chunk(3, -1)
        days, stocks, dim = query.shape
        copied = _copied(query, key, scale, hidden)
        # The distinct rows among i*, in ascending order, padded to the same number for every day by
        # rows that nobody copies (they receive no gradient): rows (days, distinct), slot (days, stocks).
        chosen = torch.zeros(days, stocks, dtype=torch.bool, device=qkv.device).scatter_(1, copied, True)
        rank = chosen.cumsum(1)
        distinct = int(rank[:, -1].max())
        rows = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :distinct]
        base = torch.arange(days, device=qkv.device)[:, None]
        slot = (rank.gather(1, copied) - 1 + base * distinct).flatten()
        picked = (rows + base * stocks).flatten()
        asked = query.reshape(days * stocks, dim) if days == 1 else query.flatten(0, 1)
        asked = asked.index_select(0, picked).view(days, distinct, dim)
        keep = days * distinct * stocks * qkv.element_size() <= KEEP_BYTES and ctx.needs_input_grad[0]
        kept = qkv.new_empty(days, distinct, stocks) if keep else None
        mixture = qkv.new_empty(days, distinct, dim)
        size = TILE_BYTES // (distinct * stocks * qkv.element_size())
        for day in _spans(days, size):
            unseen = None if hidden is None else hidden[day]
            buffer = None if kept is None else kept[day].flatten()
            weights = _attend(asked[day], key[day], scale, unseen, buffer)
            torch.bmm(weights, value[day], out=mixture[day])
        out = mixture.view(-1, dim).index_select(0, slot).view(days, stocks, dim)
        ctx.save_for_backward(qkv, out, picked, slot, hidden, kept)
        ctx.scale = scale
        ctx.mark_non_differentiable(copied)
        ctx.set_materialize_grads(False)
        return out, copied

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        grad = grads[0]
        if grad is None:
            return None, None, None
        qkv, out, picked, slot, hidden, kept = ctx.saved_tensors
        days, stocks, dim = out.shape
        distinct = picked.numel() // days
        query, key, value = qkv.chunk(3, -1)
        asked = query.flatten(0, 1).index_select(0, picked).view(days, distinct, dim)
        # Gradient of the copied rows, and per row the sum over keys of A * dA = dC . C.
        grad = grad.contiguous()
        row_grad = grad.new_zeros(days * distinct, dim)
        row_grad.scatter_add_(0, slot[:, None].expand(-1, dim), grad.view(-1, dim))
        row_grad = row_grad.view(days, distinct, dim)
        inner = grad.new_zeros(days * distinct).scatter_add_(0, slot, (grad * out).sum(-1).flatten())
        inner = inner.view(days, distinct, 1)
        grad_qkv = torch.empty_like(qkv)
        grad_query, grad_key, grad_value = grad_qkv.chunk(3, -1)
        grad_query.zero_()
        grad_asked = grad.new_empty(days, distinct, dim)
        size = TILE_BYTES // (distinct * stocks * qkv.element_size())
        for day in _spans(days, size):
            unseen = None if hidden is None else hidden[day]
            weights = kept[day] if kept is not None else _attend(asked[day], key[day], ctx.scale, unseen)
            grad_value[day] = weights.mT @ row_grad[day]
            flow = torch.bmm(row_grad[day], value[day].mT)  # dA
            flow.sub_(inner[day]).mul_(weights)  # gradient of the scores, before the scale
            torch.baddbmm(grad_asked[day], flow, key[day], beta=0, alpha=ctx.scale, out=grad_asked[day])
            grad_key[day] = torch.bmm(flow.mT, asked[day]).mul_(ctx.scale)
        flat = grad_qkv.view(days * stocks, 3 * dim)[:, :dim]
        flat.index_copy_(0, picked, grad_asked.view(-1, dim))
        return grad_qkv, None, None


def copy_attention(qkv: Tensor, scale: float, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Spatial attention with the copy step, without ever holding the attention matrices of all days.

    Time grows as N^2 D per day; memory as N D plus one tile of attention weights. Runs of the same input on
    the same number of threads agree bit for bit on CPU.

    Args:
        qkv: queries, keys and values side by side, `(days, stocks, 3 * dim)`.
        scale: multiplies the scores.
        available: optional `(days, stocks)` Booleans; stocks that are absent on a day are not attended to
            and their mixtures are not copied. A day without any stock is treated as if all were there.

    Returns:
        The copied mixtures `(days, stocks, dim)` and the copied row of every stock `(days, stocks)`, int64.
    """
    hidden = None
    if available is not None:
        hidden = ~(available | ~available.any(-1, keepdim=True))
    return _CopyAttention.apply(qkv, scale, hidden)  # type: ignore[no-untyped-call,no-any-return]


class SpatialAttention(nn.Module):
    """One branch's attention over stocks: `LN(Linear(C') + y)`, then Linear-ReLU-Linear, y = x + position.

    Args:
        dim: width D.
        head_dim: the scores are divided by its root; the released code's `d` (its heads never split D).

    Shape:
        input `(batch, days, stocks, dim)`; position broadcastable to it; output like the input. The caller
        adds the input to the output.
    """

    unused_proj_weight: Tensor
    unused_proj_bias: Tensor

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed = FeedForward(dim, dim, dim)
        proj = nn.Linear(head_dim, 1)  # owned by the released model and never used: kept for its weights
        self.register_buffer("unused_proj_weight", proj.weight.detach())
        self.register_buffer("unused_proj_bias", proj.bias.detach())

    def forward(self, x: Tensor, position: Tensor, available: Tensor | None = None) -> Tensor:
        y = x + position
        absent = None if available is None else available.flatten(0, 1)
        copied, _ = copy_attention(linear(y, self.qkv).flatten(0, 1), self.scale, absent)
        u: Tensor = self.feed(normalize(linear(copied.view_as(y), self.out) + y))
        return u

    @torch.no_grad()
    def copies(self, x: Tensor, position: Tensor, available: Tensor | None = None) -> Tensor:
        """The row i* whose mixture each stock takes over, `(batch, days, stocks)`, int64."""
        absent = None if available is None else available.flatten(0, 1)
        qkv = linear(x + position, self.qkv).flatten(0, 1)
        return copy_attention(qkv, self.scale, absent)[1].view(x.shape[:-1])

    @torch.no_grad()
    def mean_weights(self, x: Tensor, position: Tensor, available: Tensor | None = None) -> Tensor:
        """Attention averaged over batch and days, `(stocks, stocks)`: row n is what stock n receives.

        Row n of a day is A[i*(n)], the row that stock n copies. Days are visited one at a time.
        """
        hidden = None if available is None else ~available.flatten(0, 1)
        query, key, _ = linear(x + position, self.qkv).flatten(0, 1).chunk(3, -1)
        days, stocks, _ = query.shape
        mean = torch.zeros(stocks, stocks, dtype=torch.float32, device=x.device)
        copied = _copied(query, key, self.scale, hidden)
        for day in range(days):
            asked = query[day : day + 1, copied[day]]
            unseen = None if hidden is None else hidden[day : day + 1]
            mean += _attend(asked, key[day : day + 1], self.scale, unseen)[0]
        return mean / days
