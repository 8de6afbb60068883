"""Indicators of attention maps: entropy, concentration, diversity of heads, sinks, local focus.

As compared between attentions by Xue et al., 'Deconstructing Attention', 2025, arXiv 2510.11602.
"""

from dataclasses import dataclass

from torch import Tensor

from manyhead.errors import InputError


@dataclass(frozen=True)
class Indicators:
    """Indicators of one layer's maps, means over samples.

    Args:
        entropy: of each head, `(heads,)`, mean over rows, in nats.
        concentration: Frobenius norm of each head's map, `(heads,)`.
        head_diversity: mean over the causal entries of the standard deviation across heads.
        sink: mean weight on the first token, `(heads,)`.
        local_focus: mean weight on the token N places back for N = 0..3, `(heads, 4)`.
    """

    entropy: Tensor
    concentration: Tensor
    head_diversity: float
    sink: Tensor
    local_focus: Tensor


def row_entropy(weights: Tensor) -> Tensor:
    """Entropy of every row of maps `(..., queries, keys)` in nats, `(..., queries)`."""
    return -(weights * weights.clamp_min(1e-30).log()).sum(-1)


def indicators(weights: Tensor) -> Indicators:
    """Compute the eight indicators of causal maps.

    Args:
        weights: maps of one layer, `(batch, heads, tokens, tokens)` or without the batch.

    Raises:
        InputError: if the maps are not square, or hold fewer than four tokens.
    """
    if weights.ndim == 3:
        weights = weights[None]
    if weights.ndim != 4 or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] < 4:
        raise InputError(f"indicators take maps (batch, heads, n, n) with n >= 4, got {tuple(weights.shape)}")
    length = weights.shape[-1]
    spread = weights.std(1, correction=0).tril().sum((-2, -1)) * 2 / (length * (1 + length))
    back = [weights.diagonal(-n, -2, -1).mean(-1).mean(0) for n in range(4)]
    return Indicators(
        entropy=row_entropy(weights).mean((0, -1)),
        concentration=weights.square().sum((-2, -1)).sqrt().mean(0),
        head_diversity=float(spread.mean()),
        sink=weights[..., 0].mean((0, -1)),
        local_focus=weights.new_tensor([part.tolist() for part in back]).T,
    )


def over_layers(values: Tensor) -> Tensor:
    """Min-max normalise an indicator over layers `(layers, ...)`, as the paper plots them."""
    low, high = values.amin(0), values.amax(0)
    return (values - low) / (high - low).clamp_min(1e-12)
