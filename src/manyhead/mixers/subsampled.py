"""Stochastically subsampled attention: every training step sees a random part of the sources.

Hussain et al., 'The Information Pathways Hypothesis', 2023, arXiv 2306.01705. Keys and values that are not
drawn are left out, not masked, so that cost falls with them; queries are never dropped. Averages of several
drawn passes are a self-ensemble. No code was released; items that the abstract leaves open are options.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.key_value_cache import KeyValueCache
from manyhead.mixers.base import Mixer, Traits
from manyhead.mixers.multihead import MultiHeadAttention


class Sources(NamedTuple):
    """Which keys queries may see.

    Args:
        kept: keys in order of time; `(batch or 1, kept)` for all queries, or a list for each,
            `(batch or 1, queries, kept)`.
        there: False where a list is shorter, of the shape of `kept`.
    """

    kept: Tensor
    there: Tensor


def uniform_sources(
    batch: int,
    tokens: int,
    rho: float,
    generator: torch.Generator | None = None,
    always: tuple[int, ...] = (),
) -> Sources:
    """Draw `ceil(rho * tokens)` sources without replacement, `always` among them."""
    kept = max(math.ceil(rho * tokens), len(always))
    rank = torch.rand(batch, tokens, generator=generator)
    rank[:, list(always)] = 2.0
    index = rank.topk(kept, -1).indices.sort(-1).values
    return Sources(index, torch.ones_like(index, dtype=torch.bool))


def bernoulli_sources(
    batch: int,
    tokens: int,
    rho: float,
    generator: torch.Generator | None = None,
    always: tuple[int, ...] = (),
) -> Sources:
    """Keep each source by chance `rho` (the author's graph code): their number varies, nothing is saved."""
    there = torch.rand(batch, tokens, generator=generator) < rho
    there[:, list(always)] = True
    return Sources(torch.arange(tokens).expand(batch, -1), there)


def local_sources(
    batch: int,
    tokens: int,
    window: int,
    sigma: float,
    generator: torch.Generator | None = None,
    *,
    causal: bool,
    offset: int = 0,
) -> Sources:
    """Draw sources near each query more often: windows over a locally biased shuffle.

    Sources are sorted by `j + sigma * noise`; query i sees the `window` sources of the nearest ranks, of
    the ranks up to i if causal. Without noise this is a sliding window, with much noise uniform sampling.

    Args:
        batch: samples, each with a shuffle of its own.
        tokens: queries and sources.
        window: ranks that a query sees.
        sigma: standard deviation of the noise, in tokens.
        generator: of the noise.
        causal: drop sources behind the query.
        offset: moves the windows that are not causal, so that layers overlap differently.
    """
    order = local_order(batch, tokens, sigma, generator)
    i = torch.arange(tokens)[:, None]
    if causal:
        rank = i - torch.arange(window - 1, -1, -1)
    else:
        rank = i - window // 2 + offset + torch.arange(window)
    inside = (rank >= 0) & (rank < tokens)
    index = order[:, rank.clamp(0, tokens - 1)]  # (batch, queries, window)
    there = inside.expand_as(index)
    if causal:
        there = there & (index <= i)
    return Sources(index, there)


def local_order(batch: int, tokens: int, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Locally biased shuffles: the source at each rank, `(batch, tokens)`."""
    noise = torch.randn(batch, tokens, generator=generator)
    return (torch.arange(tokens) + sigma * noise).argsort(-1)


class SubsampledAttention(Mixer):
    """An attention that draws its sources anew in every training step.

    It has no parameters of its own, and the state dict of the attention it is given. In evaluation it is
    dense, unless inside `subsampling(network)`.

    Args:
        attention: the attention to draw for.
        rho: share of the sources that is kept, for 'unbiased' and 'bernoulli'.
        mode: 'unbiased' draws one uniform set for all queries and heads, 'local' a list near each query,
            'bernoulli' keeps each source by chance.
        window: sources of a query in mode 'local'.
        sigma: how far sources are shuffled there, in tokens.
        offset: of the windows there.
        per_sample: draw for each sample, or once for the batch.
        keep_self: let a causal query always see itself; None for causal attention.
        always_keep: sources that are never dropped; not in mode 'local'.
        generator: of the draws; None for torch's own.

    Raises:
        InputError: if rho, window or sigma are out of range, or the mode is unknown.
    """

    traits = Traits("a random part of a dense positive", True, True, True, True, "rho L^2", "rho L^2")

    def __init__(
        self,
        attention: MultiHeadAttention,
        rho: float = 0.25,
        *,
        mode: Literal["unbiased", "local", "bernoulli"] = "unbiased",
        window: int = 64,
        sigma: float = 64.0,
        offset: int = 0,
        per_sample: bool = True,
        keep_self: bool | None = None,
        always_keep: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("unbiased", "local", "bernoulli"):
            raise InputError(f"mode is 'unbiased', 'local' or 'bernoulli', got {mode!r}")
        if not 0 < rho <= 1 or window < 1 or sigma < 0:
            raise InputError(f"rho lies in (0, 1], window >= 1, sigma >= 0; got {rho}, {window}, {sigma}")
        if mode == "local" and always_keep:
            raise InputError(f"always_keep is for the other modes: windows have no room for {always_keep}")
        attention.plain("SubsampledAttention")
        # not registered as a child, so that parameters keep their names
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj, self.q_norm, self.k_norm = attention.out_proj, attention.q_norm, attention.k_norm
        self._attention = (attention,)
        self.rho, self.mode, self.window, self.sigma, self.offset = rho, mode, window, sigma, offset
        self.per_sample, self.always_keep, self.generator = per_sample, always_keep, generator
        self.keep_self = attention.masked if keep_self is None else keep_self
        self.supports = attention.supports
        self.enabled = True
        self.in_evaluation = False

    @property
    def attention(self) -> MultiHeadAttention:
        """The attention that sources are drawn for."""
        return self._attention[0]

    def draw(self, batch: int, queries: int, keys: int) -> Sources:
        """Draw sources for one pass."""
        batch = batch if self.per_sample else 1
        if self.mode == "unbiased":
            return uniform_sources(batch, keys, self.rho, self.generator, self.always_keep)
        if self.mode == "bernoulli":
            return bernoulli_sources(batch, keys, self.rho, self.generator, self.always_keep)
        self._require_square(queries, keys)
        causal = self.attention.masked
        return local_sources(
            batch, keys, self.window, self.sigma, self.generator, causal=causal, offset=self.offset
        )

    def forward(self, x: Tensor, context: Tensor | None = None, *, sources: Sources | None = None) -> Tensor:
        """Mix; `sources` replaces the draw."""
        attention = self.attention
        drawn = self.enabled and (self.training or self.in_evaluation)
        if sources is None and not drawn:
            out: Tensor = attention(x, context)
            return out
        q, k, v = attention.parts(x, context)
        if sources is None and self.mode == "local":
            return attention.merge(self._banded(q, k, v))
        sources = sources or self.draw(len(x), q.shape[2], k.shape[2])
        index, there = (part.to(x.device) for part in sources)
        mix = self._shared if index.ndim == 2 else self._listed
        return attention.merge(mix(q, k, v, index, there))

    def _shared(self, q: Tensor, k: Tensor, v: Tensor, index: Tensor, there: Tensor) -> Tensor:
        """One set for all queries: gather keys and values to `kept` rows."""
        at = torch.arange(q.shape[2], device=q.device)
        seen = there[:, None]
        own = None
        if self.attention.masked:
            seen = seen & (index[:, None] <= at[:, None])
        if self.keep_self:  # an extra column for one's own key, where the set lacks it
            own = ~((index[:, None] == at[:, None]) & there[:, None]).any(-1)
        if len(index) == 1:
            keys, values = k[:, :, index[0]], v[:, :, index[0]]
        else:
            wide = index[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[-1])
            keys, values = k.gather(2, wide), v.gather(2, wide)
        if own is None:
            return _attend(q, keys, values, seen[:, None])
        scale = q.shape[-1] ** -0.5
        logits = (q @ keys.mT * scale).masked_fill(~seen[:, None], -torch.inf)
        itself = ((q * k).sum(-1, keepdim=True) * scale).masked_fill(~own[:, None, :, None], -torch.inf)
        weights = torch.cat([logits, itself], -1).softmax(-1)
        return weights[..., :-1] @ values + weights[..., -1:] * v

    def _require_square(self, queries: int, keys: int) -> None:
        if queries != keys:
            raise InputError(f"mode='local' needs as many keys as queries, got {keys} and {queries}")

    def _banded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Windows over shuffled sources in blocks: one gather, then products of `(block, block + window)`."""
        (batch, heads, tokens, d), window, device = q.shape, self.window, q.device
        self._require_square(tokens, k.shape[2])
        causal = self.attention.masked
        order = local_order(batch if self.per_sample else 1, tokens, self.sigma, self.generator).to(device)
        wide = order[:, None, :, None].expand(batch, heads, -1, d)
        block = min(window, tokens)
        blocks, reach = -(-tokens // block), block + window - 1
        shift = 1 - window if causal else self.offset - window // 2  # first rank of query 0
        before, after = max(0, -shift), max(0, (blocks - 1) * block + shift + reach - tokens)
        # ranks of every block, then which are there and which source each is
        rank = (
            shift + block * torch.arange(blocks, device=device)[:, None] + torch.arange(reach, device=device)
        )
        keys, values = (
            pad(part.gather(2, wide), (0, 0, before, after))[:, :, rank + before] for part in (k, v)
        )  # (batch, heads, blocks, reach, d)
        source = pad(order, (before, after), value=tokens)[:, rank + before]
        at = torch.arange(blocks * block, device=device).view(blocks, block)
        first = rank[:, None] - (at[:, :, None] + shift)
        there = (first >= 0) & (first < window) & (source < tokens)[:, :, None]
        if causal:
            there = there & (source[:, :, None] <= at[:, :, None])
        spare = (0, 0, 0, blocks * block - tokens)
        asked = pad(q, spare).unflatten(2, (blocks, block))
        logits = (asked @ keys.mT * d**-0.5).masked_fill(~there[:, None], -torch.inf)
        if self.keep_self:
            lacking = ~((source[:, :, None] == at[:, :, None]) & there).any(-1)
            own_k, own_v = (pad(part, spare).unflatten(2, (blocks, block)) for part in (k, v))
            own = (asked * own_k).sum(-1) * d**-0.5
            own = own.masked_fill(~lacking[:, None], -torch.inf)
            weights = torch.cat([logits, own[..., None]], -1).softmax(-1)
            out = weights[..., :-1] @ values + weights[..., -1:] * own_v
        else:
            empty = ~there.any(-1, keepdim=True)[:, None]
            out = logits.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0) @ values
        mixed: Tensor = out.flatten(2, 3)[:, :, :tokens]
        return mixed

    def _listed(self, q: Tensor, k: Tensor, v: Tensor, index: Tensor, there: Tensor) -> Tensor:
        """A list for each query: gather `(batch, heads, queries, kept, head_dim)`."""
        at = torch.arange(q.shape[2], device=q.device)[:, None]
        if self.keep_self:
            lacking = ~((index == at) & there).any(-1, keepdim=True)
            index = torch.cat([index, at.expand(*index.shape[:2], 1)], -1)
            there = torch.cat([there, lacking], -1)
        flat = index.expand(len(q), -1, -1).flatten(1)[:, None, :, None]
        keys, values = (
            part.gather(2, flat.expand(-1, part.shape[1], -1, part.shape[-1])).reshape(
                *part.shape[:2], *index.shape[1:], part.shape[-1]
            )
            for part in (k, v)
        )
        logits = (q[..., None, :] @ keys.mT)[..., 0, :] * q.shape[-1] ** -0.5
        hidden = ~there[:, None]
        weights = logits.masked_fill(hidden, -1e9).softmax(-1).masked_fill(hidden, 0.0)
        mixed: Tensor = (weights[..., None, :] @ values)[..., 0, :]
        return mixed

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Weights of the dense form."""
        return self.attention.mixing_matrix(x)

    @property
    def recurrent(self) -> bool:
        return self.attention.recurrent

    def initial_state(self, batch: int, **options: Any) -> KeyValueCache:
        """An empty cache for `capacity` tokens; streams see all sources."""
        return self.attention.initial_state(batch, **options)

    def step(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        return self.attention.step(x_t, state)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention; zero for queries that see nothing."""
    empty = ~seen.any(-1, keepdim=True)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen | empty).masked_fill(empty, 0.0)


def set_subsampling(network: nn.Module, enabled: bool) -> None:
    """Switch drawing on or off in a network's attentions: off for the last, dense phase of training."""
    for module in network.modules():
        if isinstance(module, SubsampledAttention):
            module.enabled = enabled


@contextmanager
def subsampling(network: nn.Module) -> Iterator[None]:
    """Let a network draw its sources although it is in evaluation mode."""
    layers = [module for module in network.modules() if isinstance(module, SubsampledAttention)]
    before = [(layer.in_evaluation, layer.enabled) for layer in layers]
    for layer in layers:
        layer.in_evaluation = layer.enabled = True
    try:
        yield
    finally:
        for layer, (drawn, enabled) in zip(layers, before, strict=True):
            layer.in_evaluation, layer.enabled = drawn, enabled


def self_ensemble(network: nn.Module, call: Callable[[], Tensor], passes: int) -> Tensor:
    """Logarithm of the mean probabilities of several drawn passes.

    Args:
        network: in evaluation mode.
        call: runs it once and returns logits `(..., classes)`.
        passes: how many are averaged.
    """
    with subsampling(network), torch.no_grad():
        each = torch.stack([call().log_softmax(-1) for _ in range(passes)])
    return each.logsumexp(0) - math.log(passes)
