"""Local attention: exact softmax over the nearest tokens of a sequence.

As in Zhang et al., 'CAB', 2022, arXiv 2210.07661: a window of `width` tokens on either side, or of the
last `width` tokens where causal; tokens beyond the ends are left out.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Traits
from manyhead.mixers.heads import HeadMixer


class WindowCache(NamedTuple):
    """The last keys and values `(batch, heads, width - 1, head_dim)`, and how many of them are real."""

    k: Tensor
    v: Tensor
    length: int


class LocalAttention(HeadMixer):
    """Softmax attention within a window around each token.

    Args:
        channels, heads, causal, bias: as in `HeadMixer`.
        width: token t sees t - width .. t + width, or t - width + 1 .. t where causal.
    """

    supports = frozenset({NONCAUSAL_SELF, CAUSAL_SELF})
    traits = Traits("banded positive", True, True, True, True, "L w", "L w")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        width: int = 15,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias)
        if width < 1:
            raise InputError(f"width is at least 1, got {width}")
        self.width = width
        self.sides = (width - 1, 0) if causal else (width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, *, padding: Tensor | None = None) -> Tensor:
        """Mix; `padding` `(batch, tokens)` is True where a token is not there."""
        q, k, v = self.project(x, context)
        weights = self._weights(q, k, padding)  # (batch, heads, tokens, 1, span)
        return self.merge((weights @ self._spans(v).mT)[..., 0, :])

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.project(x)
        near = self._weights(q, k, None)[..., 0, :]
        tokens = x.shape[1]
        keys = torch.arange(tokens, device=x.device)[:, None] + torch.arange(near.shape[-1], device=x.device)
        wide = near.new_zeros(*near.shape[:-1], tokens + sum(self.sides))
        return wide.scatter(-1, keys.expand_as(near), near)[..., self.sides[0] : self.sides[0] + tokens]

    def initial_state(self, batch: int, **options: object) -> WindowCache:
        """An empty window."""
        empty = self.k_proj.weight.new_zeros(batch, self.heads, self.width - 1, self.head_dim)
        return WindowCache(empty, empty, 0)

    def step(self, x_t: Tensor, state: WindowCache) -> tuple[Tensor, WindowCache]:
        if not self.recurrent:
            raise InputError("step needs causal=True: without it earlier outputs depend on later tokens")
        q, k, v = self.project(x_t[:, None])
        k, v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
        real = min(state.length + 1, self.width)
        logits = q @ k[:, :, -real:].mT * self.head_dim**-0.5
        y = self.merge(logits.softmax(-1) @ v[:, :, -real:])[:, 0]
        return y, WindowCache(k[:, :, 1:], v[:, :, 1:], min(real, self.width - 1))

    def _spans(self, x: Tensor) -> Tensor:
        """What each token sees, a view: `(batch, heads, tokens, head_dim, span)`."""
        return pad(x, (0, 0, *self.sides)).unfold(2, sum(self.sides) + 1, 1)

    def _weights(self, q: Tensor, k: Tensor, padding: Tensor | None) -> Tensor:
        logits = q[..., None, :] @ self._spans(k) * self.head_dim**-0.5
        there = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device) if padding is None else ~padding
        spans = pad(there, self.sides).unfold(1, sum(self.sides) + 1, 1)
        weights: Tensor = logits.masked_fill(~spans[:, None, :, None], -torch.inf).softmax(-1)
        return weights
