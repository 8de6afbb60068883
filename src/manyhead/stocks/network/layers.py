"""What the parts of Stockformer share: linear maps in the input's precision, feed-forward, normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cast(parameter: Tensor, like: Tensor) -> Tensor:
    """A parameter in the precision of the activations: half the memory under bfloat16 autocast."""
    return parameter if parameter.dtype == like.dtype else parameter.to(like.dtype)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """`layer(x)` computed in the precision of x."""
    return F.linear(x, cast(layer.weight, x), cast(layer.bias, x))


def normalize(x: Tensor) -> Tensor:
    """Layer normalisation over the last axis without parameters, eps 1e-5, as the released code has it."""
    return F.layer_norm(x, x.shape[-1:])


class FeedForward(nn.Module):
    """Linear-ReLU-Linear, and with `residual` also the sum with the input and a normalisation.

    Args:
        inputs, hidden, outputs: sizes of the last axis.
        residual: return `LN(FF(x) + x)` instead of `FF(x)`; needs inputs == outputs.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, residual: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = linear(torch.relu_(linear(x, self.first)), self.second)
        return normalize(y.add_(x)) if self.residual else y
