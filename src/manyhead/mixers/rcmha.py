"""Relative convolutional attention: three-tap causal convolutions before attention, a table per distance.

Sugiharto et al., 'RCMHA', 2023, arXiv 2308.03429. Queries, keys and values pass a depth-wise convolution
over time whose filters all heads share; with r = j - i the logits are

    A_ij = ((q_i + u) . k_j + q_i . R_r + S_r) / sqrt(d_k)

with free tables R and S over distances. The published training script imports another class and trains
without convolutions; this is the class of the paper.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from manyhead.errors import InputError
from manyhead.layers.key_value_cache import KeyValueCache
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, Traits

TAPS = 3


class HeadConvolution(nn.Module):
    """Causal depth-wise convolution over time with one filter a feature, shared by the heads.

    Args:
        head_dim: features of a head.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(head_dim, head_dim, TAPS, groups=head_dim)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Convolve `(batch, heads, tokens, head_dim)`; `before`, the last two tokens earlier, or zeros."""
        x = pad(x, (0, 0, TAPS - 1, 0)) if before is None else torch.cat([before, x], 2)
        out: Tensor = self.conv(x.flatten(0, 1).mT).mT.unflatten(0, x.shape[:2])
        return out


class Stream(NamedTuple):
    """What RCMHA keeps of earlier tokens to go on token by token.

    Args:
        cache: convolved keys and values.
        tails: the last two projected queries, keys and values, `(3, batch, heads, 2, head_dim)`.
    """

    cache: KeyValueCache
    tails: Tensor


def align(by_distance: Tensor, keys: int) -> Tensor:
    """Turn a column per distance into a column per key.

    Args:
        by_distance: `(..., queries, keys + queries)`, column c of every row for the distance
            `j - i = c - queries` with queries counted from the first key's place.
        keys: number of keys.

    Returns:
        `(..., queries, keys)` whose entry (i, j) is column `j - i + queries` of row i.
    """
    queries, width = by_distance.shape[-2:]
    # one column less a row moves every row one further than the one before
    flat = by_distance.flatten(-2)[..., queries:]
    return flat.reshape(*flat.shape[:-1], queries, width - 1)[..., :keys]


class RelativeConvolutionalAttention(Mixer):
    """Multi-head attention with convolved parts and learned distances.

    Args:
        channels: size of the last axis of the input.
        heads: heads; a divisor of `channels`.
        max_length: largest distance with a place in the tables (P; 4,096 in the published code).
        causal: whether a token sees itself and earlier ones only.
        convolution: False leaves out the convolutions (the paper's RMHA).
        relative: False leaves out u, R and S (with convolutions, the paper's MDHA).
        dropout: on the attention weights.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if heads do not divide the channels, or there are more tokens than the tables hold.
    """

    traits = Traits("dense positive", True, True, True, True, "L^2", "L^2")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        max_length: int = 512,
        causal: bool = True,
        convolution: bool = True,
        relative: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(f"heads must divide channels, got {channels} channels and {heads} heads")
        d = channels // heads
        self.heads, self.head_dim, self.max_length, self.causal = heads, d, max_length, causal
        self.supports = frozenset({CAUSAL_SELF if causal else NONCAUSAL_SELF})
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)
        self.convolutions = nn.ModuleList(HeadConvolution(d) for _ in "qkv") if convolution else None
        self.relative = relative
        if relative:
            self.key_table = nn.Parameter(torch.zeros(2 * max_length, heads, d))  # R, row P + r
            self.bias_table = nn.Parameter(torch.zeros(2 * max_length, heads))  # S
            self.query_bias = nn.Parameter(torch.zeros(heads, d))  # u
        self.dropout = nn.Dropout(dropout)

    def _project(self, which: int, x: Tensor) -> Tensor:
        """Queries (0), keys (1) or values (2) before convolution, `(batch, heads, tokens, head_dim)`."""
        projected = (self.q_proj, self.k_proj, self.v_proj)[which](x)
        split: Tensor = projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    def _convolve(self, which: int, x: Tensor, before: Tensor | None = None) -> Tensor:
        if self.convolutions is None:
            return x
        out: Tensor = self.convolutions[which](x, before)
        return out

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled logits `(batch, heads, queries, keys)`; the last query stands at the last key.

        Raises:
            InputError: if there are more keys than distances in the tables.
        """
        queries, keys = q.shape[2], k.shape[2]
        if not self.relative:
            plain: Tensor = q @ k.mT * self.head_dim**-0.5
            return plain
        if keys > self.max_length:
            raise InputError(f"the tables hold distances up to {self.max_length}, got {keys} keys")
        rows = slice(self.max_length - keys, self.max_length + queries)
        content = (q + self.query_bias[:, None]) @ k.mT
        table = self.key_table[rows].permute(1, 2, 0)  # (heads, head_dim, keys + queries)
        by_distance = q @ table + self.bias_table[rows].T[:, None]
        logits: Tensor = (content + align(by_distance, keys)) * self.head_dim**-0.5
        return logits

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend from `query` to `key` and `value`, whose last token is the last query.

        Args:
            query: `(batch, queries, channels)`.
            key: `(batch, keys, channels)`, memory first.
            value: likewise.
            mask: True where a key is seen, broadcast to `(batch, heads, queries, keys)`.
            before: the last two projected queries of the segment before; zeros if left out.

        Returns:
            `(batch, queries, channels)` and the weights `(batch, heads, queries, keys)`.
        """
        q = self._convolve(0, self._project(0, query), before)
        k, v = (self._convolve(n, self._project(n, part)) for n, part in ((1, key), (2, value)))
        logits = self.logits(q, k)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights = logits.softmax(-1)
        out: Tensor = self.out_proj((self.dropout(weights) @ v).transpose(1, 2).flatten(2))
        return out, weights

    def visible(self, queries: int, keys: int) -> Tensor | None:
        """Causal mask `(queries, keys)`, True on all of the memory; None if not causal."""
        if not self.causal:
            return None
        return torch.ones(queries, keys, dtype=torch.bool, device=self.q_proj.weight.device).tril(
            keys - queries
        )

    def segment(
        self, x: Tensor, memory: Tensor | None = None, queries_before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix one segment of a long sequence.

        Args:
            x: tokens of the segment, `(batch, tokens, channels)`.
            memory: tokens before them, `(batch, earlier, channels)`.
            queries_before: what the call on the segment before returned. Without it, as in the published
                code, the first two queries lack their left context although the keys have theirs.

        Returns:
            Outputs like `x`, and the segment's last two projected queries.
        """
        keys = x if memory is None else torch.cat([memory, x], 1)
        out, _ = self.attend(x, keys, keys, self.visible(x.shape[1], keys.shape[1]), before=queries_before)
        last = self._project(0, x[:, 1 - TAPS :])
        if last.shape[2] < TAPS - 1:
            earlier = torch.zeros_like(last) if queries_before is None else queries_before[:, :, -1:]
            last = torch.cat([earlier, last], 2)
        return out, last

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        return self.attend(x, x, x, self.visible(x.shape[1], x.shape[1]))[0]

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Attention weights on the convolved values."""
        return self.attend(x, x, x, self.visible(x.shape[1], x.shape[1]))[1]

    @property
    def recurrent(self) -> bool:
        return self.causal

    def initial_state(self, batch: int, *, capacity: int | None = None, **options: object) -> Stream:
        """An empty stream with room for `capacity` tokens (`max_length` if left out)."""
        like = self.out_proj.weight
        cache = KeyValueCache.empty(batch, self.heads, capacity or self.max_length, self.head_dim, like)
        return Stream(cache, like.new_zeros(3, batch, self.heads, TAPS - 1, self.head_dim))

    def step(self, x_t: Tensor, state: Stream) -> tuple[Tensor, Stream]:
        if not self.causal:
            raise InputError("step needs causal=True: without it earlier outputs depend on later tokens")
        here = [self._project(n, x_t[:, None]) for n in range(3)]
        q, k, v = (self._convolve(n, part, state.tails[n]) for n, part in enumerate(here))
        tails = torch.stack(
            [torch.cat([tail[:, :, 1:], part], 2) for tail, part in zip(state.tails, here, strict=True)]
        )
        cache = state.cache.append(k, v)
        keys, values = cache.filled
        out = self.logits(q, keys).softmax(-1) @ values
        return self.out_proj(out.transpose(1, 2).flatten(1)), Stream(cache, tails)
