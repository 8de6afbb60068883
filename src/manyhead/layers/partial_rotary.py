"""Rotary positions: queries and keys turned by angles that grow with the position.

Su et al., 'RoFormer', 2021, arXiv 2104.09864, section 3.2; the pairs are the two halves of the rotated
part, as in GPT-NeoX (Black et al., 2022, arXiv 2204.06745).
"""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, fraction: float = 1.0, base: float = 10000.0) -> Tensor:
    """Turn the first part of each head's channels.

    Args:
        x: queries or keys, `(batch, heads, tokens, head_dim)`.
        positions: `(tokens,)`, or `(batch, tokens)` where samples differ.
        fraction: part of the channels that is turned; the even number at or below it is taken.
        base: the slowest pair turns by about 1 / `base` per position.
    """
    width = int(x.shape[-1] * fraction) // 2 * 2
    rate = base ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angle = positions.to(x.device)[..., None] * rate  # (..., tokens, width / 2)
    if angle.ndim == 3:
        angle = angle[:, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)
