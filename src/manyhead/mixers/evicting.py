"""Causal attention that streams in flat memory: with sinks and a window, or with heavy hitters.

Xiao et al., 'StreamingLLM', 2023, arXiv 2309.17453, and Zhang et al., 'H2O', 2023, arXiv 2306.14048, the way
SinkLoRA (2024, arXiv 2406.05678) saves memory at inference. Both take a trained attention as it is.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.heavy_hitters import HeavyHitterCache
from manyhead.layers.sink_cache import SinkCache
from manyhead.mixers.base import CAUSAL_SELF, Mixer, Traits
from manyhead.mixers.multihead import MultiHeadAttention


def require_causal(attention: MultiHeadAttention) -> None:
    """Refuse attention that cannot stream.

    Raises:
        InputError: if it is not causal self-attention, or has relative positions or dropout.
    """
    if not attention.plain("a stream that evicts").recurrent:
        raise InputError("a stream needs causal self-attention: build it with causal=True, cross=False")


class SinkWindowAttention(Mixer):
    """Every token sees the first `sinks` tokens and the `window` most recent ones, itself among them.

    Args:
        attention: causal attention; its parameters are used, not copied.
        window: recent tokens; this alone, with `sinks=0`, is a sliding window.
        sinks: first tokens that stay.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if the attention is not causal, or a number out of range.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("banded with a few full columns,", True, True, True, True, "L (w + s)", "w + s")

    def __init__(self, attention: MultiHeadAttention, window: int, sinks: int = 4) -> None:
        super().__init__()
        require_causal(attention)
        if window < 1 or sinks < 0:
            raise InputError(f"window is at least 1 and sinks not negative, got {window} and {sinks}")
        self.attention, self.window, self.sinks = attention, window, sinks

    def seen(self, tokens: int) -> Tensor:
        """Which keys each query sees, `(tokens, tokens)`."""
        at = torch.arange(tokens)
        behind = at[:, None] - at
        # sinks take their own slots first, so that the window begins behind them
        return (behind >= 0) & ((behind < self.window) | (at < self.sinks))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        q, k, v = self.attention.parts(x)
        seen = self.seen(x.shape[1]).to(x.device)
        return self.attention.merge(scaled_dot_product_attention(q, k, v, attn_mask=seen))

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.attention.parts(x)
        logits = q @ k.mT * self.attention.head_dim**-0.5
        weights: Tensor = logits.masked_fill(~self.seen(x.shape[1]).to(x.device), -torch.inf).softmax(-1)
        return weights

    def initial_state(self, batch: int, **options: object) -> SinkCache:
        """An empty cache; its size does not depend on the length of the stream."""
        a = self.attention
        return SinkCache.empty(batch, a.kv_heads, self.sinks, self.window, a.head_dim, a.k_proj.weight)

    def step(self, x_t: Tensor, state: SinkCache) -> tuple[Tensor, SinkCache]:
        a, at = self.attention, state.length
        k, v = a.keys_values(x_t[:, None])
        state = state.append(a.rotate(k, at)[:, :, 0], v[:, :, 0])
        keys, values = (a.repeat(part) for part in state.filled)
        out = scaled_dot_product_attention(a.rotate(a.queries(x_t[:, None]), at), keys, values)
        return a.merge(out)[:, 0], state


class HeavyHitterAttention(Mixer):
    """Full attention in training; streams keep the newest tokens and those looked at most.

    Steps equal the parallel form as long as the budget holds all tokens, and approximate it beyond.

    Args:
        attention: causal attention; its parameters are used, not copied.
        heavy: tokens kept for the weight that they were given.
        recent: newest tokens kept.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if the attention is not causal, or a number out of range.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("dense positive", True, True, True, True, "L^2", "heavy + recent")

    def __init__(self, attention: MultiHeadAttention, heavy: int, recent: int) -> None:
        super().__init__()
        require_causal(attention)
        if heavy < 0 or recent < 1:
            raise InputError(f"heavy is at least 0 and recent at least 1, got {heavy} and {recent}")
        self.attention, self.heavy, self.recent = attention, heavy, recent

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        out: Tensor = self.attention(x)
        return out

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Weights of the full form."""
        return self.attention.mixing_matrix(x)

    def initial_state(self, batch: int, **options: object) -> HeavyHitterCache:
        """An empty cache; its size does not depend on the length of the stream."""
        a = self.attention
        return HeavyHitterCache.empty(batch, a.kv_heads, self.heavy, self.recent, a.head_dim, a.k_proj.weight)

    def step(self, x_t: Tensor, state: HeavyHitterCache) -> tuple[Tensor, HeavyHitterCache]:
        a, at = self.attention, state.length
        k, v = a.keys_values(x_t[:, None])
        q = a.rotate(a.queries(x_t[:, None]), at)[:, :, 0].unflatten(1, (a.kv_heads, -1))
        out, state = state.attend(q, a.rotate(k, at)[:, :, 0], v[:, :, 0])
        return a.merge(out.flatten(1, 2)[:, :, None])[:, 0], state

    def extend(self, x: Tensor, state: HeavyHitterCache) -> tuple[Tensor, HeavyHitterCache]:
        """Process `(batch, tokens, channels)`: a prompt at once with full attention, later tokens singly."""
        if state.length == 0:
            a = self.attention
            k, v = a.keys_values(x)
            q = a.rotate(a.queries(x)).unflatten(1, (a.kv_heads, -1))
            out, state = state.prefill(q, a.rotate(k), v)
            return a.merge(out.flatten(1, 2)), state
        steps = []
        for x_t in x.unbind(1):
            y_t, state = self.step(x_t, state)
            steps.append(y_t)
        return torch.stack(steps, 1), state
