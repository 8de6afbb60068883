"""Mixers whose token matrix is fixed by the distance of tokens or by a transform.

Rows of the table of He and Kabic, 'A Unified View of Long-Sequence Models', 2023, arXiv 2302.06218:
a convolution is a banded Toeplitz matrix, FNet (Lee-Thorp et al., 2021, arXiv 2105.03824) the real part
of a Fourier transform over tokens and channels.
"""

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, Traits


class CausalConvolution(Mixer):
    """Depth-wise convolution over the last `width` tokens, between two linear maps.

    Args:
        channels: size of the last axis of the input.
        width: tokens that the convolution sees, the present one included.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if `width` is below one.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("banded lower-triangular Toeplitz", False, True, False, True, "L w", "L")

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise InputError(f"width is at least 1, got {width}")
        self.width = width
        self.values, self.proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.kernel = nn.Parameter(torch.randn(channels, width) * width**-0.5)  # oldest token first

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        values = nn.functional.pad(self.values(x).transpose(1, 2), [self.width - 1, 0])
        mixed = nn.functional.conv1d(values, self.kernel[:, None], groups=len(self.kernel))
        out: Tensor = self.proj(mixed.transpose(1, 2))
        return out

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Weights `(1, channels, tokens, tokens)`: every channel is a head of its own."""
        tokens = x.shape[1]
        lag = torch.arange(tokens)[:, None] - torch.arange(tokens)
        inside = (lag >= 0) & (lag < self.width)
        weights = self.kernel[:, self.width - 1 - lag.clamp(0, self.width - 1)]
        banded: Tensor = weights.masked_fill(~inside, 0.0)
        return banded[None]


class FourierMixing(Mixer):
    """The real part of the Fourier transform over tokens and channels, without parameters.

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("Fourier", False, False, False, True, "L log L", "L")

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        mixed: Tensor = torch.fft.fft2(x).real
        return mixed
