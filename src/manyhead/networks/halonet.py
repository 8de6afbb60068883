"""HaloNet: a ResNet whose 3x3 convolutions are halo attention.

Vaswani et al., 'Scaling Local Self-Attention for Parameter Efficient Visual Backbones', 2021, arXiv
2103.12731, table of configurations.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import relu

from manyhead.errors import InputError
from manyhead.layers.convolution import ChannelsFirst
from manyhead.mixers.halo import HaloAttention
from manyhead.networks.pyramid import Pyramid


class Configuration(NamedTuple):
    """One row of the paper's table."""

    block: int
    halo: int
    value: float  # width of the attention's output over the stage's
    bottleneck: float  # width of the block's output over the stage's
    third: int  # blocks of the third stage
    image: int
    final: int | None  # channels of a last 1x1 convolution


SIZES: dict[str, Configuration] = {
    "h0": Configuration(8, 3, 1.0, 0.5, 7, 256, None),
    "h1": Configuration(8, 3, 1.0, 1.0, 10, 256, None),
    "h2": Configuration(8, 3, 1.0, 1.25, 11, 256, None),
    "h3": Configuration(10, 3, 1.0, 1.5, 12, 320, 1024),
    "h4": Configuration(12, 2, 1.0, 3.0, 12, 384, 1280),
    "h5": Configuration(14, 2, 2.5, 2.0, 23, 448, 1536),
    "h6": Configuration(8, 4, 3.0, 2.75, 24, 512, 1536),
    "h7": Configuration(10, 3, 4.0, 3.5, 26, 600, 2048),
}
HEADS = (4, 8, 8, 8)


class HaloBlock(nn.Module):
    """Bottleneck: 1x1, halo attention (or a 3x3 convolution), 1x1, with a shortcut.

    Args:
        channels: channels of the input.
        width: channels between.
        value: channels of the attention's output.
        out_channels: channels of the output.
        heads: heads of the attention.
        stride: 1, or 2 to halve the map.
        block: side of the query blocks, or None for a 3x3 convolution.
        halo: halo of the windows.
        head_dim: channels of queries and keys per head.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        value: int,
        out_channels: int,
        heads: int,
        stride: int,
        block: int | None,
        halo: int,
        head_dim: int,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.attention: nn.Module
        if block is None:
            self.attention = nn.Conv2d(width, value, 3, stride, 1, bias=False)
        else:
            halo_attention = HaloAttention(
                width,
                heads,
                block,
                halo,
                head_dim=head_dim,
                out_channels=value,
                stride=2 if stride == 2 else 1,
            )
            self.attention = _ChannelsLast(halo_attention)
        self.norm2 = nn.BatchNorm2d(value)
        self.widen = nn.Conv2d(value, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.norm1(self.reduce(x)))
        y = relu(self.norm2(self.attention(y)))
        return relu(self.norm3(self.widen(y)) + self.shortcut(x))


class _ChannelsLast(nn.Module):
    """Run a mixer of `(batch, height, width, channels)` on `(batch, channels, height, width)`."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mixer(x.movedim(1, -1)).movedim(-1, 1)
        return out


def halonet(
    size: str = "h0",
    classes: int = 1000,
    *,
    image_channels: int = 3,
    head_dim: int | None = None,
    convolutions: int = 0,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    depths: tuple[int, ...] | None = None,
    heads: tuple[int, ...] = HEADS,
    block: int | None = None,
    halo: int | None = None,
    small_images: bool = False,
) -> Pyramid:
    """Build HaloNet.

    Args:
        size: 'h0' to 'h7'.
        classes: number of logits.
        image_channels: channels of the image.
        head_dim: channels of queries and keys per head; the stage's width over its heads if left out,
            which gives the paper's parameter counts.
        convolutions: stages, from the first, that keep 3x3 convolutions (the paper's hybrids).
        widths: base width per stage.
        depths: blocks per stage, instead of those of `size`.
        heads: heads per stage.
        block: side of query blocks, instead of that of `size`.
        halo: halo of windows likewise.
        small_images: a 3x3 stem without pooling, for images of about 32 pixels.

    Raises:
        InputError: if the size is unknown.
    """
    if size not in SIZES:
        raise InputError(f"size is one of {', '.join(SIZES)}; got {size!r}")
    row = SIZES[size]
    depths = depths or (3, 3, row.third, 3)
    channels = widths[0]
    stem: list[nn.Module] = [
        nn.Conv2d(image_channels, channels, 7, 2, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    if small_images:
        stem = [nn.Conv2d(image_channels, channels, 3, 1, 1, bias=False), *stem[1:3]]
    stages: list[nn.Module] = []
    for stage, (width, depth, count) in enumerate(zip(widths, depths, heads, strict=True)):
        out_channels, blocks = int(width * row.bottleneck), []
        for index in range(depth):
            blocks.append(
                HaloBlock(
                    channels,
                    width,
                    int(width * row.value),
                    out_channels,
                    count,
                    2 if stage > 0 and index == 0 else 1,
                    None if stage < convolutions else block or row.block,
                    row.halo if halo is None else halo,
                    head_dim or width // count,
                )
            )
            channels = out_channels
        stages.append(ChannelsFirst(nn.Sequential(*blocks)))
    if row.final is not None:
        last = nn.Sequential(
            nn.Conv2d(channels, row.final, 1, bias=False), nn.BatchNorm2d(row.final), nn.ReLU()
        )
        stages.append(ChannelsFirst(last))
        channels = row.final
    return Pyramid(ChannelsFirst(nn.Sequential(*stem)), stages, nn.Linear(channels, classes))
