"""Linear and normalised attention: scores are plain products, so that the past fits a matrix.

Katharopoulos et al., 'Transformers are RNNs', 2020, arXiv 2006.16236 (linear); Sieber et al.,
'Understanding the differences in Foundation Models', 2024, arXiv 2405.15731, section 4.2 (normalised:
the normaliser is a function of the token that asks, not of the scores).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, softplus

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_SELF, USES, Traits
from manyhead.mixers.dynamical import DynamicalSystem, separable
from manyhead.mixers.heads import HeadMixer

CHUNK = 64  # tokens whose scores are formed at once


def causal_products(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of (q_i k_j) v_j over j <= i in O(L) work: scores within chunks, a state between them.

    Args:
        q, k: `(batch, heads, length, n)`.
        v: `(batch, heads, length, d)`.
        state: sum of k_j v_j over what came before, `(batch, heads, n, d)`.

    Returns:
        The sums `(batch, heads, length, d)` and the state after the last token.
    """
    batch, heads, length, _ = q.shape
    spare = -length % min(CHUNK, length)
    q, k, v = (
        nn.functional.pad(t, (0, 0, 0, spare)).reshape(batch, heads, -1, min(CHUNK, length), t.shape[-1])
        for t in (q, k, v)
    )
    within = (q @ k.mT).tril() @ v
    states = (k.mT @ v).cumsum(2)  # after every chunk
    if state is None:
        state = torch.zeros_like(states[:, :, 0])
    states = torch.cat([state[:, :, None], states + state[:, :, None]], 2)
    out = within + q @ states[:, :, :-1]
    return out.flatten(2, 3)[:, :, :length], states[:, :, -1]


class LinearAttention(HeadMixer):
    """Attention with scores phi(q) . phi(k), phi = elu + 1, divided by their sum.

    Args:
        channels, heads, causal, cross, bias, qk_channels: as in `HeadMixer`.
    """

    supports = frozenset(USES)
    traits = Traits("positive, rank head_dim", True, True, True, True, "L", "L")

    def features(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k) and values, `(batch, heads, tokens, ...)`."""
        q, k, v = self.project(x, context)
        return elu(q) + 1, elu(k) + 1, v

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        q, k, v = self.features(x, context)
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        if self.causal and not self.cross:
            sums, _ = causal_products(q, k, v)
        else:
            sums = q @ (k.mT @ v)
        return self.merge(sums[..., :-1] / sums[..., -1:])

    def remember(self, context: Tensor) -> Tensor:
        """Sum of phi(k_j) [v_j, 1] over a context, for `recall` to ask many times."""
        _, k, v = self.features(context, self.tokens_of_keys(context, context))
        return k.mT @ torch.cat([v, torch.ones_like(v[..., :1])], -1)

    def recall(self, x: Tensor, memory: Tensor) -> Tensor:
        """What `forward(x, context)` gives, from `remember(context)`."""
        sums = (elu(self.split(self.q_proj(x))) + 1) @ memory
        return self.merge(sums[..., :-1] / sums[..., -1:])

    def initial_state(self, batch: int, **options: object) -> Tensor:
        """Sum of phi(k_j) [v_j, 1]: `(batch, heads, head_dim, value_dim + 1)`, zero at first."""
        wide = self.channels // self.heads + 1
        return self.k_proj.weight.new_zeros(batch, self.heads, self.head_dim, wide)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.extend(x_t[:, None], state)
        return y[:, 0], state

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Process the next tokens `(batch, tokens, channels)` of a stream."""
        q, k, v = self.features(x)
        sums, state = causal_products(q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1), state)
        return self.merge(sums[..., :-1] / sums[..., -1:]), state

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self.features(x, x if self.cross else None)
        scores = q @ k.mT
        scores = scores.tril() if self.causal and not self.cross else scores
        return scores / scores.sum(-1, keepdim=True)

    def dynamics(self, x: Tensor) -> DynamicalSystem:
        """The attention before `out_proj` as a dynamical system (causal self-attention)."""
        q, k, v = self.features(x)
        eta = (q @ k.mT).tril().sum(-1)
        return separable(q, k, v, eta)


class NormalizedAttention(HeadMixer):
    """Attention with scores q . k divided by a function of the asking token, eta(w x_i + b).

    Args:
        channels, heads, bias, qk_channels: as in `HeadMixer`; it is causal self-attention.
        normalizer: eta, a positive function: 'exp' (the paper's best), 'softplus' or 'sigmoid'.
        positive: put q and k through elu + 1; the released code does not.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("lower triangular, rank head_dim", True, True, False, True, "L", "L")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        bias: bool = True,
        qk_channels: int | None = None,
        normalizer: Literal["exp", "softplus", "sigmoid"] = "exp",
        positive: bool = False,
    ) -> None:
        super().__init__(channels, heads, causal=True, bias=bias, qk_channels=qk_channels)
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "exp": torch.exp,
            "softplus": softplus,
            "sigmoid": torch.sigmoid,
        }
        if normalizer not in functions:
            raise InputError(f"normalizer is one of {', '.join(functions)}; got {normalizer!r}")
        self.normalizer, self.positive = functions[normalizer], positive
        self.n_proj = nn.Linear(channels, heads)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, values `(batch, heads, tokens, ...)` and eta `(batch, heads, tokens)`."""
        q, k, v = self.project(x)
        if self.positive:
            q, k = elu(q) + 1, elu(k) + 1
        return q, k, v, self.normalizer(self.n_proj(x)).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        q, k, v, eta = self.features(x)
        self.require_self_mixing(context)
        return self.merge(causal_products(q, k, v)[0] / eta[..., None])

    def initial_state(self, batch: int, **options: object) -> Tensor:
        """Sum of k_j v_j: `(batch, heads, head_dim, value_dim)`, zero at first."""
        return self.k_proj.weight.new_zeros(batch, self.heads, self.head_dim, self.channels // self.heads)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.extend(x_t[:, None], state)
        return y[:, 0], state

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Process the next tokens `(batch, tokens, channels)` of a stream."""
        q, k, v, eta = self.features(x)
        sums, state = causal_products(q, k, v, state)
        return self.merge(sums / eta[..., None]), state

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _, eta = self.features(x)
        return (q @ k.mT).tril() / eta[..., None]

    def dynamics(self, x: Tensor) -> DynamicalSystem:
        """The attention before `out_proj` as a dynamical system."""
        return separable(*self.features(x))
