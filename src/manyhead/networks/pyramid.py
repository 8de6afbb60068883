"""Pyramids: stages of blocks at falling resolution, with stems, down-sampling and stochastic depth.

Maps are `(batch, height, width, channels)` between stages; images enter as `(batch, channels, height,
width)`. HaloNet, MaxViT and DaViT are configurations in the files of their names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from manyhead.layers.residual import DropPath, FeedForward
from manyhead.mixers.base import Mixer


class Residual(nn.Module):
    """A mixer and a feed-forward layer, each normalised before and added to its input.

    Args:
        mixer: maps tokens to tokens.
        channels: size of the last axis.
        ratio: hidden channels of the feed-forward layer over `channels`.
        drop_path: rate of stochastic depth of both branches.
        feed_forward: another feed-forward layer.
    """

    def __init__(
        self,
        mixer: Mixer,
        channels: int,
        ratio: float = 4.0,
        drop_path: float = 0.0,
        feed_forward: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = mixer
        self.mlp = FeedForward(channels, ratio) if feed_forward is None else feed_forward
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class PatchEmbedding(nn.Module):
    """Cut a map into patches by a strided convolution, with a layer norm before or after it.

    Args:
        channels: channels of the input.
        out_channels: channels of the output.
        size: width of the convolution.
        stride: its stride.
        padding: its padding.
        norm_first: whether the norm stands before the convolution.
        whole: whether maps are first padded right and below to multiples of the stride.

    Shape:
        input `(batch, height, width, channels)`, output `(batch, ..., out_channels)`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: int,
        stride: int,
        padding: int = 0,
        *,
        norm_first: bool = False,
        whole: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first, self.stride, self.whole = norm_first, stride, whole
        self.proj = nn.Conv2d(channels, out_channels, size, stride, padding)
        self.norm = nn.LayerNorm(channels if norm_first else out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.norm(x) if self.norm_first else x).movedim(-1, 1)
        if self.whole:
            x = pad(x, [0, -x.shape[-1] % self.stride, 0, -x.shape[-2] % self.stride])
        x = self.proj(x).movedim(1, -1)
        return x if self.norm_first else torch.as_tensor(self.norm(x))


class Pyramid(nn.Module):
    """A stem, stages and a classifier on the mean of the last map.

    Args:
        stem: maps `(batch, height, width, channels)` of the image to the first map.
        stages: each maps a map to the next one, usually of half the resolution.
        head: maps the mean `(batch, channels)` of the last map to logits.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head

    def features(self, image: Tensor) -> list[Tensor]:
        """Maps of all stages, `(batch, height, width, channels)` each."""
        x = self.stem(image.movedim(1, -1))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(batch, classes)` of images `(batch, channels, height, width)`."""
        logits: Tensor = self.head(self.features(image)[-1].mean((1, 2)))
        return logits


def parameters(network: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
