"""LAMA: several attention distributions over words from one low-rank form, pooled into a fixed matrix.

Mehta et al., 'Low Rank Factorization for Compact Multi-Head Self-Attention', 2019, arXiv 1912.00835. The
heads' bilinear forms `c^T W_i h_t` between one context vector and every word have `W_i = p_i q_i^T`, so
that all heads cost `f(c, h_t) = (P^T c) o (Q^T h_t)`. No word meets another: the result is a sentence
matrix, and the layer pools tokens instead of mixing them.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from manyhead.errors import InputError


class Pooled(NamedTuple):
    """What LAMA returns.

    Args:
        output: the sentence matrix, or its projection if the layer has one.
        weights: attention over words, `(batch, heads, words)`.
        matrix: averages of the words, `(batch, heads, channels)`.
    """

    output: Tensor
    weights: Tensor
    matrix: Tensor

    def disagreement(self) -> Tensor:
        """Mean over the batch of `||A A^T - I||_F^2`, the usual penalty on heads that look alike."""
        overlap = self.weights @ self.weights.mT
        eye = torch.eye(overlap.shape[-1], device=overlap.device, dtype=overlap.dtype)
        return (overlap - eye).square().sum((1, 2)).mean()


class LowRankAttentionPooling(nn.Module):
    """Pool words by `heads` softmax distributions of low-rank bilinear scores.

    With one head the L2 norm turns every score into plus or minus one: take several, or `l2_over=None`.

    Args:
        channels: features of a word.
        heads: attention distributions (the paper's aspects).
        context: 'mean' takes the masked mean of the words for the context vector, 'learned' one vector
            for all inputs.
        rank: rank of each head's bilinear form; 1 is the paper's.
        activation: 'tanh' or None, on the scores.
        l2_over: 'heads' divides each word's scores by their norm over heads; None leaves them.
        output_dim: size of a linear projection of the flattened matrix; None for none.
        initial: 'kaiming' with a bound of `heads ** -0.5`, as the tensors are stored, or 'xavier'.

    Shape:
        input `(batch, words, channels)`, mask `(batch, words)`; output `(batch, heads, channels)` or
        `(batch, output_dim)`.

    Raises:
        InputError: if an option is unknown or a size is below one.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        context: Literal["mean", "learned"] = "mean",
        rank: int = 1,
        activation: Literal["tanh"] | None = "tanh",
        l2_over: Literal["heads"] | None = "heads",
        output_dim: int | None = None,
        initial: Literal["kaiming", "xavier"] = "kaiming",
    ) -> None:
        super().__init__()
        allowed = {
            "context": (context, ("mean", "learned")),
            "activation": (activation, ("tanh", None)),
            "l2_over": (l2_over, ("heads", None)),
            "initial": (initial, ("kaiming", "xavier")),
        }
        for name, (given, choices) in allowed.items():
            if given not in choices:
                raise InputError(f"{name} is one of {', '.join(map(repr, choices))}; got {given!r}")
        if min(channels, heads, rank) < 1:
            raise InputError(f"channels, heads and rank are at least 1, got {channels}, {heads} and {rank}")
        self.activation, self.l2_over = activation, l2_over
        self.p = nn.Parameter(torch.empty(rank, channels, heads))
        self.q = nn.Parameter(torch.empty(rank, channels, heads))
        for factor in (*self.p, *self.q):
            if initial == "kaiming":
                nn.init.kaiming_uniform_(factor, a=5**0.5)
            else:
                nn.init.xavier_uniform_(factor)
        self.context = nn.Parameter(torch.randn(channels) * channels**-0.5) if context == "learned" else None
        self.projection = nn.Linear(heads * channels, output_dim) if output_dim else None

    def scores(self, x: Tensor, mask: Tensor | None = None, context_source: Tensor | None = None) -> Tensor:
        """Scores `(batch, heads, words)` after activation and norm, masked words not yet left out."""
        if self.context is not None:
            c = self.context.expand(len(x), -1)
        else:
            source = x if context_source is None else context_source
            keep = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
            c = (source * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp_min(1e-9)
        of_context = torch.einsum("bd,rdm->rbm", c, self.p)
        of_words = torch.einsum("bnd,rdm->rbmn", x, self.q)
        e = (of_context[..., None] * of_words).sum(0)
        if self.activation == "tanh":
            e = e.tanh()
        return normalize(e, dim=1, eps=1e-12) if self.l2_over == "heads" else e

    def forward(self, x: Tensor, mask: Tensor | None = None, context_source: Tensor | None = None) -> Pooled:
        """Pool the words.

        Args:
            x: words `(batch, words, channels)`.
            mask: nonzero where a word is there, `(batch, words)`; a sentence without words is averaged.
            context_source: what the context vector is the mean of, if not `x`; of the shape of `x`.
        """
        e = self.scores(x, mask, context_source)
        if mask is not None:
            e = e.masked_fill(~mask.bool()[:, None], -1e9)
        weights = e.softmax(-1)
        matrix = weights @ x
        output = matrix if self.projection is None else self.projection(matrix.flatten(1))
        return Pooled(output, weights, matrix)
