"""What the parts of Stockformer share: affine maps, normalisation, feed-forward, and their gradients.

The blocks of an encoder layer compute their gradients themselves, from these functions: gradients are then
summed inside matrix products, buffers are reused in place, and no activation is kept twice. The functions
take rows, `(tokens, channels)`.
"""

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


def parameters(*layers: nn.Linear, like: Tensor) -> list[Tensor]:
    """Weight and bias of each layer in turn, in the precision of `like`."""
    return [cast(tensor, like) for layer in layers for tensor in (layer.weight, layer.bias)]


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W' + b."""
    return torch.addmm(bias, x, weight.t())


def affine_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias of `affine`; that of x is `grad @ weight`."""
    return grad.t() @ x, grad.sum(0)


def norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """`normalize(x)` and the reciprocal standard deviations `(tokens, 1)`, all that its gradient needs."""
    y, _, scale = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return y, scale


def norm_backward(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Gradient of x from the output: scale * (g - mean(g) - y * mean(g * y)), in a new tensor."""
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    backward = torch.ops.aten.native_layer_norm_backward
    flow: Tensor = backward(grad, y, y.shape[-1:], zero, one, None, None, [True, False, False])[0]
    return flow.mul_(scale)


def relu_backward_(grad: Tensor, y: Tensor) -> Tensor:
    """Zero `grad` in place where the output y of a ReLU is zero."""
    out: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)
    return out


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
