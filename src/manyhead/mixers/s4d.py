"""S4D: a diagonal state space of fixed dynamics for every channel, as a convolution or step by step.

Gu et al., 'On the Parameterization and Initialization of Diagonal State Space Models', 2022, arXiv
2206.11893, with the layer around it of Zhang et al., 'CAB', 2022, arXiv 2210.07661.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from manyhead.errors import InputError
from manyhead.layers.scan import linear_scan
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, Traits

CHUNK = 64  # tokens convolved at once; between chunks the states carry


class S4D(Mixer):
    """y = GELU(K * u + D u), then a linear map; K[l] = 2 Re sum of C_n (e^{dt w_n} - 1) / w_n e^{dt w_n l}.

    No Fourier transform is used, so that a later input cannot change an earlier output by rounding.

    Args:
        channels: size of the last axis of the input.
        state: real numbers N kept for every channel, as N / 2 complex modes.
        kernels: kernels for every channel (the heads of CAB).
        causal: past inputs only; otherwise a second set of kernels takes the later inputs.
        cross: not supported.

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    supports = frozenset({NONCAUSAL_SELF, CAUSAL_SELF})
    traits = Traits("Toeplitz", False, True, False, True, "L N", "L N")

    def __init__(
        self,
        channels: int,
        kernels: int = 1,
        *,
        causal: bool = True,
        cross: bool = False,
        state: int = 16,
    ) -> None:
        super().__init__()
        if cross:
            raise InputError("S4D has no cross form; it supports noncausal self, causal self")
        if state < 2 or state % 2 or kernels < 1:
            raise InputError(f"state is even and kernels at least 1, got {state} and {kernels}")
        self.supports = frozenset({CAUSAL_SELF if causal else NONCAUSAL_SELF})
        self.causal, self.kernels = causal, kernels
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(0.001), math.log(0.1)))
        self.log_w_real = nn.Parameter(torch.full((state // 2,), math.log(0.5)))
        self.w_imag = nn.Parameter(math.pi * torch.arange(state // 2))
        self.C = nn.Parameter(torch.randn(kernels * (1 if causal else 2), channels, state // 2, 2) / 2**0.5)
        self.D = nn.Parameter(torch.randn(kernels, channels))
        self.out_proj = nn.Linear(kernels * channels, channels)

    @property
    def recurrent(self) -> bool:
        return self.causal

    def modes(self) -> tuple[Tensor, Tensor]:
        """dt w `(channels, modes)` and C (e^{dt w} - 1) / w `(kernels, channels, modes)`, complex."""
        w = torch.complex(-self.log_w_real.exp(), self.w_imag)
        exponent = self.log_dt.exp()[:, None] * w
        return exponent, torch.view_as_complex(self.C) * torch.expm1(exponent) / w

    def kernel(self, length: int) -> Tensor:
        """K, `(kernels, channels, length)`."""
        exponent, c = self.modes()
        times = torch.arange(length, device=exponent.device)
        return 2 * torch.einsum("khn,hnl->khl", c, (exponent[..., None] * times).exp()).real

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        exponent, c = self.modes()
        u = x.mT  # (batch, channels, tokens)
        y = self._convolve(u, exponent, c[: self.kernels])
        if not self.causal:
            later = pad(u.flip(-1)[..., :-1], (1, 0))  # lag 0 is the next token
            y = y + self._convolve(later, exponent, c[self.kernels :]).flip(-1)
        return self._out(y, u)

    def initial_state(self, batch: int, **options: object) -> Tensor:
        """Modes of every channel `(batch, channels, modes)`, complex, zero at first."""
        return self.modes()[0].new_zeros(batch, len(self.log_dt), len(self.w_imag))

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not self.causal:
            raise InputError("step needs causal=True: without it earlier outputs depend on later tokens")
        exponent, c = self.modes()
        state = exponent.exp() * state + x_t[..., None]
        y = 2 * torch.einsum("khn,bhn->bkh", c, state).real
        return self._out(y[..., None], x_t[..., None])[:, 0], state

    def _convolve(self, u: Tensor, exponent: Tensor, c: Tensor) -> Tensor:
        """Causal convolution `(batch, kernels, channels, tokens)` in chunks of at most CHUNK tokens."""
        tokens = u.shape[-1]
        size = min(CHUNK, tokens)
        u = pad(u, (0, -tokens % size)).reshape(*u.shape[:2], -1, size)  # (batch, channels, chunks, size)
        times = torch.arange(size, device=u.device)
        powers = (exponent[..., None] * times).exp()  # (channels, modes, size)
        kernel = 2 * torch.einsum("khn,hnl->khl", c, powers).real
        lag = times[:, None] - times
        toeplitz = kernel[..., lag.clamp(min=0)] * (lag >= 0)  # (kernels, channels, out, in)
        y = torch.einsum("khts,bhcs->bkhct", toeplitz, u)
        if u.shape[2] > 1:
            ends = torch.einsum("hns,bhcs->bchn", powers.flip(-1), u.to(powers.dtype))
            states = linear_scan((exponent * size).exp()[None, None].expand(1, ends.shape[1], -1, -1), ends)
            reach = c[..., None] * (exponent[..., None] * (times + 1)).exp()
            carried = 2 * torch.einsum("khnt,bchn->bkhct", reach, states[:, :-1]).real
            y = torch.cat([y[..., :1, :], y[..., 1:, :] + carried], -2)
        return y.flatten(-2)[..., :tokens]

    def _out(self, y: Tensor, u: Tensor) -> Tensor:
        """`(batch, kernels, channels, tokens)` to tokens."""
        y = gelu(y + self.D[..., None] * u[:, None])
        out: Tensor = self.out_proj(y.flatten(1, 2).mT)
        return out
