"""A language model whose layers may take their attention maps from a fixed sequence or the raw embedding.

Xue et al., 'Deconstructing Attention', 2025, arXiv 2510.11602. A guide sequence runs through the same layers
as one more row of the batch; layers that take fixed maps form them from that row for all rows. Layers of any
mixers stand beside them, so that the paper's hybrids are one line: `hybrid(variant, standard, "even", 24)`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.mixers.base import Mixer
from manyhead.mixers.foreign_maps import FixedMaps, ForeignMapAttention
from manyhead.networks.layer import Layer
from manyhead.networks.transformer import Mixers, Transformer

Layout = Literal["uniform", "even", "odd", "top", "bottom", "middle", "quarter", "first", "last", "bilateral"]


def standard_layers(layout: Layout, layers: int) -> list[bool]:
    """Which layers keep standard attention.

    Args:
        layout: where they stand: none ('uniform'), the even or odd ones counted from one, the first half
            ('top'), the second half ('bottom'), the outer quarters ('middle', where the variant is), every
            fourth ('quarter'), the first, the last, or both ('bilateral').
        layers: number of layers.

    Raises:
        InputError: if the layout is unknown.
    """
    rules: dict[str, Callable[[int], bool]] = {
        "uniform": lambda n: False,
        "even": lambda n: n % 2 == 0,
        "odd": lambda n: n % 2 == 1,
        "top": lambda n: n <= layers // 2,
        "bottom": lambda n: n > layers // 2,
        "middle": lambda n: n <= layers // 4 or n > layers - layers // 4,
        "quarter": lambda n: n % 4 == 0,
        "first": lambda n: n == 1,
        "last": lambda n: n == layers,
        "bilateral": lambda n: n in (1, layers),
    }
    if layout not in rules:
        raise InputError(f"layout is one of {', '.join(rules)}; got {layout!r}")
    return [rules[layout](n) for n in range(1, layers + 1)]


def hybrid(
    variant: Callable[[], Mixer], standard: Callable[[], Mixer], layout: Layout, layers: int
) -> list[Mixer]:
    """Mixers of a stack in one of the paper's layouts."""
    return [standard() if kept else variant() for kept in standard_layers(layout, layers)]


class ForeignMapState(NamedTuple):
    """States of all mixers, and how many tokens they have seen."""

    layers: tuple[Any, ...]
    length: int


class ForeignMapTransformer(Transformer):
    """A language model with mixers of which some take their maps from elsewhere.

    Args:
        vocabulary, channels, depth: as of `Transformer`.
        mixers: one a layer, or a function of the depth.
        guide: what runs beside the text for mixers with `source='guide'`: fixed vectors
            `(longest, channels)`, drawn once and never trained ('rndembqk'), or token ids `(longest,)` that
            pass the trained embedding ('fixedseqqk').
        norm_static: apply a layer's own first norm to the embedding that gives it its map.
        options: as of `Transformer`; RMS norms and SwiGLU if left out.

    Raises:
        InputError: if mixers need a guide and there is none.
    """

    guide: Tensor | None

    def __init__(
        self,
        vocabulary: int,
        channels: int,
        depth: int | None = None,
        *,
        mixers: Mixers,
        guide: Tensor | None = None,
        norm_static: bool = True,
        **options: Any,
    ) -> None:
        options = {"norm": "rms", "activation": "swiglu", "positions": "none"} | options
        super().__init__(vocabulary, channels, depth, mixers=mixers, **options)
        self.norm_static = norm_static
        self.register_buffer("guide", guide)
        self.guided = any(source(layer.mixer) == "guide" for layer in self._layers())
        if self.guided and guide is None:
            raise InputError("mixers with source='guide' need a guide: vectors or token ids")

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.stack.layers if isinstance(layer, Layer)]

    def guide_embedding(self, tokens: int) -> Tensor:
        """The guide's first tokens before the first layer, `(1, tokens, channels)`.

        Raises:
            InputError: if the guide is shorter.
        """
        assert self.guide is not None
        if tokens > len(self.guide):
            raise InputError(f"the guide has {len(self.guide)} tokens, the text {tokens}")
        part = self.guide[:tokens]
        return part[None] if part.is_floating_point() else self.embedding(part[None])

    def forward(self, ids: Tensor, *, skip: Callable[[Mixer], bool] | None = None, **options: Any) -> Tensor:
        """Logits `(batch, tokens, vocabulary)`.

        Args:
            ids: tokens `(batch, tokens)`.
            skip: layers to leave out as a whole, by their mixer.
            options: for mixers that take their map from themselves.
        """
        e = self.embedding(ids)
        if self.guided:
            e = torch.cat([e, self.guide_embedding(ids.shape[1])])
        x = e
        for layer in self._layers():
            if skip is not None and skip(layer.mixer):
                continue
            x = layer(x, **(self._options(layer, e) or options))
        logits: Tensor = self.output(self.stack.norm(x[: len(ids)]))
        return logits

    def _options(self, layer: Layer, e: Tensor) -> dict[str, Any]:
        where = source(layer.mixer)
        if where == "guide":
            return {"guide": -1}
        if where == "embedding":
            return {"maps": self._static(layer, e)}
        return {}

    def _static(self, layer: Layer, e: Tensor) -> Tensor:
        return layer.norm_mixer(e) if self.norm_static else e

    @torch.no_grad()
    def fixed_maps(self, tokens: int) -> list[FixedMaps | None]:
        """Queries and keys of the guide in every layer that takes its map from it, None in others."""
        found: list[FixedMaps | None] = []
        x = self.guide_embedding(tokens) if self.guided else self.output.weight.new_zeros(1, tokens, 0)
        e = x
        for layer in self._layers():
            mixer, maps = layer.mixer, None
            if source(mixer) == "guide":
                assert isinstance(mixer, ForeignMapAttention)
                maps = FixedMaps(*(part[0] for part in mixer.map_parts(layer.norm_mixer(x))))
            found.append(maps)
            if self.guided:
                x = layer(x, **self._options(layer, e))
        return found

    def forward_with(self, ids: Tensor, weights: list[Tensor | None]) -> Tensor:
        """Logits from cached maps: `weights` as `cached_weights` returns them; no guide runs beside."""
        e = x = self.embedding(ids)
        length = ids.shape[1]
        for layer, own in zip(self._layers(), weights, strict=True):
            if own is None:
                x = layer(x, **self._options(layer, e))
            else:
                x = layer(x, weights=own[:, :length, :length])
        logits: Tensor = self.output(self.stack.norm(x))
        return logits

    def cached_weights(self, tokens: int) -> list[Tensor | None]:
        """Maps `(heads, tokens, tokens)` of the layers whose map no text changes, None for others."""
        found: list[Tensor | None] = []
        for layer, maps in zip(self._layers(), self.fixed_maps(tokens), strict=True):
            if maps is None:
                found.append(None)
                continue
            assert isinstance(layer.mixer, ForeignMapAttention)
            logits = maps.queries @ maps.keys.mT * layer.mixer.head_dim**-0.5
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=logits.device).triu(1)
            found.append(logits.masked_fill(later, -torch.inf).softmax(-1))
        return found

    def initial_state(self, batch: int, capacity: int = 1024) -> ForeignMapState:  # type: ignore[override]
        """The state before the first token; fixed maps are computed here, once for `capacity` tokens."""
        states = []
        for layer, maps in zip(self._layers(), self.fixed_maps(capacity), strict=True):
            mixer = layer.mixer
            if maps is None:
                states.append(mixer.initial_state(batch, capacity=capacity))
            else:
                assert isinstance(mixer, ForeignMapAttention)
                states.append(mixer.fixed_state(batch, capacity, maps))
        return ForeignMapState(tuple(states), 0)

    def extend(  # type: ignore[override]
        self, ids: Tensor, state: ForeignMapState
    ) -> tuple[Tensor, ForeignMapState]:
        """Logits of the next tokens `(batch, tokens)` of a stream, and the next state."""
        layers, logits = state.layers, []
        for column in ids.unbind(1):
            e = x = self.embedding(column[:, None])
            after = []
            for layer, own in zip(self._layers(), layers, strict=True):
                x, own = self._step(layer, x, e, own)
                after.append(own)
            layers = tuple(after)
            logits.append(self.output(self.stack.norm(x)))
        return torch.cat(logits, 1), ForeignMapState(layers, state.length + ids.shape[1])

    def _step(self, layer: Layer, x: Tensor, e: Tensor, own: Any) -> tuple[Tensor, Any]:
        mixer, where = layer.mixer, source(layer.mixer)
        if where is None:
            return layer.extend(x, own)
        assert isinstance(mixer, ForeignMapAttention)
        if where == "guide":
            return layer.extend(x, own, step=mixer.fixed_step)
        maps = self._static(layer, e)[:, 0]
        return layer.extend(x, own, step=lambda t, s: mixer.step_with(t, s, maps))


def source(mixer: nn.Module) -> str | None:
    """Where a mixer takes its map from, None if from its own input."""
    return mixer.source if isinstance(mixer, ForeignMapAttention) else None
