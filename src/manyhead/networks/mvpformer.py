"""MVPFormer: a decoder over segments x channels of a series whose channels may change from record to record.

'A foundation model with multi-variate parallel attention to generate neuronal activity', 2025, arXiv
2506.20354. Segments become tokens by wavelets, blocks have attention and feed-forward side by side behind one
norm; pre-training tells the next segment's token from others, fine-tuning reads the last segment.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, silu

from manyhead.errors import InputError
from manyhead.layers.lora import add_lora
from manyhead.layers.wavelet_tokens import WaveletTokens
from manyhead.mixers.base import Mixer
from manyhead.mixers.mvpa import MultivariateParallelAttention


class ParallelBlock(nn.Module):
    """`y = norm(x)`, then `x + mixer(y) + W_down (SiLU(W_gate y) * W_up y)`.

    Args:
        width: features of a token.
        mixer: over `(batch, segments, channels, width)`.
        hidden: width of the feed-forward part.
    """

    def __init__(self, width: int, mixer: Mixer, hidden: int) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(width, eps=1e-5), mixer
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out: Tensor = x + self.mixer(y) + self.down(silu(self.gate(y)) * self.up(y))
        return out


class MVPFormer(nn.Module):
    """Series of any set of channels to one vector per segment and channel.

    Args:
        segment: samples of a segment.
        width: features of a token.
        depth: blocks.
        heads, kv_heads: of the attention.
        hidden: width of the feed-forward parts.
        segments, channels: the most of each; sizes of the tables of distances, which all blocks share.
        relative: as of `MultivariateParallelAttention`; 'distance' keeps its meaning when the number of
            channels changes, 'aligned_end' is the released code.
        window, last_global, global_att, impl: likewise.
        layer_scaled: divide a block's logits by its number, counted from one.
        dropout: on tokens, attention weights and attention's output.
        mixers: other mixers, a function of the depth.

    Shape:
        input `(batch, samples, channels)`, samples a multiple of `segment`; output
        `(batch, segments, channels, width)`.

    Raises:
        InputError: if the samples do not fit, or there are more segments or channels than said.
    """

    def __init__(
        self,
        segment: int,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        *,
        segments: int = 110,
        channels: int = 128,
        relative: Literal["aligned_end", "distance"] = "distance",
        window: int = 10,
        last_global: bool = True,
        global_att: bool = True,
        impl: Literal["naive", "broadcast", "sdpa"] = "broadcast",
        layer_scaled: bool = False,
        dropout: float = 0.1,
        mixers: Callable[[int], Mixer] | None = None,
    ) -> None:
        super().__init__()
        self.segment, self.most = segment, (segments, channels)
        self.encoder = WaveletTokens(segment, width)
        nn.init.normal_(self.encoder.proj.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        if mixers is None:
            positions = nn.Parameter(0.02 * torch.randn(segments, width))
            places = nn.Parameter(0.02 * torch.randn(channels, width))

            def mixers(level: int) -> Mixer:
                return MultivariateParallelAttention(
                    width,
                    heads,
                    kv_heads,
                    positions,
                    places,
                    relative=relative,
                    window=window,
                    last_global=last_global,
                    global_att=global_att,
                    impl=impl,
                    layer_scale=level + 1.0 if layer_scaled else 1.0,
                    dropout=dropout,
                )

        self.blocks = nn.ModuleList(ParallelBlock(width, mixers(level), hidden) for level in range(depth))
        for block in self.blocks:
            assert isinstance(block, ParallelBlock)
            for part in (block.gate, block.up, block.down):
                nn.init.normal_(part.weight, std=0.02)
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def tokens(self, x: Tensor) -> Tensor:
        """Embeddings of a series' segments, `(batch, segments, channels, width)`."""
        samples, channels = x.shape[1:]
        count, rest = divmod(samples, self.segment)
        if rest or not count or count > self.most[0] or channels > self.most[1]:
            raise InputError(
                f"a series has whole segments of {self.segment} samples, up to {self.most[0]} of them and up "
                f"to {self.most[1]} channels; got {samples} samples and {channels} channels"
            )
        embedded: Tensor = self.encoder(x.unflatten(1, (count, self.segment)).transpose(2, 3))
        return embedded

    def decode(self, tokens: Tensor) -> Tensor:
        """Run the blocks over embeddings."""
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.tokens(x))


class NextSegment(nn.Module):
    """Pre-training: tell the embedding of a channel's next segment from those of others.

    Args:
        model: the decoder.
        width: features of a token.
        negatives: others that each is told from.
        temperature: divides cosine similarities.
    """

    def __init__(self, model: MVPFormer, width: int, negatives: int = 30, temperature: float = 0.1) -> None:
        super().__init__()
        self.model, self.negatives, self.temperature = model, negatives, temperature
        self.head = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Loss and share of right choices on series `(batch, samples, channels)`."""
        tokens = self.model.tokens(x)
        predicted = self.head(self.model.decode(tokens))[:, :-1]
        return contrast(predicted, tokens, self.negatives, self.temperature, generator)


def contrast(
    predicted: Tensor,
    tokens: Tensor,
    negatives: int = 30,
    temperature: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the true next embedding among uniformly drawn others, by cosine similarity.

    Others come from all samples, segments and channels of the batch, without gradient; those that equal the
    true one are left out. (The released sampler hardly ever draws from the last sample.)

    Args:
        predicted: for segments 0..T-2, `(batch, T - 1, channels, width)`.
        tokens: embeddings `(batch, T, channels, width)`.
        negatives: how many others.
        temperature: divides similarities.
        generator: of the draws.

    Returns:
        Mean loss and share of right choices.
    """
    batch, segments, channels, _ = tokens.shape
    every = tokens.detach().flatten(0, 2)
    places = torch.arange(len(every), device=tokens.device).view(batch, segments, channels)
    own = places[:, 1:].flatten()
    drawn = torch.randint(len(every) - 1, (len(own), negatives), generator=generator).to(tokens.device)
    drawn = drawn + (drawn >= own[:, None])  # any place but one's own
    true, asked = tokens[:, 1:].flatten(0, 2), predicted.flatten(0, 2)
    others = every[drawn]
    same = (others == true[:, None]).all(-1)
    far = cosine_similarity(asked[:, None], others, -1).masked_fill(same, -torch.inf)
    logits = torch.cat([cosine_similarity(asked, true, -1)[:, None], far], 1) / temperature
    target = torch.zeros(len(own), dtype=torch.long, device=tokens.device)
    return cross_entropy(logits, target), (logits.argmax(-1) == 0).float().mean()


class SeriesClassifier(nn.Module):
    """Classes of series from the mean over channels of the last segment.

    Args:
        model: the decoder, new or pre-trained.
        width: features of a token.
        classes: number of classes.
    """

    def __init__(self, model: MVPFormer, width: int, classes: int) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(batch, classes)` of series `(batch, samples, channels)`."""
        logits: Tensor = self.head(self.model(x)[:, -1].mean(1))
        return logits


def adapt(classifier: SeriesClassifier, rank: int = 8, alpha: float = 16.0) -> list[str]:
    """Freeze a classifier but for its head and low-rank terms on W_q and the values' half of W_kv.

    Returns:
        Names of the parameters that are trained now.
    """
    block = classifier.model.blocks[0]
    assert isinstance(block, ParallelBlock)
    assert isinstance(block.mixer, MultivariateParallelAttention)
    half = block.mixer.kv_proj.out_features // 2
    return add_lora(
        classifier,
        rank=rank,
        alpha=alpha,
        targets=("q_proj", "kv_proj"),
        trainable=("head",),
        rows={"kv_proj": slice(half, None)},
    )
