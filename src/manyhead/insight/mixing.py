"""What a mixer's token matrix does: rank, row sums, distance, leakage.

He and Kabic, 'A Unified View of Long-Sequence Models', 2023, arXiv 2302.06218, writes every mixer as
`Y = M(X) U(X)`; this reports on `M` for any mixer that has `mixing_matrix`, on given tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from manyhead.mixers.base import Mixer


@dataclass(frozen=True)
class MixingReport:
    """Means over samples and heads.

    Args:
        effective_rank: exponential of the entropy of the normalised singular values.
        numerical_rank: singular values above 1e-5 of the largest.
        row_sum_error: largest distance of a row sum from one.
        mean_distance: mean distance of tokens, weighted by the size of the weights.
        beyond_half: share of that weight beyond half the length.
        leakage: largest weight on a later token.
    """

    effective_rank: float
    numerical_rank: float
    row_sum_error: float
    mean_distance: float
    beyond_half: float
    leakage: float


@torch.no_grad()
def mixing_report(mixer: Mixer, x: Tensor) -> MixingReport:
    """Report on the mixing matrix of a mixer for tokens `(batch, tokens, channels)`.

    Raises:
        NotImplementedError: if the mixer is no weighted sum of values.
    """
    matrix = mixer.mixing_matrix(x).double().flatten(0, 1)  # (batch * heads, tokens, tokens)
    tokens = matrix.shape[-1]
    values = torch.linalg.svdvals(matrix)
    share = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
    entropy = -(share * share.clamp_min(1e-300).log()).sum(-1)
    distance = (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs().to(matrix)
    size = matrix.abs() / matrix.abs().sum((-1, -2), keepdim=True).clamp_min(1e-300)
    return MixingReport(
        effective_rank=float(entropy.exp().mean()),
        numerical_rank=float((values > 1e-5 * values[:, :1]).sum(-1).double().mean()),
        row_sum_error=float((matrix.sum(-1) - 1.0).abs().max()),
        mean_distance=float((size * distance).sum((-1, -2)).mean()),
        beyond_half=float((size * (distance > tokens / 2)).sum((-1, -2)).mean()),
        leakage=float(matrix.triu(1).abs().max()),
    )
