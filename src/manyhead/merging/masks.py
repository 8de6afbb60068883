"""TALL-masks and Consensus merging: which weights of a merged model a task uses.

Wang et al., 'Localizing Task Information for Improved Model Merging and Compression', 2024,
arXiv 2405.07813, equations 4 and 5 and section 5. The mask of task t marks the weights at which its
own vector outweighs what the other tasks add: `|tau_t| > lambda_t |tau - tau_t|`. The comparison is
strict, so that weights which no task touched are marked by nobody.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.merging.ties import threshold


def tall_mask(vector: Tensor, merged: Tensor, lam: float, strict: bool = True) -> Tensor:
    """Mark the weights that one task needs of a merged vector (equation 4).

    Args:
        vector: task vector tau_t, any shape.
        merged: sum of the task vectors (or their TIES sum), same shape.
        lam: threshold lambda_t at or above 0; a larger one marks fewer weights.
        strict: compare with > as the published code does; False takes the paper's >=.

    Returns:
        Boolean mask of the shape of `vector`.

    Raises:
        InputError: if `lam` is negative or the shapes differ.
    """
    if lam < 0:
        raise InputError(f"lambda must be at or above 0, got {lam:g}")
    if vector.shape != merged.shape:
        raise InputError(f"task vector {tuple(vector.shape)} and merged vector {tuple(merged.shape)} differ")
    others = lam * (merged - vector).abs()
    return vector.abs() > others if strict else vector.abs() >= others


def magnitude_mask(vector: Tensor, keep: float = 10.0, exact: bool = False) -> Tensor:
    """Mark the `keep` per cent largest magnitudes of a flat task vector (P,), the paper's baseline."""
    return vector.abs() >= threshold(vector, keep, exact)


def usage(masks: Sequence[Tensor] | Tensor) -> Tensor:
    """Count the tasks that use each weight: 0 catastrophic, 1 selfish, all of them universal."""
    return torch.stack(list(masks)).sum(0)


def consensus_mask(masks: Sequence[Tensor] | Tensor, at_least: int = 2) -> Tensor:
    """Mark the weights that at least `at_least` tasks use (equation 7).

    0 keeps every weight (plain merging), 1 drops those that nobody uses, more than the number of tasks
    drops all (the base).
    """
    return usage(masks) >= at_least


def usage_histogram(masks: Sequence[Tensor] | Tensor) -> list[int]:
    """Number of weights used by 0, 1, ..., all tasks."""
    counts = usage(masks)
    return torch.bincount(counts.reshape(-1), minlength=len(masks) + 1).tolist()


def pack(mask: Tensor) -> Tensor:
    """Pack a Boolean mask into bytes, eight weights each, the first weight in the highest bit.

    Returns:
        (ceil(P / 8),) uint8; the last byte is filled with zeros.
    """
    flat = mask.reshape(-1)
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8)
    padded[: flat.numel()] = flat
    bits = padded.reshape(-1, 8)
    packed = bits[:, 0] << 7
    for place in range(1, 8):
        packed |= bits[:, place] << (7 - place)
    return packed


def unpack(packed: Tensor, size: int) -> Tensor:
    """Return the Boolean mask (size,) that `pack` made.

    Raises:
        InputError: if the bytes do not fit a mask of `size` weights.
    """
    if packed.numel() != -(-size // 8):
        raise InputError(f"a mask of {size} weights has {-(-size // 8)} bytes, got {packed.numel()}")
    places = torch.arange(7, -1, -1, dtype=torch.uint8)
    return ((packed[:, None] >> places) & 1).reshape(-1)[:size].bool()


def storage_bits(weights: int, frozen: int, tasks: int, width: int = 32) -> dict[str, int]:
    """Bits that T models take: apart, merged into one, and as one vector with T masks (section 4.3).

    Args:
        weights: P, weights that merging touches.
        frozen: F, weights that all models share.
        tasks: T.
        width: bits of one weight.
    """
    return {
        "individual": width * (tasks * weights + frozen),
        "merged": width * (weights + frozen),
        "masks": width * (2 * weights + frozen) + tasks * weights,
    }
