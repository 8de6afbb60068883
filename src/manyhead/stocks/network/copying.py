"""The copy step of spatial attention: a stock takes over the mixture of the query attending to it most.

Ma, Xue, Lu and Chen, 'Stockformer', 2024, arXiv 2401.06139, section 3.3, in the released code's reading
(the 'sparse spatial attention' of Fang et al., 'STWave', ICDE 2023). Per day, over stocks:

    A = softmax(Q K' / sqrt(d))     C = A V     i*(n) = argmax_i A[i, n]     C'[n] = C[i*(n)]

The argmax has no gradient; the gradient flows through C. What is notable here:
- only rows of C that some stock copies are ever read, so only they are computed, and only they have a
  gradient: often about half of the N, never more than N;
- nothing of size N^2 D exists, and attention weights exist for a tile of queries only: those of the copied
  rows are kept for the backward pass where they are few, else computed again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = 8 * 2**20  # of attention weights alive at once: about what the caches hold
KEEP_BYTES = 96 * 2**20  # of attention weights of all days: below, copied rows are kept for the backward pass


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
        available = available | ~available.any(-1, keepdim=True)
        scores = scores.masked_fill(~available[:, None, :], -torch.inf)
    weights = scores.softmax(-1)
    ranked = weights if available is None else weights.masked_fill(~available[:, :, None], -1.0)
    copied = ranked.argmax(-2)  # (days, stocks), ties go to the lowest index
    mixture = weights @ value
    return mixture.gather(1, copied[..., None].expand_as(mixture)), copied


def hidden_stocks(available: Tensor | None) -> Tensor | None:
    """The stocks not to be seen, `(days, stocks)`; on a day without any stock, none is hidden."""
    return None if available is None else ~(available | ~available.any(-1, keepdim=True))


def attend(query: Tensor, key: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
    """softmax(scale * query key') of a few days; `hidden` `(days, stocks)` marks keys that are not seen."""
    scores = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
    torch.baddbmm(scores, query, key.mT, beta=0, alpha=scale, out=scores)
    if hidden is not None:
        scores.masked_fill_(hidden[:, None, :], -torch.inf)
    return torch._softmax(scores, -1, False, out=scores)


def _spans(total: int, size: int) -> list[slice]:
    size = max(1, min(total, size))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _argmax(weights: Tensor, size: int = 16) -> tuple[Tensor, Tensor]:
    """Largest weight of every column and its lowest row, `(days, stocks)` each; the weight as its bits.

    What `weights.max(-2)` finds, three times as fast: first the largest of `size` rows at a time, on the bits
    of the floats (as integers they have the same order, but for negative ones among themselves), then the row
    within the group that holds it.
    """
    bits = weights.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weights.element_size()])
    days, rows, stocks = bits.shape
    if rows < 4 * size:
        return bits.max(1)
    whole = rows - rows % size
    groups = bits[:, :whole].view(days, -1, size, stocks).amax(2)
    if whole < rows:
        groups = torch.cat([groups, bits[:, whole:].amax(1, keepdim=True)], 1)
    first = groups.max(1).indices * size  # (days, stocks)
    within = torch.arange(size, device=bits.device)[:, None]
    candidates = (first[:, None] + within).clamp_(max=rows - 1)  # (days, size, stocks)
    largest, offset = bits.gather(1, candidates).max(1)
    return largest, first + offset


def _largest(query: Tensor, key: Tensor, scale: float, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """i*(n) of a few days `(days, stocks)`, and all attention weights if they fit into one tile."""
    days, stocks, _ = query.shape
    tiles = _spans(stocks, TILE_BYTES // (days * stocks * query.element_size()))
    best, copied = query.new_zeros(0), query.new_zeros(0)
    for tile in tiles:
        weights = attend(query[:, tile], key, scale, hidden)
        ranked = weights if hidden is None else weights.masked_fill(hidden[:, tile, None], -1.0)
        largest, where = _argmax(ranked)
        if len(tiles) == 1:
            return where, weights
        if tile.start == 0:
            best, copied = largest, where
        else:  # strictly larger, so that ties stay with the lowest row
            copied = torch.where(largest > best, where + tile.start, copied)
            best = torch.maximum(best, largest)
    return copied, None


class Copied(NamedTuple):
    """What the backward pass needs of a few days; R is the number of distinct copied rows of a day."""

    rows: Tensor  # (days * R,) copied rows, counted through the days; padded with rows that nobody copies
    slots: Tensor  # (days * stocks,) where in `rows` every stock's copied row stands
    weights: Tensor | None  # (days, R, stocks) their attention weights, or None to compute them again


def _forward(
    qkv: Tensor, out: Tensor, scale: float, hidden: Tensor | None, keep: bool
) -> tuple[Tensor, Copied]:
    """Fill `out` `(days, stocks, dim)` for a few days; returns i* and what the backward pass needs."""
    query, key, value = qkv.chunk(3, -1)
    days, stocks, dim = query.shape
    copied, weights = _largest(query, key, scale, hidden)
    chosen = torch.zeros(days, stocks, dtype=torch.int32, device=qkv.device).scatter_(1, copied, 1)
    rank = chosen.cumsum(1)
    distinct = int(rank[:, -1].max())
    first = torch.arange(days, device=qkv.device)[:, None]
    rows = chosen.argsort(dim=1, descending=True, stable=True)[:, :distinct]  # ascending, as `rank` counts
    rows = (rows + first * stocks).flatten()
    slots = (rank.gather(1, copied) - 1 + first * distinct).flatten()
    if weights is None:
        weights = attend(_take(query, rows), key, scale, hidden)
    else:
        weights = weights.flatten(0, 1).index_select(0, rows).view(days, distinct, stocks)
    mixture = torch.bmm(weights, value).flatten(0, 1)
    torch.index_select(mixture, 0, slots, out=out.view(-1, dim))
    return copied, Copied(rows, slots, weights if keep else None)


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows, counted through the days, of `(days, stocks, dim)`: `(days, R, dim)`."""
    days, stocks, dim = tensor.shape
    flat = tensor.as_strided((days * stocks, dim), tensor.stride()[1:])
    return flat.index_select(0, rows).view(days, -1, dim)


def _backward(
    grad: Tensor, qkv: Tensor, grad_qkv: Tensor, saved: Copied, scale: float, hidden: Tensor | None
) -> None:
    """Fill `grad_qkv` of a few days from the gradient of their copied mixtures."""
    query, key, value = qkv.chunk(3, -1)
    grad_query, grad_key, grad_value = grad_qkv.chunk(3, -1)
    days, stocks, dim = query.shape
    asked = _take(query, saved.rows)  # (days, R, dim)
    weights = attend(asked, key, scale, hidden) if saved.weights is None else saved.weights
    row_grad = grad.new_zeros(saved.rows.numel(), dim)
    row_grad.scatter_add_(0, saved.slots[:, None].expand(-1, dim), grad.reshape(-1, dim))
    row_grad = row_grad.view_as(asked)
    torch.bmm(weights.mT, row_grad, out=grad_value)
    flow = torch.bmm(row_grad, value.mT)  # gradient of the weights, then of the scores
    torch._softmax_backward_data(flow, weights, -1, weights.dtype, grad_input=flow)
    torch.baddbmm(grad_key, flow.mT, asked, beta=0, alpha=scale, out=grad_key)
    torch.baddbmm(asked, flow, key, beta=0, alpha=scale, out=asked)
    flat = grad_query.as_strided((days * stocks, dim), grad_query.stride()[1:])
    flat.zero_().index_copy_(0, saved.rows, asked.flatten(0, 1))


def copy_forward(
    qkv: Tensor, scale: float, hidden: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, list[Copied]]:
    """Copied mixtures `(days, stocks, dim)`, i* `(days, stocks)`, and what `copy_backward` needs.

    Args:
        qkv: `(days, stocks, 3 * dim)`.
        scale: multiplies the scores.
        hidden: `(days, stocks)` Booleans: absent stocks; or None.
        keep: whether a backward pass will follow.
    """
    days, stocks, width = qkv.shape
    out = qkv.new_empty(days, stocks, width // 3)
    copied = torch.empty(days, stocks, dtype=torch.int64, device=qkv.device)
    day_bytes = stocks * stocks * qkv.element_size()
    keep = keep and days * day_bytes <= KEEP_BYTES
    saved = []
    for span in _spans(days, TILE_BYTES // day_bytes):
        unseen = None if hidden is None else hidden[span]
        copied[span], part = _forward(qkv[span], out[span], scale, unseen, keep)
        saved.append(part)
    return out, copied, saved


def copy_backward(
    grad: Tensor, qkv: Tensor, saved: list[Copied], scale: float, hidden: Tensor | None
) -> Tensor:
    """Gradient of `qkv` from that of the copied mixtures."""
    days, stocks, _ = qkv.shape
    grad_qkv = torch.empty_like(qkv)
    size = TILE_BYTES // (stocks * stocks * qkv.element_size())
    for span, part in zip(_spans(days, size), saved, strict=True):
        unseen = None if hidden is None else hidden[span]
        _backward(grad[span], qkv[span], grad_qkv[span], part, scale, unseen)
    return grad_qkv


def flatten(saved: list[Copied]) -> list[Tensor | None]:
    """The tensors in a row, for `save_for_backward`, which frees them once they are used."""
    return [tensor for part in saved for tensor in part]


def unflatten(tensors: Sequence[Tensor]) -> list[Copied]:
    """Undo `flatten`."""
    return [Copied(*part) for part in zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True)]


class _CopyAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, scale: float, hidden: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        out, copied, saved = copy_forward(qkv, scale, hidden, keep)
        ctx.save_for_backward(qkv, hidden, *flatten(saved))
        ctx.scale = scale
        ctx.mark_non_differentiable(copied)
        return out, copied

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        qkv, hidden, *rest = ctx.saved_tensors
        return copy_backward(grad.contiguous(), qkv, unflatten(rest), ctx.scale, hidden), None, None, None


def copy_attention(qkv: Tensor, scale: float, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Spatial attention with the copy step, without ever holding the attention weights of all days.

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
    out, copied = _CopyAttention.apply(  # type: ignore[no-untyped-call]
        qkv.contiguous(), scale, hidden_stocks(available), torch.is_grad_enabled()
    )
    return out, copied
