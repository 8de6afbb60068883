"""Nystrom attention: the softmax matrix from landmark rows and columns.

Xiong et al., 'Nystromformer', 2021, arXiv 2102.03902, equations 13 and 14 and the iterative
pseudo-inverse of section 3.3.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.segments import segment_means
from manyhead.mixers.base import NONCAUSAL_SELF, Traits
from manyhead.mixers.heads import HeadMixer, absent


def pseudo_inverse(matrix: Tensor, steps: int = 6) -> Tensor:
    """Moore-Penrose inverse of row-stochastic matrices `(..., n, n)` by a cubic iteration."""
    eye = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    z = matrix.mT / matrix.sum(-2).max()
    for _ in range(steps):
        mz = matrix @ z
        z = 0.25 * z @ (13 * eye - mz @ (15 * eye - mz @ (7 * eye - mz)))
    return z


class NystromAttention(HeadMixer):
    """Softmax attention through `landmarks` segment means of queries and keys.

    Sequences of up to `landmarks` tokens are attended exactly.

    Args:
        channels, heads, bias: as in `HeadMixer`; it is noncausal self-attention.
        landmarks: segments.
        kernel: width of a depth-wise convolution of the values that is added; 0 for none.
        released: divide queries and keys each by sqrt(head_dim), as CAB's code does, where
            head_dim ** (1/4) is right, and give heads its mixed-up padding; for reproducing its results.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("rank landmarks", True, True, False, True, "L m", "L m")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        landmarks: int = 16,
        kernel: int = 0,
        released: bool = False,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias)
        if landmarks < 1 or (kernel % 2 == 0 and kernel):
            raise InputError(f"landmarks is at least 1 and kernel odd or 0, got {landmarks} and {kernel}")
        self.landmarks, self.released = landmarks, released
        self.temper = self.head_dim ** (-0.5 if released else -0.25)
        self.conv = (
            nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)
            if kernel
            else None
        )

    def forward(self, x: Tensor, context: Tensor | None = None, *, padding: Tensor | None = None) -> Tensor:
        """Mix; `padding` `(batch, tokens)` is True where a token is not there."""
        q, k, v = self.project(x, context)
        q, k = q * self.temper, k * self.temper
        gone = None
        if padding is not None:
            gone = absent(padding, self.heads, self.released)
            k, v = k.masked_fill(gone[..., None], 0.0), v.masked_fill(gone[..., None], 0.0)
        out = self._average(q, k, v, gone)
        if self.conv is not None:
            out = out + self.conv(v)
        return self.merge(out)

    def _average(self, q: Tensor, k: Tensor, v: Tensor, gone: Tensor | None) -> Tensor:
        away = None if gone is None else ~gone[:, :, None]
        if q.shape[2] <= self.landmarks:
            return scaled_dot_product_attention(q, k, v, away, scale=1.0)
        marks_q, marks_k = segment_means(q, self.landmarks), segment_means(k, self.landmarks)
        first = (q @ marks_k.mT).softmax(-1)
        second = (marks_q @ marks_k.mT).softmax(-1)
        third = scaled_dot_product_attention(marks_q, k, v, away, scale=1.0)
        return first @ pseudo_inverse(second) @ third
