"""Convolutional parts of pyramids, for maps `(batch, height, width, channels)`.

Sandler et al., 'MobileNetV2', 2018, arXiv 1801.04381 (MBConv); Hu et al., 'Squeeze-and-Excitation
Networks', 2017, arXiv 1709.01507; arranged as in Tu et al., 'MaxViT', 2022, arXiv 2204.01697.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from manyhead.errors import InputError
from manyhead.layers.residual import DropPath


class ChannelsFirst(nn.Module):
    """Run a module that wants `(batch, channels, height, width)` on a map with channels last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.movedim(-1, 1))
        return out.movedim(1, -1)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's 'SAME' padding: outputs `ceil(size / stride)`, odd padding at the end."""

    def forward(self, x: Tensor) -> Tensor:
        widths: list[int] = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            widths += [missing // 2, missing - missing // 2]
        return super().forward(pad(x, widths) if any(widths) else x)


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their global means.

    Args:
        channels: channels of the map.
        hidden: channels between the two linear maps.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.SiLU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-excitation and normalisation first.

    Args:
        channels: channels of the input.
        out_channels: channels of the output.
        stride: 1 or 2, taken in the depth-wise convolution; the shortcut is average-pooled.
        expansion: inner channels over `out_channels`.
        squeeze: hidden channels of the gate over `out_channels`.
        kernel: width of the depth-wise convolution.
        drop_path: rate of stochastic depth.

    Shape:
        input `(batch, channels, height, width)`, output `(batch, out_channels, ...)` of half the size
        at stride 2.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        stride: Literal[1, 2] = 1,
        *,
        expansion: float = 4.0,
        squeeze: float = 0.25,
        kernel: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise InputError(f"stride is 1 or 2, got {stride}")
        inner = int(out_channels * expansion)
        self.stride = stride
        self.expand = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        self.pre_norm = batch_norm(channels)
        self.conv1_1x1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = batch_norm(inner)
        self.conv2_kxk = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.norm2 = batch_norm(inner)
        self.se = SqueezeExcite(inner, max(1, int(squeeze * out_channels)))
        self.conv3_1x1 = nn.Conv2d(inner, out_channels, 1)
        self.act = nn.GELU(approximate="tanh")
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        short = avg_pool2d(x, 2, ceil_mode=True) if self.stride == 2 else x
        y = self.act(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        y = self.conv3_1x1(self.se(self.act(self.norm2(self.conv2_kxk(y)))))
        out: Tensor = self.expand(short) + self.drop_path(y)
        return out


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with the constants of MaxViT (momentum 0.99 in TensorFlow's sense)."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
