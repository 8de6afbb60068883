"""MaxViT: MBConv, block attention and grid attention in every block.

Tu et al., 'MaxViT: Multi-Axis Vision Transformer', 2022, arXiv 2204.01697.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.layers.convolution import ChannelsFirst, MBConv, SameConv2d, batch_norm
from manyhead.layers.residual import FeedForward
from manyhead.mixers.block import BlockAttention, GridAttention, Padding
from manyhead.networks.pyramid import Pyramid, Residual

# name: channels of the stem, of the stages, blocks per stage
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": (64, (64, 128, 256, 512), (2, 2, 5, 2)),
    "small": (64, (96, 192, 384, 768), (2, 2, 5, 2)),
    "base": (64, (96, 192, 384, 768), (2, 6, 14, 2)),
    "large": (128, (128, 256, 512, 1024), (2, 6, 14, 2)),
    "xlarge": (192, (192, 384, 768, 1536), (2, 6, 14, 2)),
}


class MaxVitBlock(nn.Module):
    """MBConv, then attention in blocks, then on the grid, each attention with a feed-forward layer.

    Args:
        channels: channels of the input.
        out_channels: channels of the output.
        stride: 1, or 2 to halve the map.
        block: side (or sides) of the attention blocks.
        grid: side (or sides) of the attention lattices.
        head_dim: channels per head.
        order: which attentions follow, and in what order; the paper's generator takes ('grid', 'block').
        conv: whether the block begins with MBConv; without it the channels and the map stay.
        squeeze: hidden channels of squeeze-excitation over `out_channels`.
        kernel: width of the depth-wise convolution.
        padding: what happens to maps that are no multiple of block or grid.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        stride: Literal[1, 2] = 1,
        *,
        block: int | Sequence[int] = 7,
        grid: int | Sequence[int] = 7,
        head_dim: int = 32,
        order: Sequence[str] = ("block", "grid"),
        conv: bool = True,
        squeeze: float = 0.25,
        kernel: int = 3,
        padding: Padding = "refuse",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not conv and (stride != 1 or channels != out_channels):
            raise InputError("a block without MBConv keeps the channels and the map")
        self.conv: nn.Module = nn.Identity()
        if conv:
            inner = MBConv(
                channels, out_channels, stride, squeeze=squeeze, kernel=kernel, drop_path=drop_path
            )
            self.conv = ChannelsFirst(inner)
        layers: list[nn.Module] = []
        for kind in order:
            if kind not in ("block", "grid"):
                raise InputError(f"order names 'block' and 'grid', got {kind!r}")
            mixer = BlockAttention if kind == "block" else GridAttention
            side = block if kind == "block" else grid
            layers.append(
                Residual(
                    mixer(out_channels, out_channels // head_dim, side, relative=True, padding=padding),
                    out_channels,
                    drop_path=drop_path,
                    feed_forward=FeedForward(out_channels, gelu="tanh"),
                )
            )
        self.attention = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(self.conv(x))
        return out


def maxvit(
    size: str = "tiny",
    classes: int = 1000,
    *,
    image_channels: int = 3,
    window: int | Sequence[int] = 7,
    lattice: int | Sequence[int] | None = None,
    survival: float = 1.0,
    stem: int | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    head_dim: int = 32,
    padding: Padding = "refuse",
    order: Sequence[str] = ("block", "grid"),
) -> Pyramid:
    """Build MaxViT.

    Args:
        size: 'tiny', 'small', 'base', 'large' or 'xlarge'.
        classes: number of logits.
        image_channels: channels of the image.
        window: side of blocks, 7 for images of 224, 12 for 384, 16 for 512.
        lattice: side of lattices, that of blocks if left out.
        survival: probability that the last block is kept; block `b` of `N` keeps `1 - (1 - p) b / N`.
        stem: channels of the stem, instead of those of `size`.
        widths: channels per stage likewise.
        depths: blocks per stage likewise.
        head_dim: channels per head.
        padding: 'refuse' maps that are no multiple of the window, or 'mask' what is added to them.
        order: attentions of a block.

    Raises:
        InputError: if the size is unknown.
    """
    if size not in SIZES:
        raise InputError(f"size is one of {', '.join(SIZES)}; got {size!r}")
    default_stem, default_widths, default_depths = SIZES[size]
    stem, widths, depths = stem or default_stem, widths or default_widths, depths or default_depths
    first = nn.Sequential(
        SameConv2d(image_channels, stem, 3, 2),
        batch_norm(stem),
        nn.GELU(approximate="tanh"),
        SameConv2d(stem, stem, 3, 1),
    )
    stages, channels, number, total = [], stem, 0, sum(depths)
    for width, depth in zip(widths, depths, strict=True):
        blocks = []
        for index in range(depth):
            blocks.append(
                MaxVitBlock(
                    channels,
                    width,
                    2 if index == 0 else 1,
                    block=window,
                    grid=window if lattice is None else lattice,
                    head_dim=head_dim,
                    order=order,
                    padding=padding,
                    drop_path=(1.0 - survival) * number / total,
                )
            )
            channels, number = width, number + 1
        stages.append(nn.Sequential(*blocks))
    head = nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, channels), nn.Tanh(), nn.Linear(channels, classes)
    )
    network = Pyramid(ChannelsFirst(first), stages, head)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
