"""Layers that run at a part of their width: the first channels of weights that are stored whole.

Yu et al., 'Slimmable Neural Networks', 2019, arXiv 1812.08928, as multi-task models use them in 'Efficient
Controllable Multi-Task Architectures', 2023, arXiv 2308.11744. How many channels come in is seen from the
input, how many go out is told at each call, and `cut` copies what a width uses into an ordinary layer.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, group_norm, linear

from manyhead.errors import InputError


def channels_at(channels: int, ratio: float) -> int:
    """`ceil(ratio * channels)`: the channels of a layer at a width ratio."""
    return math.ceil(ratio * channels - 1e-9)


class SlimmableConv2d(nn.Conv2d):
    """A convolution that uses its first inputs and outputs; ordinary or depth-wise.

    Args:
        inputs: most channels of the input.
        outputs: most channels of the output; equal to `inputs` for a depth-wise convolution.
        kernel: height and width of the kernel; borders are padded so that stride 1 keeps the size.
        stride: step of the kernel.
        depthwise: whether each channel is convolved by itself, so that input and output shrink together.

    Raises:
        InputError: if a depth-wise convolution has unequal channels.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, depthwise: bool = False
    ) -> None:
        if depthwise and inputs != outputs:
            raise InputError(f"a depth-wise convolution has equal channels, got {inputs} and {outputs}")
        super().__init__(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=inputs if depthwise else 1
        )
        self.depthwise = depthwise

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """The first `channels` outputs (all that there can be, if left out) of maps (batch, inputs, h, w)."""
        weight, bias = self.part(x.shape[1], channels)
        groups = len(weight) if self.depthwise else 1
        return conv2d(x, weight, bias, self.stride, self.padding, groups=groups)

    def part(self, inputs: int, channels: int | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a width, as views."""
        outputs = inputs if self.depthwise else self.out_channels if channels is None else channels
        weight = self.weight[:outputs] if self.depthwise else self.weight[:outputs, :inputs]
        return weight, None if self.bias is None else self.bias[:outputs]

    def cut(self, inputs: int, channels: int) -> nn.Conv2d:
        """An ordinary convolution with the weights of a width."""
        weight, bias = self.part(inputs, channels)
        groups = len(weight) if self.depthwise else 1
        small = nn.Conv2d(
            inputs,
            len(weight),
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            groups=groups,
            device=weight.device,
            dtype=weight.dtype,
        )
        _copy(small, weight, bias)
        return small


class SlimmableLinear(nn.Linear):
    """A linear map that uses its first inputs and outputs."""

    def forward(self, x: Tensor, channels: int | None = None) -> Tensor:
        """The first `channels` outputs (all, if left out) of `(..., inputs)`."""
        return linear(x, self.weight[:channels, : x.shape[-1]], self.bias[:channels])

    def cut(self, inputs: int, channels: int | None = None) -> nn.Linear:
        """An ordinary linear map with the weights of a width."""
        weight, bias = self.weight[:channels, :inputs], self.bias[:channels]
        small = nn.Linear(inputs, len(weight), device=weight.device, dtype=weight.dtype)
        _copy(small, weight, bias)
        return small


class SwitchableBatchNorm2d(nn.Module):
    """Batch normalisation with weights for each number of channels, and statistics for each way to them.

    What a convolution gives depends on how many channels it was given, so that statistics are kept for
    every pair of input and output channels.

    Args:
        inputs: the numbers of channels that may enter the convolution before.
        counts: the numbers of channels that may come out.
    """

    def __init__(self, inputs: Iterable[int], counts: Iterable[int]) -> None:
        super().__init__()
        self.counts, self.inputs = sorted(set(counts)), sorted(set(inputs))
        self.norms = nn.ModuleDict(
            {f"{a}_{b}": nn.BatchNorm2d(b, affine=False) for a in self.inputs for b in self.counts}
        )
        self.weights = nn.ParameterDict({str(count): torch.ones(count) for count in self.counts})
        self.biases = nn.ParameterDict({str(count): torch.zeros(count) for count in self.counts})

    def of(self, inputs: int, channels: int) -> nn.BatchNorm2d:
        """The statistics of a width.

        Raises:
            InputError: if there are none for those numbers of channels.
        """
        if f"{inputs}_{channels}" not in self.norms:
            raise InputError(
                f"there are statistics for {self.counts} channels out of {self.inputs}, "
                f"got {channels} out of {inputs}"
            )
        found = self.norms[f"{inputs}_{channels}"]
        assert isinstance(found, nn.BatchNorm2d)
        return found

    def forward(self, x: Tensor, inputs: int) -> Tensor:
        """Normalise (batch, channels, h, w), which came out of a convolution of `inputs` channels."""
        key = str(x.shape[1])
        y = self.of(inputs, x.shape[1])(x)
        out: Tensor = y * self.weights[key][:, None, None] + self.biases[key][:, None, None]
        return out

    def cut(self, inputs: int, channels: int) -> nn.Module:
        """An ordinary batch normalisation with the numbers of a width."""
        weight, bias = self.weights[str(channels)], self.biases[str(channels)]
        small = nn.BatchNorm2d(channels).to(weight.device, weight.dtype)
        small.load_state_dict({**self.of(inputs, channels).state_dict(), "weight": weight, "bias": bias})
        return small.train(self.training)


class SlicedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of the first channels; running statistics are those of the full width.

    The statistics of a narrower network differ: compute them anew for the copy that `cut` gives
    (`manyhead.networks.small_multitask.calibrate`).
    """

    def forward(self, x: Tensor, inputs: int | None = None) -> Tensor:
        """Normalise (batch, channels, h, w); where they came from does not matter."""
        channels = x.shape[1]
        if channels == self.num_features:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        weight, bias = self.weight[:channels], self.bias[:channels]
        if self.training:
            return batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)
        mean, variance = self.running_mean[:channels], self.running_var[:channels]
        return batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)

    def cut(self, inputs: int, channels: int) -> nn.Module:
        """An ordinary batch normalisation of a width."""
        small = nn.BatchNorm2d(channels).to(self.weight.device, self.weight.dtype)
        small.load_state_dict(
            {name: value[:channels] if value.ndim else value for name, value in self.state_dict().items()}
        )
        return small.train(self.training)


class SlicedGroupNorm(nn.Module):
    """Group normalisation of the first channels, in groups of one size or all together.

    Args:
        channels: most channels.
        size: channels of a group; None normalises all channels and positions of a sample together.
    """

    def __init__(self, channels: int, size: int | None = None) -> None:
        super().__init__()
        self.size, self.eps = size, 1e-5
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def groups(self, channels: int) -> int:
        """Number of groups of a width.

        Raises:
            InputError: if groups do not divide the channels.
        """
        if self.size is not None and channels % self.size:
            raise InputError(f"groups of {self.size} do not divide {channels} channels")
        return 1 if self.size is None else channels // self.size

    def forward(self, x: Tensor, inputs: int | None = None) -> Tensor:
        """Normalise (batch, channels, ...); where they came from does not matter."""
        channels = x.shape[1]
        return group_norm(x, self.groups(channels), self.weight[:channels], self.bias[:channels], self.eps)

    def cut(self, inputs: int, channels: int) -> nn.Module:
        """An ordinary group normalisation of a width."""
        small = nn.GroupNorm(self.groups(channels), channels, self.eps)
        small = small.to(self.weight.device, self.weight.dtype)
        _copy(small, self.weight[:channels], self.bias[:channels])
        return small


def _copy(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)  # type: ignore[operator]
        if bias is not None:
            layer.bias.copy_(bias)  # type: ignore[operator]
