"""Attention whose queries and keys come from other tokens than its values.

Xue et al., 'Deconstructing Attention', 2025, arXiv 2510.11602. From a fixed sequence that runs beside the
text ('rndembqk', 'fixedseqqk'), so that maps are the same for every text; or from the text's raw embedding
('staticembqk'). Which, `manyhead.networks.foreign_maps` decides and supplies.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.key_value_cache import KeyValueCache
from manyhead.mixers.multihead import MultiHeadAttention


class FixedMaps(NamedTuple):
    """Queries and keys that hold for every text, each `(heads, longest, head_dim)`."""

    queries: Tensor
    keys: Tensor


class FixedMapState(NamedTuple):
    """A stream under fixed maps: these, and the values so far, `(batch, heads, capacity, head_dim)`."""

    maps: FixedMaps
    values: Tensor
    length: int


def average(weights: Tensor, v: Tensor) -> Tensor:
    """Averages `(batch, heads, tokens, head_dim)` by maps `(heads, tokens, tokens)` that all samples share.

    One product a head, with the samples side by side, in place of a map copied for each of them.
    """
    wide = v.permute(1, 2, 0, 3)  # (heads, tokens, batch, head_dim)
    return (weights @ wide.flatten(2)).view_as(wide).permute(2, 0, 1, 3)


class ForeignMapAttention(MultiHeadAttention):
    """Softmax attention with its map and its values from different tokens.

    Args:
        channels, heads, and options: as of `MultiHeadAttention`, causal.
        source: where the network takes the map from: 'guide', a fixed sequence beside the text, or
            'embedding', the text's own embedding.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if the source is unknown, or the attention is not causal.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        source: Literal["guide", "embedding"] = "guide",
        **options: object,
    ) -> None:
        if source not in ("guide", "embedding") or not options.pop("causal", True):
            raise InputError(f"source is 'guide' or 'embedding', and causal stays True; got {source!r}")
        super().__init__(channels, heads, causal=True, **options)  # type: ignore[arg-type]
        self.plain("ForeignMapAttention")
        self.source = source

    def map_parts(self, tokens: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys of normed tokens, each `(batch, heads, tokens, head_dim)`."""
        q, k = self.queries(tokens), self.keys(tokens)
        return self.rotate(q, start), self.repeat(self.rotate(k, start))

    def head_values(self, x: Tensor) -> Tensor:
        """Values of every query head, `(batch, heads, tokens, head_dim)`."""
        return self.repeat(self.values(x))

    def map_of(self, tokens: Tensor) -> Tensor:
        """Weights `(batch, heads, queries, keys)` that tokens give."""
        q, k = self.map_parts(tokens)
        logits = q @ k.mT * self.head_dim**-0.5
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=tokens.device).triu(1)
        weights: Tensor = logits.masked_fill(later, -torch.inf).softmax(-1)
        return weights

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        maps: Tensor | None = None,
        guide: int | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mix; without options the map is that of `x`, as in ordinary attention.

        Args:
            x: tokens `(batch, tokens, channels)`.
            context: not taken.
            maps: normed tokens that give the map, `(batch or 1, tokens, channels)`.
            guide: row of the batch whose tokens give the map of all rows.
            weights: the map itself, `(heads, tokens, tokens)`.
        """
        self.require_self_mixing(context)
        v = self.head_values(x)
        if weights is not None:
            return self.merge(average(weights, v))
        if guide is not None:
            return self.merge(average(self.map_of(x[guide][None])[0], v))
        q, k = self.map_parts(x if maps is None else maps)
        return self.merge(scaled_dot_product_attention(q, k, v, is_causal=True))

    def step_with(
        self, x_t: Tensor, state: KeyValueCache, maps: Tensor | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """One token `(batch, channels)` whose query and key come from `maps` `(batch, channels)`."""
        q, k = self.map_parts((x_t if maps is None else maps)[:, None], state.length)
        state = state.append(k, self.head_values(x_t[:, None]))
        return self.merge(scaled_dot_product_attention(q, *state.filled))[:, 0], state

    def initial_state(self, batch: int, *, capacity: int = 1024, **options: object) -> KeyValueCache:
        """An empty cache of keys and values by query head."""
        return KeyValueCache.empty(batch, self.heads, capacity, self.head_dim, self.k_proj.weight)

    def step(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        return self.step_with(x_t, state)

    def fixed_state(self, batch: int, capacity: int, maps: FixedMaps) -> FixedMapState:
        """An empty stream under fixed maps; keys are those of the maps, so that values alone are stored."""
        return FixedMapState(
            maps, self.k_proj.weight.new_zeros(batch, self.heads, capacity, self.head_dim), 0
        )

    def fixed_step(self, x_t: Tensor, state: FixedMapState) -> tuple[Tensor, FixedMapState]:
        """One token under fixed maps; the values are written in place.

        Raises:
            InputError: if there is no room left.
        """
        at, maps = state.length, state.maps
        if at >= min(state.values.shape[2], maps.keys.shape[1]):
            raise InputError(f"the fixed maps and the values have room for {at} tokens")
        state.values[:, :, at] = self.head_values(x_t[:, None])[:, :, 0].detach()
        logits = maps.queries[:, at : at + 1] @ maps.keys[:, : at + 1].mT * self.head_dim**-0.5
        out = logits.softmax(-1) @ state.values[:, :, : at + 1]
        return self.merge(out)[:, 0], state._replace(length=at + 1)
