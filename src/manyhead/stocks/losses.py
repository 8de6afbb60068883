"""Stockformer's two losses, as released and masked by true availability.

Stockformer (arXiv 2401.06139), section 3.5: the absolute error of the returns and the cross-entropy of the
up/down classes, each taken for the fused and for the low-frequency outputs, and summed. The released
code drops every target that equals 0 from the first, also days on which a price truly stood still, and
drops nothing from the second, so that a suspended stock counts as 'down'. The `official_` functions do
that; the others count exactly the cells whose return exists.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def official_masked_mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Return mean(|prediction - target| * m / mean(m)) with m = 1 where the target is not 0.

    Args:
        prediction: any shape.
        target: same shape; where it is 0 or NaN the prediction does not matter.

    Returns:
        a scalar; 0 if every target is 0.
    """
    counted = target != 0  # a NaN counts in the mean of the mask, and its error then as 0
    error = torch.where(counted & ~target.isnan(), (prediction - target.nan_to_num(0.0)).abs(), 0.0)
    return error.sum() / counted.sum().clamp(min=1)


def official_cross_entropy(logits: Tensor, trend: Tensor) -> Tensor:
    """Return the mean cross-entropy over all cells, suspended stocks included.

    Args:
        logits: `(..., 2)`.
        trend: `(...)` integer classes.
    """
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), trend.reshape(-1).long())


def masked_mae(prediction: Tensor, target: Tensor, available: Tensor) -> Tensor:
    """Return the mean absolute error over the cells whose return exists.

    Args:
        prediction: any shape.
        target: same shape; its value is ignored where the mask is False, NaN included.
        available: same shape, Boolean.

    Returns:
        a scalar; 0, with zero gradient, if no cell is available.
    """
    error = torch.where(available, (prediction - target.nan_to_num(0.0)).abs(), torch.zeros_like(prediction))
    return error.sum() / available.sum().clamp(min=1)


def masked_cross_entropy(logits: Tensor, trend: Tensor, available: Tensor) -> Tensor:
    """Return the mean cross-entropy over the cells whose return exists.

    Args:
        logits: `(..., 2)`.
        trend: `(...)` integer classes.
        available: `(...)` Boolean.

    Returns:
        a scalar; 0, with zero gradient, if no cell is available.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    entropy = F.cross_entropy(flat, trend.reshape(-1).long(), reduction="none")
    kept = torch.where(available.reshape(-1), entropy, torch.zeros_like(entropy))
    return kept.sum() / available.sum().clamp(min=1)
