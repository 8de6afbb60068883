"""Performer: softmax attention through positive random features.

Choromanski et al., 'Rethinking Attention with Performers', 2020, arXiv 2009.14794, section 2.4.
"""

import math

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_CROSS, NONCAUSAL_CROSS, NONCAUSAL_SELF, Traits
from manyhead.mixers.heads import HeadMixer, absent


def orthogonal_rows(heads: int, rows: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Rows orthogonal within blocks of `dim`, with the norms of Gaussian vectors: `(heads, rows, dim)`."""
    blocks = -(-rows // dim)
    q, r = torch.linalg.qr(torch.randn(heads, blocks, dim, dim, generator=generator))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # without it directions are not uniform
    rows_q: Tensor = q.mT.flatten(1, 2)[:, :rows]
    norms: Tensor = torch.randn(heads, rows, dim, generator=generator).norm(dim=-1, keepdim=True)
    return rows_q * norms


class Performer(HeadMixer):
    """Linear attention with features exp(w . x - |x|^2 / 2), the unbiased estimate of softmax's kernel.

    Features are drawn afresh at every call while training; in evaluation they are the orthogonal ones in
    the buffer `features`, saved with the module.

    Args:
        channels, heads, causal, cross, bias: as in `HeadMixer`; there is no causal self-attention.
        features: random features a head.
        released: take 0.1 as the smallest denominator, as CAB's code does, instead of 1e-6, and give heads
            its mixed-up padding. 0.1 is reached so often that its output is rarely an average.
    """

    supports = frozenset({NONCAUSAL_SELF, NONCAUSAL_CROSS, CAUSAL_CROSS})
    traits = Traits("positive, rank features", True, True, True, True, "L M", "L M")
    features: Tensor

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        features: int = 16,
        released: bool = False,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias)
        if features < 1:
            raise InputError(f"features is at least 1, got {features}")
        self.released, self.least, self.floor = released, 0.1 if released else 1e-6, 1e-4
        self.register_buffer("features", orthogonal_rows(heads, features, self.head_dim))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        value: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Mix; `padding` `(batch, keys)` marks absent keys, `value` gives the values other tokens."""
        q, k, v = self.project(x, context, value)
        w = torch.randn_like(self.features) if self.training else self.features
        phi_q, phi_k = self._features(q, w, (-1,)), self._features(k, w, (-1, -2))
        if padding is not None:
            phi_k = phi_k.masked_fill(absent(padding, self.heads, self.released)[..., None], 0.0)
        total = phi_q @ phi_k.sum(2)[..., None]
        return self.merge(phi_q @ (phi_k.mT @ v) / total.clamp(min=self.least))

    def _features(self, x: Tensor, w: Tensor, over: tuple[int, ...]) -> Tensor:
        """phi(x), stabilised by a maximum over features (and positions for keys)."""
        x = x * x.shape[-1] ** -0.25
        exponent = x @ w.mT  # (batch, heads, tokens, features)
        stable = exponent.amax(over, keepdim=True)
        positive = (exponent - 0.5 * x.square().sum(-1, keepdim=True) - stable).exp() + self.floor
        return positive / math.sqrt(w.shape[1])
