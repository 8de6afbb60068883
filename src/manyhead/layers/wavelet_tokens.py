"""Segments of a signal to tokens: a full db4 wavelet decomposition, normed and projected.

As MVPFormer's encoder, 2025, arXiv 2506.20354: Daubechies' eight-tap wavelet, the signal continued
periodically, to the deepest level; no gradient passes the transform.
"""

import math

import torch
from torch import Tensor, nn

from manyhead.errors import InputError

LOW = (
    -0.010597401784997278,
    0.032883011666982945,
    0.030841381835986965,
    -0.18703481171888114,
    -0.02798376941698385,
    0.6308807679295904,
    0.7148465705525415,
    0.23037781330885523,
)
HIGH = tuple((-1) ** (n + 1) * tap for n, tap in enumerate(reversed(LOW)))


def coefficient_sizes(length: int) -> list[int]:
    """Coefficients of each level from fine to coarse, the approximation's last.

    Raises:
        InputError: if the signal is shorter than two supports of the filter.
    """
    levels = int(math.log2(length / (len(LOW) - 1))) if length > 0 else 0
    if levels < 1:
        raise InputError(f"a db4 decomposition takes at least {2 * (len(LOW) - 1)} samples, got {length}")
    sizes = []
    for _ in range(levels):
        length = (length + len(LOW) - 1) // 2
        sizes.append(length)
    return [*sizes, length]


def db4_coefficients(x: Tensor) -> Tensor:
    """All coefficients of signals `(..., length)`, coarse to fine: approximation, then details."""
    details = []
    taps = torch.arange(len(LOW), device=x.device)
    for size in coefficient_sizes(x.shape[-1])[:-1]:
        # output k is a sum over taps j of the periodic signal at 2 k + 1 - j
        index = (2 * torch.arange(size, device=x.device)[:, None] + 1 - taps) % x.shape[-1]
        near = x[..., index]  # (..., size, taps)
        details.append(near @ x.new_tensor(HIGH))
        x = near @ x.new_tensor(LOW)
    return torch.cat([x, *reversed(details)], -1)


class WaveletTokens(nn.Module):
    """Tokens of segments: coefficients, RMS norm (eps 1e-5), a linear map without bias.

    Args:
        length: samples of a segment.
        width: features of a token.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        count = sum(coefficient_sizes(length))
        self.norm = nn.RMSNorm(count, eps=1e-5)
        self.proj = nn.Linear(count, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Segments `(..., length)` to tokens `(..., width)`."""
        with torch.no_grad():
            coefficients = db4_coefficients(x)
        out: Tensor = self.proj(self.norm(coefficients))
        return out
