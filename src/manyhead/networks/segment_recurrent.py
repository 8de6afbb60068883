"""A language model that reads a text in segments and remembers the layers' inputs of those before.

Dai et al., 'Transformer-XL', 2019, arXiv 1901.02860, with the attention of Sugiharto et al., 'RCMHA',
2023, arXiv 2308.03429: memory and segment share a layer norm, the memory of a layer is its detached input.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.mixers.rcmha import RelativeConvolutionalAttention


class Memory(NamedTuple):
    """What a layer keeps of earlier segments.

    Args:
        inputs: its last inputs, `(batch, up to mem_len, channels)`.
        queries: its last two projected queries, used if the model carries them.
    """

    inputs: Tensor
    queries: Tensor


class SquaredReLU(nn.Module):
    """`max(x, 0) ** 2`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


class SegmentRecurrentLM(nn.Module):
    """Pre-norm decoder with memory, without positions beside those of its attention.

    Args:
        vocabulary: number of tokens.
        channels: features of a token.
        heads: attention heads.
        layers: number of layers.
        hidden: width of the feed-forward parts.
        mem_len: tokens of memory of every layer.
        segment: longest segment.
        carry_queries: let the convolution of queries run on from the segment before.
        activation: 'relu' or 'relu2', its square.
        dropout: of attention, feed-forward and their results.
        convolution, relative: as of `RelativeConvolutionalAttention`.
        sinusoidal: add sinusoidal positions to the embedding, for comparisons.

    Raises:
        InputError: if the activation is unknown.
    """

    def __init__(
        self,
        vocabulary: int,
        channels: int,
        heads: int,
        layers: int,
        hidden: int,
        *,
        mem_len: int = 128,
        segment: int = 128,
        carry_queries: bool = False,
        activation: Literal["relu", "relu2"] = "relu",
        dropout: float = 0.0,
        convolution: bool = True,
        relative: bool = True,
        sinusoidal: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ("relu", "relu2"):
            raise InputError(f"activation is 'relu' or 'relu2', got {activation!r}")
        self.mem_len, self.carry_queries, self.sinusoidal = mem_len, carry_queries, sinusoidal
        self.embedding = nn.Embedding(vocabulary, channels)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers))
        self.attentions = nn.ModuleList(
            RelativeConvolutionalAttention(
                channels,
                heads,
                max_length=mem_len + segment,
                convolution=convolution,
                relative=relative,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(channels),
                nn.Linear(channels, hidden),
                nn.ReLU() if activation == "relu" else SquaredReLU(),
                nn.Linear(hidden, channels),
                nn.Dropout(dropout),
            )
            for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, vocabulary))

    def forward(self, ids: Tensor, memory: list[Memory] | None = None) -> tuple[Tensor, list[Memory]]:
        """Logits `(batch, tokens, vocabulary)` of what follows `ids`, and memory for the next segment."""
        x = self.embedding(ids)
        if self.sinusoidal:
            x = x + 0.1 * sinusoids(ids.shape[1], x.shape[-1]).to(x)
        new = []
        for n, (norm, attention, feed_forward) in enumerate(
            zip(self.norms, self.attentions, self.feed_forwards, strict=True)
        ):
            assert isinstance(attention, RelativeConvolutionalAttention)
            earlier = memory[n] if memory else None
            kept = x if earlier is None else torch.cat([earlier.inputs, x], 1)
            mixed, queries = attention.segment(
                norm(x),
                None if earlier is None else norm(earlier.inputs),
                earlier.queries if earlier is not None and self.carry_queries else None,
            )
            new.append(Memory(kept[:, max(0, kept.shape[1] - self.mem_len) :].detach(), queries.detach()))
            x = x + self.dropout(mixed)
            x = x + feed_forward(x)
        return self.head(x), new


def sinusoids(tokens: int, channels: int) -> Tensor:
    """Sinusoidal positions `(tokens, channels)` (Vaswani et al., 2017, arXiv 1706.03762, section 3.5)."""
    rate = 10000.0 ** (-torch.arange(0, channels, 2) / channels)
    angle = torch.arange(tokens)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :channels]
