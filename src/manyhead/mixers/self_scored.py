"""Attention in which every token scores itself: one weight per token and head, whoever asks.

Xue et al., 'Deconstructing Attention', 2025, arXiv 2510.11602, its 'nonapprox' variant: with q = SiLU(W_Q h)
and s_j = q_j k_j / sqrt(head_dim) of the same token, query i averages the values up to i with weights
softmax(s_1..s_i). Rotary positions would cancel in q_j k_j.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from manyhead.errors import InputError
from manyhead.layers.prefix_softmax import PrefixState, combine, prefix_softmax
from manyhead.mixers.base import Traits
from manyhead.mixers.multihead import MultiHeadAttention


class SelfScoredAttention(MultiHeadAttention):
    """Running averages of values, each weighted by its own token's score.

    Args:
        channels, heads, and options: as of `MultiHeadAttention`, causal, without positions.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if it is to be non-causal, or to have rotary positions.
    """

    traits = Traits("one positive row, cut off at the diagonal,", True, True, True, True, "L", "L")

    def __init__(self, channels: int, heads: int, **options: object) -> None:
        if not options.pop("causal", True) or options.get("rotary"):
            raise InputError("SelfScoredAttention is causal, and rotary positions cancel in its scores")
        super().__init__(channels, heads, causal=True, **options)  # type: ignore[arg-type]
        self.plain("SelfScoredAttention")

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `(batch, heads, tokens)` and values `(batch, heads, tokens, head_dim)`."""
        q = self.q_norm(silu(self.q_proj(x)).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        k, v = (self.repeat(part) for part in self.keys_values(x))
        return (q * k).sum(-1) * self.head_dim**-0.5, v

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        self.require_self_mixing(context)
        return self.merge(prefix_softmax(*self.scores(x))[0])

    def mixing_matrix(self, x: Tensor) -> Tensor:
        s, _ = self.scores(x)
        lower = s[..., None, :].expand(*s.shape, s.shape[-1]).tril()
        later = lower.new_ones(lower.shape[-2:]).triu(1).bool()
        weights: Tensor = lower.masked_fill(later, -float("inf")).softmax(-1)
        return weights

    def initial_state(self, batch: int, **options: object) -> PrefixState:  # type: ignore[override]
        """The state of an empty stream; it does not grow."""
        like = self.k_proj.weight
        nothing = like.new_zeros(batch, self.heads)
        return PrefixState(nothing - float("inf"), nothing, like.new_zeros(batch, self.heads, self.head_dim))

    def extend(self, x: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:  # type: ignore[override]
        """Process the next tokens `(batch, tokens, channels)`, the past being one token more."""
        s, v = self.scores(x)
        before = state.w / state.u.masked_fill(state.u == 0, 1.0)[..., None]
        s = torch.cat([(state.m + state.u.log())[..., None], s], -1)
        o, lse = prefix_softmax(s, torch.cat([before[:, :, None], v], 2))
        last = lse[..., -1]
        after = PrefixState(last, torch.ones_like(last), o[:, :, -1])
        return self.merge(o[:, :, 1:]), after

    def step(self, x_t: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:  # type: ignore[override]
        s, v = (part[:, :, 0] for part in self.scores(x_t[:, None]))
        state = combine(state, PrefixState(s, s.new_ones(s.shape), v))
        return self.merge((state.w / state.u[..., None])[:, :, None])[:, 0], state
