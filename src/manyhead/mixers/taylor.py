"""Attention whose exponential is a second-order Taylor polynomial: a past of fixed size.

Xue et al., 'Deconstructing Attention', 2025, arXiv 2510.11602, its 'approximate' variant; the feature map is
that of Arora et al., 'Based', 2024, arXiv 2402.18668. With a = q k / sqrt(head_dim) the weights are
proportional to 1 + a + a^2 / 2 (`TaylorAttention`), or the three terms are averages of their own
(`SeparateTaylorAttention`, as the size of the paper's cache says).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.mixers.base import Traits
from manyhead.mixers.linear_attention import causal_products
from manyhead.mixers.multihead import MultiHeadAttention

SMALLEST = 1e-6  # of a divisor that may vanish


class TaylorState(NamedTuple):
    """Sums over the past.

    Args:
        sums: phi(k_j) [v_j, 1], `(batch, heads, features, head_dim + 1)`.
        length: tokens seen.
    """

    sums: Tensor
    length: int


class SeparateTaylorState(NamedTuple):
    """Sums over the past of each of the three terms.

    Args:
        values: v_j, `(batch, heads, head_dim)`.
        first: k_j [v_j, 1], `(batch, heads, head_dim, head_dim + 1)`.
        second: k_j^2 / sqrt(2) [v_j, 1], likewise.
        length: tokens seen.
    """

    values: Tensor
    first: Tensor
    second: Tensor
    length: int


def features(x: Tensor) -> Tensor:
    """phi with phi(q) phi(k) = 1 + a + a^2 / 2: `(..., head_dim)` to `(..., 1 + head_dim + head_dim^2)`."""
    x = x / x.shape[-1] ** 0.25
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2)
    return torch.cat([torch.ones_like(x[..., :1]), x, squares], -1)


def with_ones(v: Tensor) -> Tensor:
    """Values with a one behind each, so that sums of weights come with the sums of values."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def away_from_zero(x: Tensor) -> Tensor:
    """Numbers pushed to at least 1e-6 in size, their sign kept."""
    return torch.where(x < 0, x.clamp_max(-SMALLEST), x.clamp_min(SMALLEST))


class _CausalRecurrence(MultiHeadAttention):
    """What both forms share: causal only, steps through `extend`, one position counter."""

    def __init__(self, channels: int, heads: int, **options: object) -> None:
        if not options.pop("causal", True):
            raise InputError(f"{type(self).__name__} is causal: leave causal=True")
        super().__init__(channels, heads, causal=True, **options)  # type: ignore[arg-type]
        self.plain(type(self).__name__)


class TaylorAttention(_CausalRecurrence):
    """Causal attention with weights proportional to 1 + a + a^2 / 2, always above zero.

    Args:
        channels, heads, and options: as of `MultiHeadAttention`, causal.

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    traits = Traits(
        "positive, rank 1 + head_dim + head_dim^2,", True, True, True, True, "L d_h^2", "L + d_h^3"
    )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Mix; short sequences by their matrix of weights, long ones by the recurrence in chunks."""
        self.require_self_mixing(context)
        q, k, v = self.parts(x)
        if x.shape[1] > 2 * self.head_dim**2:
            return self._extend(q, k, v, None)[0]
        return self.merge(self._weights(q, k) @ v)

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        a = q @ k.mT * self.head_dim**-0.5
        w = (1 + a + a * a / 2).tril()
        weights: Tensor = w / w.sum(-1, keepdim=True)
        return weights

    def _extend(self, q: Tensor, k: Tensor, v: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        out, sums = causal_products(features(q), features(k), with_ones(v), sums)
        return self.merge(out[..., :-1] / out[..., -1:]), sums

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.parts(x)
        return self._weights(q, k)

    def initial_state(self, batch: int, **options: object) -> TaylorState:  # type: ignore[override]
        """Empty sums; they do not grow."""
        d = self.head_dim
        shape = batch, self.heads, 1 + d + d * d, d + 1
        return TaylorState(self.k_proj.weight.new_zeros(shape), 0)

    def step(self, x_t: Tensor, state: TaylorState) -> tuple[Tensor, TaylorState]:  # type: ignore[override]
        y, state = self.extend(x_t[:, None], state)
        return y[:, 0], state

    def extend(self, x: Tensor, state: TaylorState) -> tuple[Tensor, TaylorState]:  # type: ignore[override]
        """Process the next tokens `(batch, tokens, channels)`."""
        y, sums = self._extend(*self.parts(x, start=state.length), state.sums)
        return y, TaylorState(sums, state.length + x.shape[1])


class SeparateTaylorAttention(_CausalRecurrence):
    """Causal attention as the sum of three averages: plain, by q k, and by q^2 k^2 / 2 element by element.

    The second average's divisor may vanish; it is kept 1e-6 away from zero.

    Args:
        channels, heads, and options: as of `MultiHeadAttention`, causal.

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    traits = Traits("sum of three low ranks,", True, True, False, True, "L d_h", "L + d_h^2")

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        self.require_self_mixing(context)
        return self.extend(x, self.initial_state(len(x)))[0]

    def initial_state(self, batch: int, **options: object) -> SeparateTaylorState:  # type: ignore[override]
        """Empty sums; they do not grow."""
        d, like = self.head_dim, self.k_proj.weight
        square = like.new_zeros(batch, self.heads, d, d + 1)
        return SeparateTaylorState(like.new_zeros(batch, self.heads, d), square, square.clone(), 0)

    def step(  # type: ignore[override]
        self, x_t: Tensor, state: SeparateTaylorState
    ) -> tuple[Tensor, SeparateTaylorState]:
        y, state = self.extend(x_t[:, None], state)
        return y[:, 0], state

    def extend(  # type: ignore[override]
        self, x: Tensor, state: SeparateTaylorState
    ) -> tuple[Tensor, SeparateTaylorState]:
        """Process the next tokens `(batch, tokens, channels)`."""
        q, k, v = self.parts(x, start=state.length)
        length = state.length + x.shape[1]
        count = torch.arange(state.length + 1, length + 1, device=x.device, dtype=x.dtype)
        values = v.cumsum(2) + state.values[:, :, None]
        first, of_first = causal_products(q, k, with_ones(v), state.first)
        second, of_second = causal_products(q * q / 2, k * k, with_ones(v), state.second)
        out = values / count[:, None]
        for part in (first, second):
            out = out + part[..., :-1] / away_from_zero(part[..., -1:])
        return self.merge(out), SeparateTaylorState(values[:, :, -1], of_first, of_second, length)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.parts(x)
        terms = [torch.ones_like(q @ k.mT), q @ k.mT, (q * q / 2) @ (k * k).mT]
        lower = [term.tril() for term in terms]
        return torch.stack([w / away_from_zero(w.sum(-1, keepdim=True)) for w in lower]).sum(0)
