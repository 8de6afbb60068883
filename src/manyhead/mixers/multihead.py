"""Multi-head softmax attention in its four uses, open for others to gate, shift, draw from or evict.

Vaswani et al., 'Attention Is All You Need', 2017, arXiv 1706.03762, section 3.2; key and value heads shared
by groups of query heads as in Ainslie et al., 'GQA', 2023, arXiv 2305.13245; positions may be rotary
(`manyhead.layers.rotary`) or a learned bias of each head for each clipped distance (Shaw et al., 2018,
arXiv 1803.02155, without its value part).
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.key_value_cache import KeyValueCache
from manyhead.layers.rotary import rotate
from manyhead.mixers.base import USES, Traits
from manyhead.mixers.heads import HeadMixer


class MultiHeadAttention(HeadMixer):
    """Weighted averages of values with weights softmax(q k / sqrt(head_dim)).

    Args:
        channels, heads, causal, cross, bias, qk_channels, kv_heads, head_dim, out_bias: as in `HeadMixer`.
        qk_norm: layer norm of every query and key over `head_dim` (eps 1e-5).
        rotary: fraction of each head's channels with rotary positions; 0 for none.
        rotary_base: base of their rates.
        rotary_factor: divides their positions.
        relative: largest distance with a learned bias of its own, both ways; 0 for none.
        dropout: rate on the attention weights while training.

    Shape:
        input and output `(batch, tokens, channels)`; context `(batch, other tokens, channels)`.

    Raises:
        InputError: if heads do not divide the channels, kv_heads not the heads, or an option does not fit.
    """

    supports = frozenset(USES)
    traits = Traits("dense positive", True, True, True, True, "L^2", "L")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        out_bias: bool | None = None,
        qk_channels: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        qk_norm: bool = False,
        rotary: float = 0.0,
        rotary_base: float = 10000.0,
        rotary_factor: float = 1.0,
        relative: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            channels,
            heads,
            causal=causal,
            cross=cross,
            bias=bias,
            out_bias=out_bias,
            qk_channels=qk_channels,
            kv_heads=kv_heads,
            head_dim=head_dim,
        )
        if not 0 <= rotary <= 1:
            raise InputError(f"rotary is a fraction from 0 to 1, got {rotary}")
        if cross and (rotary or relative):
            raise InputError("rotary and relative positions are for self-attention; cross-attention has two")
        self.rotary, self.rotary_base, self.rotary_factor = rotary, rotary_base, rotary_factor
        self.relative, self.dropout = relative, dropout
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        if relative:
            self.distance_bias = nn.Parameter(torch.zeros(heads, 2 * relative + 1))

    def plain(self, wanted_by: str) -> Self:
        """The attention itself, for others that compute its softmax their own way.

        Raises:
            InputError: if it has relative positions or dropout, which they would leave out.
        """
        if self.relative or self.dropout:
            raise InputError(
                f"{wanted_by} takes no relative positions and no dropout on weights; "
                f"got relative={self.relative} and dropout={self.dropout}"
            )
        return self

    def queries(self, x: Tensor) -> Tensor:
        """Queries before rotation, `(batch, heads, tokens, head_dim)`."""
        q: Tensor = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, -1)))
        return q.transpose(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """Keys before rotation, `(batch, kv_heads, tokens, head_dim)`."""
        k: Tensor = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, -1)))
        return k.transpose(1, 2)

    def values(self, x: Tensor) -> Tensor:
        """Values, `(batch, kv_heads, tokens, head_dim)`."""
        v: Tensor = self.v_proj(x).unflatten(-1, (self.kv_heads, -1))
        return v.transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before rotation and values."""
        return self.keys(x), self.values(x)

    def project(
        self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in `HeadMixer`, with keys and values `(batch, kv_heads, tokens, head_dim)`."""
        other = self.tokens_of_keys(x, context)
        return self.queries(x), self.keys(other), self.values(other if value is None else value)

    def rotate(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate `(..., tokens, head_dim)` by the positions from `start` on, if the mixer has positions."""
        return self.rotate_at(x, torch.arange(start, start + x.shape[-2], device=x.device))

    def rotate_at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate `(..., tokens, head_dim)` by positions `(tokens,)`, if the mixer has positions."""
        if not self.rotary:
            return x
        return rotate(x, positions, self.rotary, self.rotary_base, self.rotary_factor)

    def repeat(self, kv: Tensor) -> Tensor:
        """Keys or values for each query head: `(batch, kv_heads, ...)` to `(batch, heads, ...)`."""
        return kv if self.kv_heads == self.heads else kv.repeat_interleave(self.heads // self.kv_heads, 1)

    def parts(
        self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, *, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each `(batch, heads, tokens, head_dim)`.

        Args:
            x: tokens that ask.
            context: tokens that keys come from, in cross-attention.
            value: tokens that values come from where they are not those of the keys.
            start: position of the first token.

        Raises:
            InputError: if a context is given to self-attention or missing in cross-attention.
        """
        q, k, v = self.project(x, context, value)
        return self.rotate(q, start), self.repeat(self.rotate(k, start)), self.repeat(v)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        value: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Mix; `padding` `(batch, keys)` marks absent keys, `value` gives the values other tokens."""
        q, k, v = self.parts(x, context, value)
        fast = padding is None and not self.relative
        return self.merge(
            scaled_dot_product_attention(
                q,
                k,
                v,
                None if fast else self._bias(q.shape[2], k.shape[2], 0, q, padding),
                self.dropout if self.training else 0.0,
                is_causal=fast and self.masked,
            )
        )

    def remember(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, for `recall` to ask many times."""
        k, v = self.keys_values(self.tokens_of_keys(context, context))
        return self.repeat(k), self.repeat(v)

    def recall(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """What `forward(x, context)` gives, from `remember(context)`."""
        return self.merge(scaled_dot_product_attention(self.queries(x), *memory))

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.parts(x, x if self.cross else None)
        weights: Tensor = (
            q @ k.mT * self.head_dim**-0.5 + self._bias(x.shape[1], x.shape[1], 0, q, None)
        ).softmax(-1)
        return weights

    def initial_state(self, batch: int, *, capacity: int = 1024, **options: object) -> KeyValueCache:
        """An empty cache for `capacity` tokens.

        Raises:
            InputError: if the mixer is not causal self-attention.
        """
        self._require_stream()
        like, room = self.k_proj.weight, (batch, self.kv_heads, capacity)
        return KeyValueCache(like.new_zeros(*room, self.head_dim), like.new_zeros(*room, self.value_dim))

    def advance(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, Tensor, KeyValueCache]:
        """Store the next tokens; their queries before rotation and their heads' outputs.

        Args:
            x: `(batch, tokens, channels)`; gradients do not pass through the cache.
            state: what came before.

        Returns:
            Queries and outputs, each `(batch, heads, tokens, head_dim)`, and the state after the tokens.

        Raises:
            InputError: if the attention is not causal, or the cache is too small.
        """
        self._require_stream()
        at = state.length
        q, k, v = self.project(x)
        state = state.append(self.rotate(k, at), v)
        bias = None
        if x.shape[1] > 1 or self.relative:
            bias = self._bias(x.shape[1], state.length, at, q, None)
        keys, values = (self.repeat(part) for part in state.filled)
        return q, scaled_dot_product_attention(self.rotate(q, at), keys, values, bias), state

    def extend(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Process the next tokens `(batch, tokens, channels)`, as `advance`."""
        _, out, state = self.advance(x, state)
        return self.merge(out), state

    def step(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        y, state = self.extend(x_t[:, None], state)
        return y[:, 0], state

    def _require_stream(self) -> None:
        if not self.masked:
            raise InputError("a cache needs causal self-attention: build it with causal=True, cross=False")

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
        if self.masked:
            bias = bias.masked_fill(distance > 0, -torch.inf)
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None], -torch.inf)
            # a padded query that sees nothing would give NaN; what it gives is not read
            bias = bias.masked_fill((bias == -torch.inf).all(-1, keepdim=True), 0.0)
        return bias
