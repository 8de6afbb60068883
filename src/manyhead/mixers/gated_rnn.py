"""Gated linear recurrences: LRU, RG-LRU and the LSTM whose gates see only the input.

Orvieto et al., 'Resurrecting Recurrent Neural Networks', 2023, arXiv 2303.06349 (LRU); De et al.,
'Griffin', 2024, arXiv 2402.19427 (RG-LRU); Sieber et al., 2024, arXiv 2405.15731, section 4.4 (qLSTM).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, softplus

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_SELF, Mixer, Traits
from manyhead.mixers.dynamical import DynamicalSystem, reversed_sigmoid


class LRU(Mixer):
    """The linear recurrent unit: a complex diagonal system that is the same at all times.

    Args:
        channels: size of the last axis of the input.
        state: complex numbers kept for the layer.
        radius: smallest and largest |lambda| at the start.

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("lower triangular Toeplitz", False, True, False, True, "L", "L")

    def __init__(self, channels: int, state: int, radius: tuple[float, float] = (0.5, 0.99)) -> None:
        super().__init__()
        low, high = radius
        if not 0 <= low < high <= 1:
            raise InputError(f"radius is two numbers from 0 to 1 in order, got {radius}")
        u = torch.rand(state)
        self.nu = nn.Parameter((-0.5 * (u * (high**2 - low**2) + low**2).log()).log())
        self.theta = nn.Parameter(torch.rand(state) * 2 * math.pi)
        modulus = self.nu.detach().exp().neg().exp()
        self.gamma = nn.Parameter((1 - modulus**2).sqrt().log())
        self.B = nn.Parameter(torch.randn(state, channels, 2) / (2 * channels) ** 0.5)
        self.C = nn.Parameter(torch.randn(channels, state, 2) / state**0.5)
        self.D = nn.Parameter(torch.randn(channels))

    def transition(self) -> Tensor:
        """lambda = exp(-exp(nu) + i theta), `(state,)`."""
        return torch.polar((-self.nu.exp()).exp(), self.theta)

    def dynamics(self, x: Tensor) -> DynamicalSystem:
        """The states as a dynamical system of `state` heads: C mixes them, so that c is one."""
        entering = x.to(torch.view_as_complex(self.B).dtype) @ torch.view_as_complex(self.B).mT
        entering = entering * self.gamma.exp()
        one = torch.ones_like(entering[:, :1, :, None, None])
        return DynamicalSystem(one * self.transition()[:, None, None], one, one, entering[..., None])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        return self._out(self.dynamics(x).recurrent()[..., 0], x)

    def initial_state(self, batch: int, **options: object) -> Tensor:
        """h `(batch, state)`, complex, zero at first."""
        return torch.view_as_complex(self.B).new_zeros(batch, len(self.nu))

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.transition() * state + self.dynamics(x_t[:, None]).v[:, 0, :, 0]
        return self._out(state, x_t), state

    def _out(self, h: Tensor, x: Tensor) -> Tensor:
        return (h @ torch.view_as_complex(self.C).mT).real + self.D * x


class RGLRU(Mixer):
    """The real-gated linear recurrent unit: h_i = a_i h_{i-1} + sqrt(1 - a_i^2) sigmoid(W_B u_i) u_i.

    Args:
        channels: size of the last axis of the input.
        sharpness: the constant c of a_i = exp(-c softplus(Lambda) sigmoid(W_A u_i)).

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("lower triangular, semiseparable of rank 1", True, True, False, True, "L", "L")

    def __init__(self, channels: int, sharpness: float = 8.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.gate_a, self.gate_b = nn.Linear(channels, channels), nn.Linear(channels, channels)
        kept = torch.empty(channels).uniform_(0.9, 0.999)  # a at an open gate
        self.decay = nn.Parameter(torch.expm1(-kept.log() / sharpness).log())

    def dynamics(self, x: Tensor) -> DynamicalSystem:
        """The mixer as a dynamical system with one state a channel."""
        log_a = -self.sharpness * softplus(self.decay) * self.gate_a(x).sigmoid()
        b = (-torch.expm1(2 * log_a)).sqrt() * self.gate_b(x).sigmoid()
        a, b = (t[:, :, None, None] for t in (log_a.exp(), b))
        return DynamicalSystem(a, b, torch.ones_like(a[:, :1, ..., :1]), x[:, :, None])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        return self.dynamics(x).recurrent()[:, :, 0]

    def initial_state(self, batch: int, **options: object) -> Tensor:
        """h `(batch, channels)`, zero at first."""
        return self.decay.new_zeros(batch, len(self.decay))

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        system = self.dynamics(x_t[:, None])
        state = system.a[:, 0, 0, 0] * state + system.b[:, 0, 0, 0] * x_t
        return state, state


class QLSTMState(NamedTuple):
    """Cell `(batch, hidden)` and the convolution's last inputs `(batch, kernel - 1, hidden)`."""

    cell: Tensor
    recent: Tensor


class QLSTM(Mixer):
    """An LSTM whose gates see only the input, so that it is a linear recurrence.

    Args:
        channels: size of the last axis of the input.
        expansion: hidden channels over `channels`.
        kernel: width of the causal depth-wise convolution before the gates.
        reversed_gate: forget by sigmoid(-f)^alpha with a learnt alpha, which is the transition of S6,
            instead of sigmoid(f).

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("lower triangular, semiseparable of rank 1", True, True, False, True, "L", "L")

    def __init__(
        self, channels: int, expansion: int = 2, kernel: int = 4, *, reversed_gate: bool = False
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        self.kernel, self.reversed_gate = kernel, reversed_gate
        self.input = nn.Linear(channels, 2 * hidden, bias=False)
        self.conv = nn.Conv1d(hidden, hidden, kernel, groups=hidden)
        self.gates = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, channels, bias=False)
        self.alpha = nn.Parameter(torch.tensor(1.0))

    def dynamics(self, x: Tensor) -> DynamicalSystem:
        """The cell with its output gate as a dynamical system with one state a hidden channel."""
        return self._system(self._convolved(self.input(x).chunk(2, -1)[1]))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        gate, entering = self.input(x).chunk(2, -1)
        out: Tensor = self.output(gelu(gate) * self._system(self._convolved(entering)).recurrent()[:, :, 0])
        return out

    def initial_state(self, batch: int, **options: object) -> QLSTMState:
        """Zero cell and zero past inputs."""
        hidden = self.output.in_features
        like = self.output.weight
        return QLSTMState(like.new_zeros(batch, hidden), like.new_zeros(batch, self.kernel - 1, hidden))

    def step(self, x_t: Tensor, state: QLSTMState) -> tuple[Tensor, QLSTMState]:
        gate, entering = self.input(x_t).chunk(2, -1)
        window = torch.cat([state.recent, entering[:, None]], 1)
        system = self._system(self.conv(window.mT).mT)
        a, b, c = (t[:, 0, 0, 0] for t in (system.a, system.b, system.c))
        cell = a * state.cell + b * system.v[:, 0, 0]
        return self.output(gelu(gate) * c * cell), QLSTMState(cell, window[:, 1:])

    def _convolved(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(pad(x.mT, (self.kernel - 1, 0))).mT
        return out

    def _system(self, x: Tensor) -> DynamicalSystem:
        forget, write, read = self.gates(x).chunk(3, -1)
        a = reversed_sigmoid(forget, self.alpha.relu()) if self.reversed_gate else forget.sigmoid()
        a, b, c = (t[:, :, None, None] for t in (a, write.sigmoid(), read.sigmoid()))
        return DynamicalSystem(a, b, c, x[:, :, None])
