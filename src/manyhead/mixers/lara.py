"""LARA: linear randomised attention with several proposals, mixed by self-normalised importance.

Zheng et al., 'Linear Complexity Randomized Self-attention Mechanism', 2022, arXiv 2204.04667, section 4.
"""

import math

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.layers.segments import segment_means
from manyhead.mixers.base import NONCAUSAL_SELF, Traits
from manyhead.mixers.heads import HeadMixer, absent


class LARA(HeadMixer):
    """Average values under a few proposals near segment means, then weigh proposals for each query.

    Args:
        channels, heads, bias: as in `HeadMixer`; it is noncausal self-attention.
        proposals: number of proposals.
        released: let padded keys count in the normaliser of a proposal and mix up the padding of heads,
            as CAB's code does.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("positive, rank proposals", True, True, True, True, "L c", "L c")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        proposals: int = 16,
        released: bool = False,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias)
        if proposals < 1:
            raise InputError(f"proposals is at least 1, got {proposals}")
        self.proposals, self.released = proposals, released

    def forward(self, x: Tensor, context: Tensor | None = None, *, padding: Tensor | None = None) -> Tensor:
        """Mix; `padding` `(batch, tokens)` is True where a token is not there."""
        q, k, v = self.project(x, context)
        count = min(self.proposals, q.shape[2])
        mu = segment_means(q, count) + segment_means(k, count)
        omega = mu + torch.randn_like(mu) if self.training else mu
        keys = self._log_feature(k, omega)  # (batch, heads, tokens, proposals)
        seen = keys
        if padding is not None:
            seen = keys.masked_fill(absent(padding, self.heads, self.released)[..., None], -torch.inf)
        values = seen.softmax(2).mT @ v
        weight = (
            self._scale(q @ mu.mT)
            + self._log_feature(q, omega)
            + (keys if self.released else seen).logsumexp(2, keepdim=True)
            - self._own(mu, omega)[:, :, None]
        )
        return self.merge(weight.softmax(-1) @ values)

    def _scale(self, product: Tensor) -> Tensor:
        return product / math.sqrt(self.head_dim)

    def _log_feature(self, x: Tensor, omega: Tensor) -> Tensor:
        """log of exp(omega . x - |x|^2 / 2), scaled; (batch, heads, tokens, proposals)."""
        return self._scale(x @ omega.mT - 0.5 * x.square().sum(-1, keepdim=True))

    def _own(self, mu: Tensor, omega: Tensor) -> Tensor:
        return self._scale((omega * mu).sum(-1) - 0.5 * mu.square().sum(-1))
