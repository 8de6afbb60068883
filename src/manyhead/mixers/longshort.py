"""Long-short attention of a whole sequence: a sliding window and a dynamic projection, in one softmax.

Zhu et al., 'Long-Short Transformer', 2021, arXiv 2107.02192, section 3.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from manyhead.errors import InputError
from manyhead.mixers.base import NONCAUSAL_SELF, Traits
from manyhead.mixers.heads import HeadMixer


class LongShortAttention(HeadMixer):
    """Every query sees a window around its block and `landmarks` input-dependent averages of all tokens.

    Args:
        channels, heads, bias: as in `HeadMixer`; noncausal self-attention (`CausalLongShortAttention` is
            the other).
        width: tokens of a block; its window is half a block wider on either side.
        landmarks: averages of the sequence, a head.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("banded plus low rank", True, True, True, True, "L (w + r)", "L (w + r)")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        width: int = 16,
        landmarks: int = 16,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias)
        if width < 1 or landmarks < 1:
            raise InputError(f"width and landmarks are at least 1, got {width} and {landmarks}")
        self.width, self.landmarks, self.reach = width, landmarks, max(width // 2, 1)
        self.norm_window, self.norm_landmarks = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, heads * landmarks)

    def forward(self, x: Tensor, context: Tensor | None = None, *, padding: Tensor | None = None) -> Tensor:
        """Mix; `padding` `(batch, tokens)` is True where a token is not there."""
        x = self.tokens_of_keys(x, context)
        batch, tokens, _ = x.shape
        spare = -tokens % self.width
        gone = x.new_zeros(batch, tokens, dtype=torch.bool) if padding is None else padding
        x, gone = pad(x, (0, 0, 0, spare)), pad(gone, (0, spare), value=True)
        q = self.split(self.q_proj(x)).reshape(
            batch, self.heads, -1, self.width, self.head_dim
        )  # (batch, heads, blocks, w, head_dim)
        k, v = (self.norm_window(p(x)) for p in (self.k_proj, self.v_proj))
        k, v = self.split(k), self.split(v)
        share = self.projection(x).unflatten(-1, (self.heads, self.landmarks)).permute(0, 2, 3, 1)
        share = share.masked_fill(gone[:, None, None], -torch.inf).softmax(-1)
        long_k, long_v = (
            self.split(self.norm_landmarks((share @ t).transpose(1, 2).flatten(2))) for t in (k, v)
        )
        short_k, short_v = (self._windows(t) for t in (k, v))
        away = pad(gone, (self.reach, self.reach), value=True).unfold(
            1, self.width + 2 * self.reach, self.width
        )
        near = (q @ short_k.mT).masked_fill(away[:, None, :, None], -torch.inf)
        far = q @ long_k[:, :, None].mT
        weights = (torch.cat([far, near], -1) * self.head_dim**-0.5).softmax(-1)
        out = weights[..., : self.landmarks] @ long_v[:, :, None] + weights[..., self.landmarks :] @ short_v
        return self.merge(out.flatten(2, 3)[:, :, :tokens])

    def _windows(self, t: Tensor) -> Tensor:
        """`(batch, heads, blocks, width + 2 reach, head_dim)`."""
        wide = pad(t, (0, 0, self.reach, self.reach))
        return wide.unfold(2, self.width + 2 * self.reach, self.width).mT
