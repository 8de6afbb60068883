"""Aaren: softmax attention with one learned query, over every prefix at once or token by token.

Feng et al., 'Attention as an RNN', 2024, arXiv 2405.13956, section 3.3. The query does not depend on the
input, so that a token is folded into a state of h + 2 numbers a head and never looked at again.
"""

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.layers.prefix_softmax import PrefixState, combine, prefix_softmax, prefix_states
from manyhead.mixers.base import CAUSAL_SELF, Mixer, Traits


class Aaren(Mixer):
    """Average the values of each prefix by a softmax of their keys' products with a learned query.

    Args:
        channels: size of the last axis of the input.
        heads: attention heads; a divisor of `channels`.
        project_query: map the learned query by a linear layer as a Transformer maps its tokens, which is
            what the paper's parameter count says; False uses it as it is.
        bias: whether the linear maps have biases.

    Shape:
        input and output `(batch, tokens, channels)`; output i depends on inputs up to i.

    Raises:
        InputError: if `channels` is not a multiple of `heads`.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("lower triangular, columns alike up to scale", True, True, True, True, "L", "L")

    def __init__(self, channels: int, heads: int, *, project_query: bool = True, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(f"heads must divide channels, got {channels} channels and {heads} heads")
        self.heads = heads
        self.query = nn.Parameter(torch.randn(channels) * 0.02)
        self.q_proj = nn.Linear(channels, channels, bias) if project_query else nn.Identity()
        self.k_proj = nn.Linear(channels, channels, bias)
        self.v_proj = nn.Linear(channels, channels, bias)
        self.out_proj = nn.Linear(channels, channels, bias)

    def scores_and_values(self, x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores `(batch, heads, tokens)` and values `(batch, heads, tokens, head_dim)`.

        Args:
            x: tokens `(batch, tokens, channels)`.
            padding: True where a token is not there, `(batch, tokens)`.
        """
        q = self.q_proj(self.query).unflatten(-1, (self.heads, -1))  # (heads, head_dim)
        k = self.k_proj(x).unflatten(-1, (self.heads, -1))  # (batch, tokens, heads, head_dim)
        v = self.v_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = torch.einsum("bnhd,hd->bhn", k, q) * q.shape[-1] ** -0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], -torch.inf)
        return scores, v

    def forward(self, x: Tensor, context: Tensor | None = None, *, padding: Tensor | None = None) -> Tensor:
        """Mix all prefixes in parallel; `padding` `(batch, tokens)` is True where a token is not there."""
        self.require_self_mixing(context)
        o, _ = prefix_softmax(*self.scores_and_values(x, padding))
        return self._out(o)

    def initial_state(self, batch: int, **options: object) -> PrefixState:
        """The state of an empty stream: (-inf, 0, 0) for each head."""
        like = self.query
        m = like.new_full((batch, self.heads), -torch.inf)
        return PrefixState(m, torch.zeros_like(m), like.new_zeros(batch, self.heads, len(like) // self.heads))

    def step(self, x_t: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:
        """Fold in one token `(batch, channels)`."""
        scores, v = self.scores_and_values(x_t[:, None])
        state = combine(state, PrefixState(scores[..., 0], torch.ones_like(state.u), v[..., 0, :]))
        return self.out_proj((state.w / state.u[..., None]).flatten(1)), state

    def extend(self, x: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:
        """Fold in several tokens `(batch, tokens, channels)` and return all their outputs."""
        here = prefix_states(*self.scores_and_values(x))
        every = combine(PrefixState(state.m[..., None], state.u[..., None], state.w[..., None, :]), here)
        last = PrefixState(every.m[..., -1], every.u[..., -1], every.w[..., -1, :])
        return self._out(every.w / every.u[..., None]), last

    def fold(self, x: Tensor, state: PrefixState) -> PrefixState:
        """Fold in several tokens with memory of one state, where only what follows them is of interest."""
        scores, v = self.scores_and_values(x)
        m = scores.amax(-1)
        weights = (scores - m[..., None]).exp()
        return combine(state, PrefixState(m, weights.sum(-1), (weights[..., None, :] @ v)[..., 0, :]))

    def mixing_matrix(self, x: Tensor) -> Tensor:
        scores, _ = self.scores_and_values(x)
        n = scores.shape[-1]
        later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        return scores[..., None, :].masked_fill(later, -torch.inf).softmax(-1)

    def _out(self, o: Tensor) -> Tensor:
        out: Tensor = self.out_proj(o.transpose(1, 2).flatten(2))
        return out
