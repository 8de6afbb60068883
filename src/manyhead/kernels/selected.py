"""Attention of selected (query, head) pairs only: what is not selected costs nothing.

The reference is dense attention with unselected outputs set to zero, `MixtureOfHeads(sparse=False)`.
Pairs are packed head by head, and within a head in the order of samples and tokens, so that the queries
of a head and a sample lie together and ascend.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

WIDEST = 1.25  # places of padded queries a query, above which rows are computed one by one
BLOCK = 64  # queries of a block; under a causal mask a block's keys end where its last query stands


class Pairs(NamedTuple):
    """Selected (token, head) pairs, packed.

    Args:
        tokens: for each head the tokens that it works for, as places among all tokens of the batch.
        places: place of each pair's token in its sample, `(pairs,)`.
        counts: pairs of each row, a head of a sample; head by head.
    """

    tokens: tuple[Tensor, ...]
    places: Tensor
    counts: list[int]


def pack(selected: Tensor) -> Pairs:
    """List the pairs of a mask `(batch, tokens, heads)`."""
    batch, length, heads = selected.shape
    by_head = selected.permute(2, 0, 1)  # (heads, batch, tokens)
    tokens = by_head.flatten(1).nonzero()[:, 1]
    counts: list[int] = by_head.sum(2).flatten().tolist()
    of_heads = [sum(counts[head * batch : (head + 1) * batch]) for head in range(heads)]
    return Pairs(tokens.split(of_heads), tokens % length, counts)


def to_heads(x: Tensor, weight: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
    """Project each head's tokens by its part of a linear map.

    Args:
        x: all tokens, `(tokens, channels)`.
        weight: `(heads * head_dim, channels)`.
        bias: `(heads * head_dim,)` or None.
        pairs: which token goes to which head.

    Returns:
        `(pairs, head_dim)`.
    """
    q: Tensor = _ToHeads.apply(x, weight, bias, pairs)  # type: ignore[no-untyped-call]
    return q


def from_heads(out: Tensor, weight: Tensor, pairs: Pairs, base: Tensor) -> Tensor:
    """Map the outputs of pairs to channels and add them to what their tokens have already.

    Args:
        out: `(pairs, head_dim)`.
        weight: `(channels, heads * head_dim)`.
        pairs: where each output belongs.
        base: `(tokens, channels)`, changed in place.

    Returns:
        `(tokens, channels)`.
    """
    y: Tensor = _FromHeads.apply(out, weight, pairs, base)  # type: ignore[no-untyped-call]
    return y


class _ToHeads(torch.autograd.Function):
    """Head by head: a head's tokens stay in the cache, and their gradients add up in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pairs, ctx.biased = pairs, bias is not None
        heads = weight.chunk(len(pairs.tokens))
        q = x.new_empty(len(pairs.places), len(heads[0]))
        for part, head, tokens in zip(_split(q, pairs), heads, pairs.tokens, strict=True):
            torch.mm(x.index_select(0, tokens), head.mT, out=part)
        if bias is not None:
            for part, shift in zip(_split(q, pairs), bias.chunk(len(heads)), strict=True):
                part += shift
        return q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = torch.zeros_like(x), torch.empty_like(weight)
        parts = _split(grads[0].contiguous(), ctx.pairs)
        heads = zip(
            parts, weight.chunk(len(parts)), of_weight.chunk(len(parts)), ctx.pairs.tokens, strict=True
        )
        for part, head, of_head, tokens in heads:
            of_x.index_add_(0, tokens, part @ head)
            torch.mm(part.mT, x.index_select(0, tokens), out=of_head)
        of_bias = torch.cat([part.sum(0) for part in parts]) if ctx.biased else None
        return of_x, of_weight, of_bias, None


class _FromHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, weight: Tensor, pairs: Pairs, base: Tensor) -> Tensor:
        ctx.save_for_backward(out, weight)
        ctx.mark_dirty(base)
        ctx.pairs = pairs
        heads = zip(_split(out, pairs), weight.chunk(len(pairs.tokens), 1), pairs.tokens, strict=True)
        for part, head, places in heads:
            base.index_add_(0, places, part @ head.mT)
        return base

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out, weight = ctx.saved_tensors
        (grad,) = grads
        of_out, of_weight = torch.empty_like(out), []
        heads = weight.chunk(len(ctx.pairs.tokens), 1)
        parts = zip(_split(out, ctx.pairs), _split(of_out, ctx.pairs), heads, ctx.pairs.tokens, strict=True)
        for part, of_part, head, tokens in parts:
            taken = grad.index_select(0, tokens)
            torch.mm(taken, head, out=of_part)
            of_weight.append(taken.mT @ part)
        return of_out, torch.cat(of_weight, 1), None, grad


def _split(packed: Tensor, pairs: Pairs) -> tuple[Tensor, ...]:
    return tuple(packed.split([len(tokens) for tokens in pairs.tokens]))


def packed_attention(q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, *, causal: bool = False) -> Tensor:
    """Softmax attention of packed queries.

    Args:
        q: query of every pair, `(pairs, head_dim)`.
        k: keys `(batch, heads, keys, head_dim)`.
        v: values `(batch, heads, keys, head_dim)`.
        pairs: where each query stands.
        causal: whether a query at place t sees keys up to t only.

    Returns:
        The output of every pair, `(pairs, head_dim)`.
    """
    if causal:
        out: Tensor = _CausalRows.apply(q, k, v, pairs.places, pairs.counts)  # type: ignore[no-untyped-call]
        return out
    batch, rows = len(k), list(q.split(pairs.counts))
    outs: list[Tensor] = []
    for head, (keys, values) in enumerate(zip(k.unbind(1), v.unbind(1), strict=True)):
        outs += _of_samples(rows[head * batch : (head + 1) * batch], keys, values)
    return torch.cat(outs)


def _of_samples(queries: list[Tensor], k: Tensor, v: Tensor) -> list[Tensor]:
    """One head's attention in each sample; samples of nearly equal counts go together, padded.

    The backward pass of `scaled_dot_product_attention` shares out whole rows among threads: alone, a row
    has one thread.
    """
    counts = [len(query) for query in queries]
    if len(queries) * max(counts) <= WIDEST * sum(counts):
        out = scaled_dot_product_attention(
            pad_sequence(queries, batch_first=True)[:, None], k[:, None], v[:, None]
        )
        return [row[:count] for row, count in zip(out[:, 0], counts, strict=True)]
    return [
        scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])[0, 0]
        for query, key, value in zip(queries, k, v, strict=True)
    ]


def _rows(x: Tensor) -> list[Tensor]:
    """`(batch, heads, keys, head_dim)` by rows as in `Pairs.counts`, without a copy."""
    return [row for head in x.unbind(1) for row in head.unbind(0)]


class _Block(NamedTuple):
    """Some ascending queries of a row: how many keys the first and the last of them see."""

    row: int
    size: int
    seen: int
    end: int


def _blocks(places: Tensor, counts: Sequence[int]) -> list[_Block]:
    at, start, found = places.tolist(), 0, []
    for row, count in enumerate(counts):
        for first in range(start, start + count, BLOCK):
            last = min(first + BLOCK, start + count)
            found.append(_Block(row, last - first, at[first] + 1, at[last - 1] + 1))
        start += count
    return found


def _weights(q: Tensor, k: Tensor, places: Tensor, every: Tensor, block: _Block) -> Tensor:
    """Attention weights `(queries, keys up to the last query's)` of a block; queries are scaled already."""
    logits = q @ k[: block.end].mT
    if block.seen < block.end:  # all queries of the block see the keys before `seen`
        later = every[block.seen : block.end] > places[:, None]
        logits[:, block.seen :].masked_fill_(later, -torch.inf)
    return torch.softmax(logits, -1)


class _CausalRows(torch.autograd.Function):
    """Blocks of ascending queries that read no key behind their last query.

    The backward pass computes the weights again, so that memory grows linearly with tokens.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, places: Tensor, counts: Sequence[int]) -> Tensor:
        scaled, out = q * q.shape[-1] ** -0.5, torch.empty_like(q)
        blocks, keys, values = _blocks(places, counts), _rows(k), _rows(v)
        every, sizes = torch.arange(k.shape[2], device=q.device), [block.size for block in blocks]
        parts = (part.split(sizes) for part in (scaled, places, out)) if blocks else ([], [], [])
        for block, query, at, answer in zip(blocks, *parts, strict=True):
            weights = _weights(query, keys[block.row], at, every, block)
            torch.mm(weights, values[block.row][: block.end], out=answer)
        ctx.blocks = blocks
        ctx.save_for_backward(scaled, k, v, places, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled, k, v, places, out = ctx.saved_tensors
        grad, blocks = grads[0].contiguous(), ctx.blocks
        of_q, of_k, of_v = torch.empty_like(scaled), torch.zeros_like(k), torch.zeros_like(v)
        keys, values, of_keys, of_values = (_rows(part) for part in (k, v, of_k, of_v))
        every, sizes = torch.arange(k.shape[2], device=k.device), [block.size for block in blocks]
        mean = (grad * out).sum(-1, keepdim=True)  # sum over keys of weight times the weight's gradient
        tensors = (scaled, places, grad, mean, of_q)
        parts = [part.split(sizes) for part in tensors] if blocks else [[] for _ in tensors]
        for block, query, at, asked, average, answer in zip(blocks, *parts, strict=True):
            row, end = block.row, block.end
            weights = _weights(query, keys[row], at, every, block)
            of_values[row][:end].addmm_(weights.mT, asked)
            of_logits = (asked @ values[row][:end].mT).sub_(average).mul_(weights)
            torch.mm(of_logits, keys[row][:end], out=answer)
            of_keys[row][:end].addmm_(of_logits.mT, query)
        return of_q * scaled.shape[-1] ** -0.5, of_k, of_v, None, None
