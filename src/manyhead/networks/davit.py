"""DaViT: window attention over tokens alternating with attention over groups of channels.

Ding et al., 'DaViT: Dual Attention Vision Transformers', 2022, arXiv 2204.03645.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.layers.residual import DropPath, FeedForward
from manyhead.mixers.base import Mixer
from manyhead.mixers.block import BlockAttention
from manyhead.mixers.channel import ChannelGroupAttention
from manyhead.networks.pyramid import PatchEmbedding, Pyramid

# name: channels, heads (and groups) and dual blocks of every stage
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((96, 192, 384, 768), (3, 6, 12, 24), (1, 1, 3, 1)),
    "small": ((96, 192, 384, 768), (3, 6, 12, 24), (1, 1, 9, 1)),
    "base": ((128, 256, 512, 1024), (4, 8, 16, 32), (1, 1, 9, 1)),
    "large": ((192, 384, 768, 1536), (6, 12, 24, 48), (1, 1, 9, 1)),
}


class PositionConvolution(nn.Module):
    """Depth-wise 3x3 convolution added to its input, which tells tokens where they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        along: Tensor = self.proj(x.movedim(-1, 1))
        return x + along.movedim(1, -1)


class DualBlock(nn.Module):
    """Half a dual block: positions, a mixer, positions, a feed-forward layer.

    Args:
        mixer: window attention or channel group attention.
        channels: size of the last axis.
        ratio: hidden channels of the feed-forward layer over `channels`.
        positions: whether the two position convolutions are there.
        drop_path: rate of stochastic depth.

    Shape:
        input and output `(batch, height, width, channels)`.
    """

    def __init__(
        self,
        mixer: Mixer,
        channels: int,
        ratio: float = 4.0,
        *,
        positions: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.cpe = nn.ModuleList(
            PositionConvolution(channels) if positions else nn.Identity() for _ in range(2)
        )
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = mixer
        self.mlp = FeedForward(channels, ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe[0](x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = self.cpe[1](x)
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


def davit(
    size: str = "tiny",
    classes: int = 1000,
    *,
    image_channels: int = 3,
    window: int = 7,
    patch: int = 4,
    ratio: float = 4.0,
    drop_path: float = 0.0,
    overlapped: bool = False,
    attention: Sequence[Literal["spatial", "channel"]] = ("spatial", "channel"),
    naming: Literal["code", "paper"] = "code",
    scale: Literal["channels", "tokens"] = "channels",
    widths: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
) -> Pyramid:
    """Build DaViT.

    Args:
        size: 'tiny', 'small', 'base' or 'large'.
        classes: number of logits.
        image_channels: channels of the image.
        window: side of the attention windows.
        patch: stride of the stem, whose convolution is 7 wide.
        ratio: hidden channels of feed-forward layers over their channels.
        drop_path: rate of stochastic depth of the last block; it rises linearly from 0.
        overlapped: whether down-sampling convolutions are 3 wide instead of 2.
        attention: kinds of attention in a dual block, in order.
        naming: of the channel attention's weights.
        scale: of the channel attention.
        widths: channels per stage, instead of those of `size`.
        heads: heads and groups per stage likewise.
        depths: dual blocks per stage likewise.

    Raises:
        InputError: if the size or a kind of attention is unknown.
    """
    if size not in SIZES:
        raise InputError(f"size is one of {', '.join(SIZES)}; got {size!r}")
    if not attention or not set(attention) <= {"spatial", "channel"}:
        raise InputError(f"attention names 'spatial' and 'channel', got {tuple(attention)}")
    default_widths, default_heads, default_depths = SIZES[size]
    widths, heads, depths = widths or default_widths, heads or default_heads, depths or default_depths
    stages: list[nn.Module] = []
    channels, number = image_channels, 0
    last = max(1, sum(depths) * len(attention) - 1)
    for index, (width, count, depth) in enumerate(zip(widths, heads, depths, strict=True)):
        if index == 0:
            down = PatchEmbedding(channels, width, 7, patch, 3)
        elif overlapped:
            down = PatchEmbedding(channels, width, 3, 2, 1, norm_first=True)
        else:
            down = PatchEmbedding(channels, width, 2, 2, norm_first=True)
        blocks: list[nn.Module] = []
        for _ in range(depth):
            for kind in attention:
                mixer: Mixer
                if kind == "spatial":
                    mixer = BlockAttention(width, count, window, padding="attend")
                else:
                    mixer = ChannelGroupAttention(width, count, naming=naming, scale=scale)
                rate = drop_path * number / last
                blocks.append(DualBlock(mixer, width, ratio, drop_path=rate))
                number += 1
        stages.append(nn.Sequential(down, *blocks))
        channels = width
    head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, classes))
    network = Pyramid(nn.Identity(), stages, head)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
