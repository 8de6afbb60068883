"""TIES: trim every task vector, elect one sign per weight, merge the entries that agree with it.

Yadav et al., 'TIES-Merging: Resolving Interference When Merging Models', 2023, arXiv 2306.01708,
algorithm 1; read as in the implementation that TALL-masks builds on (Wang et al., 2024,
arXiv 2405.07813): trimming is global over the whole flat vector.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.merging.vectors import total

Combine = Literal["mean", "sum", "max"]


def trim_rank(size: int, keep: float, exact: bool = False) -> int:
    """Rank (from 1) of the smallest magnitude that survives trimming to the top `keep` per cent.

    The published code keeps one entry more than int(size * keep / 100), because it takes the j-th
    smallest magnitude with j = size - int(size * keep / 100) and keeps what is not below it.

    Args:
        size: entries of the vector.
        keep: per cent of the entries to keep, above 0 and at most 100.
        exact: keep exactly int(size * keep / 100) entries (at least one) instead.

    Returns:
        The rank, 0 where everything is kept.

    Raises:
        InputError: if `keep` is not above 0 and at most 100.
    """
    if not 0 < keep <= 100:
        raise InputError(f"the share of entries to keep must be above 0 and at most 100 %, got {keep:g}")
    kept = int(size * keep / 100)
    if kept >= size:
        return 0
    return size - max(kept, 1) + 1 if exact else size - kept


def threshold(vector: Tensor, keep: float, exact: bool = False) -> float:
    """Smallest magnitude of a flat vector (P,) that survives trimming; see `trim_rank`."""
    rank = trim_rank(vector.numel(), keep, exact)
    return 0.0 if rank == 0 else float(vector.abs().kthvalue(rank).values)


def trim(vectors: Tensor, keep: float = 20.0, exact: bool = False) -> Tensor:
    """Set all but the largest `keep` per cent of every vector (tasks, P) to zero (TIES, step 1)."""
    kept = [torch.where(row.abs() >= threshold(row, keep, exact), row, 0.0) for row in vectors]
    return torch.stack(kept)


def elect(trimmed: Sequence[Tensor] | Tensor, majority: float | None = None) -> Tensor:
    """Elect one sign per weight, (P,): that of the sum over tasks (TIES, step 2).

    Args:
        trimmed: trimmed vectors (tasks, P).
        majority: sign given to weights whose sum is zero; None takes the sign of the sum of all
            elected signs, as the whole vector has it.
    """
    signs = total(trimmed).sign()
    if majority is None:
        majority = float(signs.sum().sign())
    return torch.where(signs == 0, majority, signs)


def combine(trimmed: Sequence[Tensor] | Tensor, signs: Tensor, how: Combine = "mean") -> Tensor:
    """Merge per weight the entries whose sign is the elected one, (P,) (TIES, step 3).

    Args:
        trimmed: trimmed vectors (tasks, P).
        signs: elected signs (P,).
        how: 'mean' over the agreeing entries, their 'sum', or the 'max' magnitude with the elected sign.

    Raises:
        InputError: if `how` is none of these.
    """
    if how not in get_args(Combine):
        raise InputError(f"TIES combines by one of {', '.join(get_args(Combine))}; got {how!r}")
    positive = signs > 0
    result = torch.zeros_like(trimmed[0])
    count = torch.zeros_like(trimmed[0])
    for row in trimmed:
        agrees = torch.where(positive, row > 0, row < 0)
        entry = torch.where(agrees, row, 0.0)
        if how == "max":
            result = torch.maximum(result, entry.abs())
        else:
            result += entry
            count += agrees
    if how == "max":
        return result * signs
    return result / count.clamp(min=1) if how == "mean" else result


def ties(vectors: Tensor, keep: float = 20.0, how: Combine = "mean", exact: bool = False) -> Tensor:
    """Merge task vectors (tasks, P) into one (P,) by TIES; the model is base + alpha times it."""
    trimmed = trim(vectors, keep, exact)
    return combine(trimmed, elect(trimmed), how)
