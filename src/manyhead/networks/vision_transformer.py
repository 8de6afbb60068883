"""The plain vision transformer: patches, a class token, learned positions, pre-norm blocks.

Dosovitskiy et al., 'An Image is Worth 16x16 Words', 2021, arXiv 2010.11929. Names and shapes of the weights
are those of timm, so that its state dicts load as they are.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from manyhead.errors import InputError


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Args:
        channels: size of a token.
        heads: number of heads, a divisor of `channels`.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., heads, tokens, head_dim) of tokens (..., tokens, channels)."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.unbind(-3)
        return query.transpose(-2, -3), key.transpose(-2, -3), value.transpose(-2, -3)

    def gather(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Output tokens (..., queries, channels)."""
        found = scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(found.transpose(-2, -3).flatten(-2))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        return self.gather(*self.project(x))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, channels: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = FeedForward(channels, int(ratio * channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each projected to a token."""

    def __init__(self, inputs: int, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.proj(image)
        return tokens.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Images to tokens, class token first.

    Args:
        image: height and width of the images.
        patch: height and width of a patch, a divisor of `image`.
        inputs: channels of the images.
        channels: size of a token.
        depth: number of blocks.
        heads: heads of a block.
        ratio: hidden size of the feed-forward over `channels`.

    Shape:
        images `(batch, inputs, image, image)`; tokens `(batch, 1 + patches, channels)`.

    Raises:
        InputError: if patches do not tile the image or heads do not divide the channels.
    """

    def __init__(
        self,
        image: int = 224,
        patch: int = 16,
        inputs: int = 3,
        channels: int = 768,
        depth: int = 12,
        heads: int = 12,
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if image % patch:
            raise InputError(f"patches of {patch} do not tile an image of {image}")
        if channels % heads:
            raise InputError(f"{heads} heads do not divide {channels} channels")
        self.channels, self.heads, self.depth = channels, heads, depth
        self.patch_embed = PatchEmbedding(inputs, channels, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image // patch) ** 2, channels))
        self.blocks = nn.ModuleList(Block(channels, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, image: Tensor) -> Tensor:
        """Tokens before the first block."""
        patches = self.patch_embed(image)
        first = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([first, patches], dim=1) + self.pos_embed

    def stream(self, image: Tensor) -> Iterator[Tensor]:
        """Tokens before each block, then after the last one, without the final norm."""
        x = self.embed(image)
        for block in self.blocks:
            yield x
            x = block(x)
        yield x

    def forward(self, image: Tensor) -> Tensor:
        """Tokens after the final norm."""
        for x in self.stream(image):
            last = x
        tokens: Tensor = self.norm(last)
        return tokens
