"""Vectors of tokens with positions added, learned or sinusoidal (Vaswani et al., 2017, arXiv 1706.03762)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from manyhead.errors import InputError

Positions = Literal["rotary", "relative", "learned", "sinusoidal", "none"]


class TokenEmbedding(nn.Module):
    """Vectors of tokens, with learned or sinusoidal positions added where asked for.

    Args:
        vocabulary: number of tokens.
        channels: features of a token.
        positions: 'learned' and 'sinusoidal' are added; the others are not the embedding's business.
        longest: positions that 'learned' has.
    """

    def __init__(self, vocabulary: int, channels: int, positions: Positions, longest: int) -> None:
        super().__init__()
        known = ("rotary", "relative", "learned", "sinusoidal", "none")
        if positions not in known:
            raise InputError(f"positions is one of {', '.join(known)}; got {positions!r}")
        self.kind, self.longest = positions, longest
        self.tokens = nn.Embedding(vocabulary, channels)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = nn.Embedding(longest, channels) if positions == "learned" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        x: Tensor = self.tokens(ids)
        places = torch.arange(start, start + ids.shape[1], device=ids.device)
        if self.positions is not None:
            if start + ids.shape[1] > self.longest:
                raise InputError(f"{start + ids.shape[1]} tokens, but {self.longest} learned positions")
            x = x + self.positions(places)
        elif self.kind == "sinusoidal":
            rate = torch.arange(0, x.shape[-1], 2, device=x.device) * (-math.log(10000.0) / x.shape[-1])
            angle = places[:, None] * rate.exp()
            x = x + torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, : x.shape[-1]]
        return x
