"""Softmax attention in its four uses, and its key-value cache as an explicit value.

Vaswani et al., 'Attention Is All You Need', 2017, arXiv 1706.03762, section 3.2; positions may be rotary
(`manyhead.layers.rotary`) or a learned bias of each head for each clipped distance (Shaw et al., 2018,
arXiv 1803.02155, without its value part).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.key_value_cache import KeyValueCache
from manyhead.layers.partial_rotary import rotate
from manyhead.mixers.base import USES, Traits
from manyhead.mixers.heads import HeadMixer


class SoftmaxAttention(HeadMixer):
    """Weighted averages of values with weights softmax(q k / sqrt(head_dim)).

    Args:
        channels, heads, causal, cross, bias, qk_channels: as in `HeadMixer`.
        rotary: fraction of each head's channels with rotary positions; 0 for none.
        rotary_base: base of their rates.
        relative: largest distance with a learned bias of its own, both ways; 0 for none.
        dropout: rate on the attention weights while training.
    """

    supports = frozenset(USES)
    traits = Traits("dense positive", True, True, True, True, "L^2", "L^2")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        qk_channels: int | None = None,
        rotary: float = 0.0,
        rotary_base: float = 10000.0,
        relative: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias, qk_channels=qk_channels)
        if not 0 <= rotary <= 1:
            raise InputError(f"rotary is a fraction from 0 to 1, got {rotary}")
        if cross and (rotary or relative):
            raise InputError("rotary and relative positions are for self-attention; cross-attention has two")
        self.rotary, self.rotary_base, self.relative, self.dropout = rotary, rotary_base, relative, dropout
        if relative:
            self.distance_bias = nn.Parameter(torch.zeros(heads, 2 * relative + 1))

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
        q, k = self._turn(q, 0), self._turn(k, 0)
        fast = padding is None and not self.relative
        o = scaled_dot_product_attention(
            q,
            k,
            v,
            None if fast else self._bias(q.shape[2], k.shape[2], 0, q, padding),
            self.dropout if self.training else 0.0,
            is_causal=fast and self.causal and not self.cross,
        )
        return self.merge(o)

    def remember(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, for `recall` to ask many times."""
        keys = self.source(context, context)
        return self.split(self.k_proj(keys)), self.split(self.v_proj(keys))

    def recall(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """What `forward(x, context)` gives, from `remember(context)`."""
        return self.merge(scaled_dot_product_attention(self.split(self.q_proj(x)), *memory))

    def initial_state(self, batch: int, *, capacity: int = 1024, **options: object) -> KeyValueCache:
        """An empty cache for `capacity` tokens.

        Raises:
            InputError: if the mixer is not causal self-attention.
        """
        if not self.recurrent:
            raise InputError("a cache needs causal self-attention: build it with causal=True, cross=False")
        like, v_dim = self.k_proj.weight, self.channels // self.heads
        return KeyValueCache(
            like.new_zeros(batch, self.heads, capacity, self.head_dim),
            like.new_zeros(batch, self.heads, capacity, v_dim),
        )

    def step(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        y, state = self.extend(x_t[:, None], state)
        return y[:, 0], state

    def extend(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Process the next tokens `(batch, tokens, channels)`; gradients do not pass through the cache.

        Raises:
            InputError: if the cache is too small.
        """
        start = state.length
        q, k, v = self.project(x)
        state = state.append(self._turn(k, start), v)
        bias = None
        if x.shape[1] > 1 or self.relative:
            bias = self._bias(x.shape[1], state.length, start, q, None)
        return self.merge(scaled_dot_product_attention(self._turn(q, start), *state.filled, bias)), state

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.project(x, x if self.cross else None)
        logits = self._turn(q, 0) @ self._turn(k, 0).mT * self.head_dim**-0.5
        weights: Tensor = (logits + self._bias(x.shape[1], x.shape[1], 0, q, None)).softmax(-1)
        return weights

    def _turn(self, x: Tensor, start: int) -> Tensor:
        if not self.rotary:
            return x
        positions = torch.arange(start, start + x.shape[2], device=x.device)
        return rotate(x, positions, self.rotary, self.rotary_base)

    def _bias(self, queries: int, keys: int, start: int, like: Tensor, padding: Tensor | None) -> Tensor:
        """What is added to the logits, (1 or batch, 1 or heads, queries, keys); query 0 stands at `start`."""
        distance = (
            torch.arange(keys, device=like.device)
            - torch.arange(start, start + queries, device=like.device)[:, None]
        )
        bias = like.new_zeros(1, 1, queries, keys)
        if self.relative:
            index = distance.clamp(-self.relative, self.relative) + self.relative
            bias = bias + self.distance_bias[:, index]
        if self.causal and not self.cross:
            bias = bias.masked_fill(distance > 0, -torch.inf)
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None], -torch.inf)
            # a padded query that sees nothing would give NaN; what it gives is not read
            bias = bias.masked_fill((bias == -torch.inf).all(-1, keepdim=True), 0.0)
        return bias
