"""Rotary positions of whole heads, with position interpolation.

Su et al., 'RoFormer', 2021, arXiv 2104.09864, section 3.2; positions divided by a factor as in Chen et
al., 'Position Interpolation', 2023, arXiv 2306.15595.
"""

import math

from torch import Tensor

from manyhead.errors import InputError
from manyhead.layers.partial_rotary import rotate


def rotary(x: Tensor, positions: Tensor, base: float = 10000.0, factor: float = 1.0) -> Tensor:
    """Turn every head's channels, the pairs being its two halves.

    Args:
        x: `(..., tokens, head_dim)`.
        positions: `(tokens,)`.
        base: the slowest pair turns by about 1 / `base` per position.
        factor: divides the positions.
    """
    return rotate(x, positions / factor, 1.0, base)


def interpolation_factor(target: int, trained: int) -> float:
    """What positions are divided by, so that `target` tokens lie within the `trained` ones.

    Raises:
        InputError: if a length is below one.
    """
    if target < 1 or trained < 1:
        raise InputError(f"lengths are at least 1, got target {target} and trained {trained}")
    return float(max(1, math.ceil(target / trained)))
