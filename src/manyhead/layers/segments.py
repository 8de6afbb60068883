"""Means of consecutive segments of a sequence, the landmarks of several attentions.

Xiong et al., 'Nystromformer', 2021, arXiv 2102.03902, section 3.2.
"""

import torch
from torch import Tensor


def segment_means(x: Tensor, count: int) -> Tensor:
    """Average `count` consecutive segments of `(..., tokens, channels)`; the longer ones come last."""
    tokens = x.shape[-2]
    short, longer = divmod(tokens, count)
    sizes = [short] * (count - longer) + [short + 1] * longer
    return torch.stack([part.mean(-2) for part in torch.split(x, sizes, -2)], -2)
