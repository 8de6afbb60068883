"""ProbSparse attention: exact attention for the queries that a sample says are far from uniform.

Zhou et al., 'Informer', 2020, arXiv 2012.07436, section 3.1.
"""

import math

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.mixers.base import NONCAUSAL_SELF, Traits
from manyhead.mixers.heads import HeadMixer


class ProbSparseAttention(HeadMixer):
    """Softmax attention for the u = factor ceil(ln L) most peaked queries; the others take the mean value.

    Args:
        channels, heads, bias: as in `HeadMixer`; it is noncausal self-attention.
        factor: scales both the queries kept and the keys sampled to choose them.
        seed: of the key samples. In evaluation every call draws the same; while training each its own.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("positive, log L rows of their own", True, True, True, True, "L log L", "L log L")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        factor: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias)
        if factor < 1:
            raise InputError(f"factor is at least 1, got {factor}")
        self.factor, self.seed = factor, seed
        self._generator = torch.Generator().manual_seed(seed)

    def sample(self, length: int) -> Tensor:
        """Key indices for each query position, `(length, u)`, drawn with replacement."""
        if not self.training:
            self._generator.manual_seed(self.seed)
        count = min(self.factor * math.ceil(math.log(length)) if length > 1 else 1, length)
        return torch.randint(length, (length, count), generator=self._generator)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Mix; `keys` `(length, u)` are sampled key indices to use instead of drawn ones."""
        q, k, v = self.project(x, context)
        length = q.shape[2]
        chosen = (self.sample(length) if keys is None else keys).to(x.device)
        count = chosen.shape[1]
        products = torch.einsum("bhld,bhlud->bhlu", q, k[:, :, chosen])
        if padding is not None:
            gone = padding[:, chosen][:, None]
            peak = products.masked_fill(gone, -torch.inf).amax(-1)
            score = peak - products.masked_fill(gone, 0.0).sum(-1) / length
            score = score.masked_fill(padding[:, None], -torch.inf)
            there = (~padding)[:, None, :, None].to(v.dtype)
            mean = (v * there).sum(2, keepdim=True) / there.sum(2, keepdim=True)
        else:
            score = products.amax(-1) - products.sum(-1) / length
            mean = v.mean(2, keepdim=True)
        top = score.topk(count, -1).indices[..., None]  # (batch, heads, u, 1)
        kept = q.gather(2, top.expand(-1, -1, -1, q.shape[-1]))
        logits = kept @ k.mT * self.head_dim**-0.5
        if padding is not None:
            logits = logits.masked_fill(padding[:, None, None], -torch.inf)
        out = mean.expand_as(v).scatter(2, top.expand(-1, -1, -1, v.shape[-1]), logits.softmax(-1) @ v)
        return self.merge(out)
