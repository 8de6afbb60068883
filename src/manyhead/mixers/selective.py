"""Selective state spaces: S6, the core of Mamba, and its variant with one scalar transition.

Gu and Dao, 'Mamba', 2023, arXiv 2312.00752, algorithm 2; Dao and Gu, 'Transformers are SSMs', 2024,
arXiv 2405.21060; in the form of Sieber et al., 2024, arXiv 2405.15731, section 4.3, without convolution
and gate.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_SELF, Mixer, Traits
from manyhead.mixers.dynamical import DynamicalSystem


def step_bias(channels: int, low: float = 0.001, high: float = 0.1) -> Tensor:
    """Biases b with softplus(b) spread evenly in the logarithm over [low, high], as Mamba begins."""
    delta = (torch.rand(channels) * (math.log(high) - math.log(low)) + math.log(low)).exp()
    return delta + torch.log(-torch.expm1(-delta))


class _Selective(Mixer):
    """What S6 and SSD share; they differ in the transition and in how a step size comes about."""

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("lower triangular, semiseparable of rank state", True, True, False, True, "L", "L state")
    a_log: nn.Parameter

    def __init__(self, channels: int, state: int, rank: int) -> None:
        super().__init__()
        if state < 1 or rank < 1:
            raise InputError(f"state and rank are at least 1, got {state} and {rank}")
        self.state, self.rank = state, rank
        self.x_proj = nn.Linear(channels, rank + 2 * state, bias=False)
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, channels, bias=False)

    def delta(self, dt: Tensor) -> Tensor:
        """Step sizes `(..., channels)` from their low-rank projection `(..., rank)`."""
        raise NotImplementedError

    def dynamics(self, x: Tensor) -> DynamicalSystem:
        """The mixer before `out_proj` as a dynamical system with one head."""
        dt, b, c = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        delta = self.delta(dt)[..., None, None, :]  # (batch, length, 1, 1, channels)
        transition = (delta * -self.a_log.exp().mT).exp()
        b, c = (t[..., None, :, None] for t in (b, c))  # (batch, length, 1, state, 1)
        return DynamicalSystem(transition, delta * b, c, x[..., None, :], self.D)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        out: Tensor = self.out_proj(self.dynamics(x).recurrent()[..., 0, :])
        return out

    def initial_state(self, batch: int, **options: object) -> Tensor:
        """h `(batch, state, channels)`, zero at first."""
        return self.D.new_zeros(batch, self.state, len(self.D))

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        system = self.dynamics(x_t[:, None])
        a, b, c = (t[:, 0, 0] for t in (system.a, system.b, system.c))
        state = a * state + b * x_t[:, None]
        return self.out_proj((c * state).sum(1) + self.D * x_t), state


class S6(_Selective):
    """The selective state space of Mamba: a transition of its own for every channel and state.

    Args:
        channels: size of the last axis of the input.
        state: numbers n kept for every channel.
        rank: of the step sizes' projection; ceil(channels / 16) if left out.
        start: 'mamba' draws step sizes from [0.001, 0.1]; 'zero' sets their biases to zero, as the
            released experiments do by oversight (softplus(0) = 0.69: states are forgotten fast).

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    def __init__(
        self,
        channels: int,
        state: int = 16,
        *,
        rank: int | None = None,
        start: Literal["mamba", "zero"] = "mamba",
    ) -> None:
        super().__init__(channels, state, rank or math.ceil(channels / 16))
        self.dt_proj = nn.Linear(self.rank, channels)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_bias(channels) if start == "mamba" else torch.zeros(channels))
        self.a_log = nn.Parameter(torch.arange(1.0, state + 1).log().expand(channels, state).clone())

    def delta(self, dt: Tensor) -> Tensor:
        return softplus(self.dt_proj(dt))


class SSD(_Selective):
    """S6 with one transition a > 0 for the whole layer: exp(-a delta), the stand-in for Mamba-2.

    A step size is softplus of one number for the token plus a bias for the channel.

    Args:
        channels, state, start: as in `S6`.

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    def __init__(self, channels: int, state: int = 16, *, start: Literal["mamba", "zero"] = "mamba") -> None:
        super().__init__(channels, state, 1)
        self.dt_bias = nn.Parameter(step_bias(channels) if start == "mamba" else torch.zeros(channels))
        self.a_log = nn.Parameter(torch.zeros(1, 1))

    def delta(self, dt: Tensor) -> Tensor:
        return softplus(dt + self.dt_bias)

    def mixing_weights(self, x: Tensor) -> Tensor:
        """Masked attention of the same output: (C_i . B_j) delta_j exp(-a sum of deltas from j + 1 to i).

        Returns:
            `(batch, channels, queries, keys)`, without the direct path D.
        """
        dt, b, c = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        delta = self.delta(dt).mT  # (batch, channels, length)
        passed = (self.a_log.exp() * delta).cumsum(-1)
        decay = (passed[..., None, :] - passed[..., :, None]).tril().exp().tril()
        weights: Tensor = (c @ b.mT)[:, None] * decay * delta[..., None, :]
        return weights
