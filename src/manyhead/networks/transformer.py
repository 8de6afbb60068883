"""Transformers of any mixers: encoder, decoder and encoder-decoder, run at once or token by token.

Vaswani et al., 'Attention Is All You Need', 2017, arXiv 1706.03762.

- A mixer for each layer, given as a list or as a function of the depth, so that a hybrid is one line.
- Caches are values: `initial_state` makes them, `extend` takes and returns them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.mixers.base import Mixer
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.embedding import Positions, TokenEmbedding
from manyhead.networks.layer import (
    Activation,
    Arrangement,
    FeedForward,
    Layer,
    Norm,
    Remembered,
    normalization,
    remembered,
)

Mixers = Sequence[Mixer] | Callable[[int], Mixer]


class Stack(nn.Module):
    """Layers of mixers over tokens `(batch, tokens, channels)`.

    Args:
        channels: size of the last axis.
        mixers: one mixer a layer, or a function from the depth (0 first) to a mixer.
        depth: number of layers; may be left out with a list.
        cross: likewise for cross-attention; None for none.
        hidden: width of the feed-forward parts; 4 channels if left out.
        activation, norm, arrangement, dropout: as in `FeedForward` and `Layer`.

    Raises:
        InputError: if the numbers of mixers and layers differ.
    """

    def __init__(
        self,
        channels: int,
        mixers: Mixers,
        depth: int | None = None,
        *,
        cross: Mixers | None = None,
        hidden: int | None = None,
        activation: Activation = "gelu",
        norm: Norm = "layer",
        arrangement: Arrangement = "pre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        chosen = _chosen(mixers, depth, "mixers")
        crossed = [None] * len(chosen) if cross is None else _chosen(cross, len(chosen), "cross")
        self.channels = channels
        self.layers = nn.ModuleList(
            Layer(
                channels,
                mixer,
                FeedForward(channels, hidden or 4 * channels, activation),
                cross=other,
                norm=norm,
                arrangement=arrangement,
                dropout=dropout,
            )
            for mixer, other in zip(chosen, crossed, strict=True)
        )
        self.norm = nn.Identity() if arrangement == "post" else normalization(norm, channels)

    def forward(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Tensor:
        """Run all layers; `options`, such as `padding`, go to every mixer."""
        for layer in self.layers:
            x = layer(x, context, **options)
        out: Tensor = self.norm(x)
        return out

    def initial_state(self, batch: int, capacity: int = 1024) -> tuple[Any, ...]:
        """The state of every mixer before the first token, with room for `capacity` tokens.

        Raises:
            InputError: if a mixer has no recurrent form.
        """
        mixers: list[Any] = [layer.mixer for layer in self.layers]
        for mixer in mixers:
            if not (isinstance(mixer, Mixer) and mixer.recurrent):
                raise InputError(f"{type(mixer).__name__} cannot run token by token as it was built")
        return tuple(mixer.initial_state(batch, capacity=capacity) for mixer in mixers)

    def remember(self, context: Tensor) -> tuple[Tensor | Remembered, ...]:
        """What each layer's cross-attention keeps of a context, for `extend`."""
        return tuple(remembered(layer.cross, context) for layer in self.layers if isinstance(layer, Layer))

    def extend(
        self,
        x: Tensor,
        state: tuple[Any, ...],
        context: Tensor | tuple[Tensor | Remembered, ...] | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Process the next tokens `(batch, tokens, channels)`; `context` may be what `remember` returns."""
        after = []
        each = context if isinstance(context, tuple) else (context,) * len(self.layers)
        for layer, own, seen in zip(self.layers, state, each, strict=True):
            assert isinstance(layer, Layer)
            x, own = layer.extend(x, own, seen)
            after.append(own)
        return self.norm(x), tuple(after)


def _chosen(mixers: Mixers, depth: int | None, name: str) -> list[Mixer]:
    if callable(mixers):
        if depth is None or depth < 1:
            raise InputError(f"depth is at least 1 where {name} is a function of it, got {depth}")
        return [mixers(level) for level in range(depth)]
    if depth not in (None, len(mixers)):
        raise InputError(f"{len(mixers)} {name} were given for {depth} layers")
    return list(mixers)


def default_mixers(
    channels: int, heads: int, positions: Positions, *, causal: bool, dropout: float = 0.0
) -> Callable[[int], Mixer]:
    """Softmax attention at every depth, with the positions that live inside attention."""
    return lambda depth: MultiHeadAttention(
        channels,
        heads,
        causal=causal,
        rotary=1.0 if positions == "rotary" else 0.0,
        relative=128 if positions == "relative" else 0,
        dropout=dropout,
    )


class StreamState(NamedTuple):
    """States of all mixers, and how many tokens they have seen."""

    layers: tuple[Any, ...]
    length: int


class Transformer(nn.Module):
    """Tokens in, logits out: a language model where causal, else an encoder that fills in tokens.

    Args:
        vocabulary: number of tokens.
        channels: features of a token.
        depth: layers.
        heads: attention heads of the default mixers.
        mixers: other mixers, as in `Stack`; they bring rotary or relative positions themselves.
        causal: whether the default mixers are.
        positions: where position information comes from.
        longest: length that learned positions are for.
        tie: use the embedding as the output map.
        hidden, activation, norm, arrangement, dropout: as in `Stack`.

    Raises:
        InputError: if mixers are given with positions that belong inside them.
    """

    def __init__(
        self,
        vocabulary: int,
        channels: int,
        depth: int | None = None,
        heads: int = 8,
        *,
        mixers: Mixers | None = None,
        causal: bool = True,
        positions: Positions = "rotary",
        longest: int = 1024,
        tie: bool = True,
        hidden: int | None = None,
        activation: Activation = "gelu",
        norm: Norm = "layer",
        arrangement: Arrangement = "pre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if mixers is None:
            mixers = default_mixers(channels, heads, positions, causal=causal, dropout=dropout)
        elif positions in ("rotary", "relative"):
            raise InputError(f"give {positions} positions to the mixers, and positions='none' here")
        self.embedding = TokenEmbedding(vocabulary, channels, positions, longest)
        self.stack = Stack(
            channels,
            mixers,
            depth,
            hidden=hidden,
            activation=activation,
            norm=norm,
            arrangement=arrangement,
            dropout=dropout,
        )
        self.output = nn.Linear(channels, vocabulary, bias=False)
        if tie:
            self.output.weight = self.embedding.tokens.weight

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        """Logits `(batch, tokens, vocabulary)` of tokens `(batch, tokens)`."""
        logits: Tensor = self.output(self.stack(self.embedding(ids), **options))
        return logits

    def initial_state(self, batch: int, capacity: int = 1024) -> StreamState:
        """The state before the first token, with room for `capacity` tokens."""
        return StreamState(self.stack.initial_state(batch, capacity), 0)

    def extend(self, ids: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Logits of the next tokens `(batch, tokens)` of a stream, and the next state."""
        y, layers = self.stack.extend(self.embedding(ids, state.length), state.layers)
        return self.output(y), StreamState(layers, state.length + ids.shape[1])


class EncoderDecoder(nn.Module):
    """An encoder of source tokens and a causal decoder of target tokens that looks at it.

    Args:
        source_vocabulary, target_vocabulary: numbers of tokens.
        channels: features of a token.
        depth: layers of each half; may be left out where mixers are lists.
        heads: attention heads of default mixers.
        encoder, decoder, cross: other mixers, as in `Stack`.
        positions, longest, tie, hidden, activation, norm, arrangement, dropout: as in `Transformer`.
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        channels: int,
        depth: int | None = None,
        heads: int = 8,
        *,
        encoder: Mixers | None = None,
        decoder: Mixers | None = None,
        cross: Mixers | None = None,
        positions: Positions = "sinusoidal",
        longest: int = 1024,
        tie: bool = True,
        hidden: int | None = None,
        activation: Activation = "gelu",
        norm: Norm = "layer",
        arrangement: Arrangement = "pre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "hidden": hidden,
            "activation": activation,
            "norm": norm,
            "arrangement": arrangement,
            "dropout": dropout,
        }
        plain = default_mixers(channels, heads, positions, causal=False, dropout=dropout)
        causal = default_mixers(channels, heads, positions, causal=True, dropout=dropout)
        self.source = TokenEmbedding(source_vocabulary, channels, positions, longest)
        self.target = TokenEmbedding(target_vocabulary, channels, positions, longest)
        self.encoder = Stack(channels, encoder or plain, depth, **options)
        looks = cross or (lambda level: MultiHeadAttention(channels, heads, cross=True, causal=True))
        self.decoder = Stack(channels, decoder or causal, depth, cross=looks, **options)
        self.output = nn.Linear(channels, target_vocabulary, bias=False)
        if tie:
            self.output.weight = self.target.tokens.weight

    def encode(self, source: Tensor) -> Tensor:
        """Context `(batch, tokens, channels)` of source tokens `(batch, tokens)`."""
        context: Tensor = self.encoder(self.source(source))
        return context

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits `(batch, target tokens, vocabulary)`; position i has seen the source and targets up to i."""
        logits: Tensor = self.output(self.decoder(self.target(target), self.encode(source)))
        return logits

    def given(self, source: Tensor) -> "Conditioned":
        """The decoder with its source fixed, as a model that `generate` takes."""
        return Conditioned(self, self.encode(source))


class Conditioned:
    """A decoder that looks at a fixed context, whose keys and values are computed once."""

    def __init__(self, model: EncoderDecoder, context: Tensor) -> None:
        self.model, self.context = model, model.decoder.remember(context)

    def initial_state(self, batch: int, capacity: int = 1024) -> StreamState:
        return StreamState(self.model.decoder.initial_state(batch, capacity), 0)

    def extend(self, ids: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        x = self.model.target(ids, state.length)
        y, layers = self.model.decoder.extend(x, state.layers, self.context)
        return self.model.output(y), StreamState(layers, state.length + ids.shape[1])
