"""Multi-head attention in the forms of decoder language models, open for others to gate, shift or evict.

Vaswani et al., 'Attention Is All You Need', 2017, arXiv 1706.03762; key and value heads shared by groups
of query heads as in Ainslie et al., 'GQA', 2023, arXiv 2305.13245.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.key_value_cache import KeyValueCache
from manyhead.layers.rotary import rotary
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_CROSS, NONCAUSAL_SELF, Mixer, Traits


class MultiHeadAttention(Mixer):
    """Softmax attention of several heads, with its parts open for others to build on.

    Args:
        channels: size of the last axis of the input.
        heads: query heads.
        kv_heads: key and value heads, a divisor of `heads`; None for as many.
        head_dim: size of a head; None for `channels / heads`.
        causal: whether a token sees itself and earlier tokens only.
        qkv_bias: whether the projections of queries, keys and values have biases.
        out_bias: whether the output projection has one.
        qk_norm: layer norm of every query and key over `head_dim` (eps 1e-5).
        rotary_base: base of rotary positions; None for no positions.
        rotary_factor: divides rotary positions.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if heads do not divide the channels, or kv_heads the heads.
    """

    traits = Traits("dense positive", True, True, True, True, "L^2", "L")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: bool = False,
        rotary_base: float | None = None,
        rotary_factor: float = 1.0,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if heads < 1 or (head_dim is None and channels % heads):
            raise InputError(f"heads must divide channels, got {channels} channels and {heads} heads")
        if heads % kv_heads:
            raise InputError(f"kv_heads must divide heads, got {kv_heads} of {heads}")
        head_dim = head_dim or channels // heads
        self.channels, self.heads, self.kv_heads, self.head_dim = channels, heads, kv_heads, head_dim
        self.causal, self.rotary_base, self.rotary_factor = causal, rotary_base, rotary_factor
        self.supports = frozenset({CAUSAL_SELF} if causal else {NONCAUSAL_SELF, NONCAUSAL_CROSS})
        self.q_proj = nn.Linear(channels, heads * head_dim, qkv_bias)
        self.k_proj = nn.Linear(channels, kv_heads * head_dim, qkv_bias)
        self.v_proj = nn.Linear(channels, kv_heads * head_dim, qkv_bias)
        self.out_proj = nn.Linear(heads * head_dim, channels, out_bias)
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()

    def queries(self, x: Tensor) -> Tensor:
        """Queries before rotation, `(batch, heads, tokens, head_dim)`."""
        q: Tensor = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, -1)))
        return q.transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before rotation and values, each `(batch, kv_heads, tokens, head_dim)`."""
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, -1)))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1))
        return k.transpose(1, 2), v.transpose(1, 2)

    def rotate(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate `(..., tokens, head_dim)` by the positions from `start` on, if the mixer has positions."""
        if self.rotary_base is None:
            return x
        positions = torch.arange(start, start + x.shape[-2], device=x.device)
        return rotary(x, positions, self.rotary_base, self.rotary_factor)

    def repeat(self, kv: Tensor) -> Tensor:
        """Keys or values for each query head: `(batch, kv_heads, ...)` to `(batch, heads, ...)`."""
        return kv if self.kv_heads == self.heads else kv.repeat_interleave(self.heads // self.kv_heads, 1)

    def parts(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each `(batch, heads, tokens, head_dim)`.

        Raises:
            InputError: if a context is given to causal attention.
        """
        if self.causal:
            self.require_self_mixing(context)
        k, v = self.keys_values(x if context is None else context)
        return self.rotate(self.queries(x)), self.repeat(self.rotate(k)), self.repeat(v)

    def merge(self, out: Tensor) -> Tensor:
        """Outputs of heads `(batch, heads, tokens, head_dim)` to tokens `(batch, tokens, channels)`."""
        merged: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return merged

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.merge(scaled_dot_product_attention(*self.parts(x, context), is_causal=self.causal))

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.parts(x)
        logits = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        if self.causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        weights: Tensor = logits.softmax(-1)
        return weights

    @property
    def recurrent(self) -> bool:
        return self.causal

    def initial_state(self, batch: int, *, capacity: int = 1024, **options: object) -> KeyValueCache:
        """An empty cache for `capacity` tokens."""
        return KeyValueCache.empty(batch, self.kv_heads, capacity, self.head_dim, self.k_proj.weight)

    def advance(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, Tensor, KeyValueCache]:
        """Store one token `(batch, channels)`; its query before rotation and its heads' outputs.

        Raises:
            InputError: if the attention is not causal, or the cache is full.
        """
        if not self.causal:
            raise InputError("step needs causal=True: without it earlier outputs depend on later tokens")
        k, v = self.keys_values(x_t[:, None])
        q = self.queries(x_t[:, None])
        at = state.length
        state = state.append(self.rotate(k, at), v)
        keys, values = (self.repeat(part) for part in state.filled)
        return q, scaled_dot_product_attention(self.rotate(q, at), keys, values), state

    def step(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        _, out, state = self.advance(x_t, state)
        return self.merge(out)[:, 0], state

    def extend(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Process the next tokens `(batch, tokens, channels)`; gradients do not pass through the cache.

        Raises:
            InputError: if the attention is not causal, or the cache is too small.
        """
        if not self.causal:
            raise InputError("extend needs causal=True: without it earlier outputs depend on later tokens")
        at = state.length
        k, v = self.keys_values(x)
        state = state.append(self.rotate(k, at), v)
        keys, values = (self.repeat(part) for part in state.filled)
        seen = torch.ones(x.shape[1], state.length, dtype=torch.bool, device=x.device).tril(at)
        out = scaled_dot_product_attention(self.rotate(self.queries(x), at), keys, values, attn_mask=seen)
        return self.merge(out), state
