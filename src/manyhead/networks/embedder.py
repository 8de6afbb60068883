"""From the tokens of a block to one vector, the first part of a Block Transformer.

Ho et al., 'Block Transformer: Global-to-Local Language Modeling for Fast Inference', 2024, arXiv
2406.02657, section 2.2.
"""

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.transformer import Stack


class LookupEmbedder(nn.Module):
    """Concatenate the embeddings of a block's tokens, each channels / block_length wide.

    Args:
        vocabulary: number of tokens.
        block_length: tokens of a block; a divisor of `channels`.
        channels: size of the result.
    """

    def __init__(self, vocabulary: int, block_length: int, channels: int) -> None:
        super().__init__()
        if channels % block_length:
            raise InputError(f"block_length must divide channels, got {block_length} and {channels}")
        self.embeddings = nn.Embedding(vocabulary, channels // block_length)
        nn.init.normal_(self.embeddings.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """`(..., block_length)` to `(..., channels)`."""
        vectors: Tensor = self.embeddings(ids)
        return vectors.flatten(-2)


class ProjectionEmbedder(nn.Module):
    """Map the concatenated embeddings of a block by one linear map.

    Args:
        vocabulary, block_length, channels: as in `LookupEmbedder`.
        width: size of a token's embedding; `channels` if left out.
    """

    def __init__(self, vocabulary: int, block_length: int, channels: int, width: int | None = None) -> None:
        super().__init__()
        width = width or channels
        self.embeddings = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.projection = nn.Linear(width * block_length, channels)
        nn.init.normal_(self.projection.weight, std=(width * block_length) ** -0.5)
        nn.init.zeros_(self.projection.bias)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.projection(self.embeddings(ids).flatten(-2))
        return out


class EncoderEmbedder(nn.Module):
    """Read a block by a small encoder and concatenate what its CLS tokens gathered.

    Args:
        vocabulary, block_length, channels: as in `LookupEmbedder`.
        depth, heads: of the encoder.
        summaries: CLS tokens; a divisor of `channels`, which gives the encoder's width.
    """

    def __init__(
        self,
        vocabulary: int,
        block_length: int,
        channels: int,
        depth: int = 3,
        heads: int = 4,
        summaries: int = 1,
    ) -> None:
        super().__init__()
        if channels % summaries:
            raise InputError(f"summaries must divide channels, got {summaries} and {channels}")
        width = channels // summaries
        self.embeddings = nn.Embedding(vocabulary, width)
        self.summaries = nn.Parameter(torch.randn(summaries, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(summaries + block_length, width) * 0.02)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.encoder = Stack(width, lambda level: MultiHeadAttention(width, heads), depth, arrangement="post")

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.embeddings(ids.flatten(0, -2))
        x = torch.cat([self.summaries.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        summary: Tensor = self.encoder(x)[:, : len(self.summaries)]
        return summary.reshape(*ids.shape[:-1], -1)
