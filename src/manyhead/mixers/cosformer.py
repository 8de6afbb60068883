"""cosFormer: linear attention whose scores fade with the distance by a cosine.

Qin et al., 'cosFormer: Rethinking Softmax in Attention', 2022, arXiv 2202.08791, equations 9 to 12.
"""

import math

import torch
from torch import Tensor

from manyhead.mixers.base import NONCAUSAL_CROSS, NONCAUSAL_SELF, Traits
from manyhead.mixers.heads import HeadMixer


class CosFormer(HeadMixer):
    """Scores relu(q_i) . relu(k_j) cos(pi (i - j) / 2 L), in linear time as cos(a - b) separates.

    Args:
        channels, heads, cross, bias: as in `HeadMixer`; it is noncausal.
    """

    supports = frozenset({NONCAUSAL_SELF, NONCAUSAL_CROSS})
    traits = Traits("positive, rank 2 head_dim", True, True, True, True, "L", "L")

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        value: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Mix; `padding` `(batch, keys)` marks absent keys, `value` gives the values other tokens."""
        q, k, v = self.project(x, context, value)
        longest = max(q.shape[2], k.shape[2])
        q, k = self._turned(q.relu(), longest), self._turned(k.relu(), longest)
        if padding is not None:
            k = k.masked_fill(padding[:, None, :, None], 0.0)
        total = q @ k.sum(2)[..., None]
        return self.merge(q @ (k.mT @ v) / total.clamp(min=1e-6))

    @staticmethod
    def _turned(x: Tensor, longest: int) -> Tensor:
        """[x sin, x cos] of the angle of each position, counted from 1."""
        angle = torch.arange(1, x.shape[2] + 1, device=x.device, dtype=x.dtype)[:, None]
        angle = angle * (math.pi / 2 / longest)
        return torch.cat([x * angle.sin(), x * angle.cos()], -1)
