"""Rotary positions: queries and keys turned by angles that grow with the position.

Su et al., 'RoFormer', 2021, arXiv 2104.09864, section 3.2; the pairs are the two halves of the rotated
part, as in GPT-NeoX (Black et al., 2022, arXiv 2204.06745). Positions may be divided by a factor as in Chen
et al., 'Position Interpolation', 2023, arXiv 2306.15595.
"""

import math

import torch
from torch import Tensor

from manyhead.errors import InputError


def rotate(
    x: Tensor, positions: Tensor, fraction: float = 1.0, base: float = 10000.0, factor: float = 1.0
) -> Tensor:
    """Turn the first part of each head's channels.

    Args:
        x: queries or keys, `(..., tokens, head_dim)`.
        positions: `(tokens,)`, or `(batch, tokens)` where samples differ and `x` has one axis of heads.
        fraction: part of the channels that is turned; the even number at or below it is taken.
        base: the slowest pair turns by about 1 / `base` per position.
        factor: divides the positions.
    """
    width = int(x.shape[-1] * fraction) // 2 * 2
    rate = base ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angle = (positions.to(x.device) / factor)[..., None] * rate  # (..., tokens, width / 2)
    if angle.ndim == 3:
        angle = angle[:, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def interpolation_factor(target: int, trained: int) -> float:
    """What positions are divided by, so that `target` tokens lie within the `trained` ones.

    Raises:
        InputError: if a length is below one.
    """
    if target < 1 or trained < 1:
        raise InputError(f"lengths are at least 1, got target {target} and trained {trained}")
    return float(max(1, math.ceil(target / trained)))
