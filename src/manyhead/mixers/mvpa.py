"""Multi-variate parallel attention: content, time and channel terms over segments x channels of a series.

'A foundation model with multi-variate parallel attention to generate neuronal activity', 2025, arXiv
2506.20354. For query (t, c) and key (t', c') of head n, with tables of positions p and of channels s,

    a = ((q + u) . k_{t'c'}  [near] + (q + v) . W_t p_{t-t'} + (q + w) . W_c s_{|c-c'|}) / sqrt(h)

where the content term is there within a window of segments only, and a segment sees no later one.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_SELF, Mixer, Traits


class GridCache(NamedTuple):
    """Keys and values of earlier segments by query head, `(batch, heads, capacity, channels, head_dim)`."""

    keys: Tensor
    values: Tensor
    length: int


class MultivariateParallelAttention(Mixer):
    """Attention over a grid of segments and channels whose numbers may change from record to record.

    Args:
        width: features of a token (E).
        heads: query heads.
        kv_heads: key and value heads, a divisor of `heads`.
        positions: table of segment positions `(max segments, width)`, shared between layers.
        channels: table of channels `(max channels, width)`, likewise.
        window: segments behind a query's own whose content it sees.
        last_global: let the last segment's queries see the content of all segments, as the code does.
        global_att: False leaves out the content term.
        relative: 'aligned_end' counts table rows back from the current numbers of segments and channels
            (the code, whose rows for a distance shift with them); 'distance' takes the row of the
            distance, which stays the same between records.
        layer_scale: divides the logits once more; the code's option of the layer's number plus one.
        dropout: on the attention weights and on the output.
        impl: 'broadcast' computes time and channel terms once for each query, 'naive' writes all terms
            out token by token, 'sdpa' hands their sum to PyTorch as a bias.

    Shape:
        input and output `(batch, segments, channels, width)`.

    Raises:
        InputError: if heads do not fit, an option is unknown, or the tables are too short.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits(
        "dense positive, a sum of three relative terms,", True, True, True, True, "T^2 C + T C^2", "T^2 C^2"
    )

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        positions: nn.Parameter,
        channels: nn.Parameter,
        *,
        window: int = 10,
        last_global: bool = True,
        global_att: bool = True,
        relative: Literal["aligned_end", "distance"] = "aligned_end",
        layer_scale: float = 1.0,
        dropout: float = 0.0,
        impl: Literal["naive", "broadcast", "sdpa"] = "broadcast",
    ) -> None:
        super().__init__()
        if width % heads or heads % kv_heads:
            raise InputError(f"kv_heads divide heads divide width, got {kv_heads}, {heads} and {width}")
        if relative not in ("aligned_end", "distance") or impl not in ("naive", "broadcast", "sdpa"):
            raise InputError(f"unknown relative={relative!r} or impl={impl!r}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.window, self.last_global, self.global_att = window, last_global, global_att
        self.relative, self.scale, self.impl = relative, self.head_dim**-0.5 / layer_scale, impl
        kv = kv_heads * self.head_dim
        self.positions, self.channels = positions, channels
        self.q_proj = nn.Linear(width, width, bias=False)
        self.kv_proj = nn.Linear(width, 2 * kv, bias=False)
        self.time_proj = nn.Linear(width, kv, bias=False)
        self.channel_proj = nn.Linear(width, kv, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(0.02 * torch.randn(3 * kv))  # u, v, w
        for part in (self.q_proj, self.kv_proj, self.time_proj, self.channel_proj, self.out_proj):
            nn.init.normal_(part.weight, std=0.02)
        self.drop = nn.Dropout(dropout)

    def _heads(self, x: Tensor) -> Tensor:
        """`(..., kv_heads * head_dim)` to `(..., heads, head_dim)`, each kv head for its group."""
        grouped = x.reshape(*x.shape[:-1], self.kv_heads, -1)
        return grouped.repeat_interleave(self.heads // self.kv_heads, -2)

    def _rows(self, table: Tensor, projection: nn.Linear, size: int, name: str) -> Tensor:
        """Projected row for each distance 0..size-1, `(size, heads, head_dim)`."""
        if size > len(table):
            raise InputError(f"the table of {name} has {len(table)} rows, the input {size} {name}")
        rows = table[:size].flip(0) if self.relative == "aligned_end" else table[:size]
        return self._heads(projection(rows))

    def near(self, segments: int) -> Tensor:
        """Where content counts, `(segments, segments)`."""
        t = torch.arange(segments)
        near = (t[:, None] - t).abs() <= self.window
        if self.last_global:
            near[-1] = True
        return near

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, and values, keys, biases, all by head.

        Returns:
            q `(batch, heads, T, C, h)`, k and v likewise, and u, v, w as `(3, heads, h)`.
        """
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).movedim(-2, 1)
        k, v = (self._heads(part).movedim(-2, 1) for part in self.kv_proj(x).chunk(2, -1))
        return q, k, v, self._heads(self.bias.view(3, -1))

    def logits(self, x: Tensor, q: Tensor, k: Tensor, biases: Tensor) -> Tensor:
        """Scaled logits `(batch, heads, T, C, T, C)`, lowest float for later segments."""
        segments, channels = x.shape[1:3]
        u, v, w = biases[:, :, None, None]
        time = self._rows(self.positions, self.time_proj, segments, "segments")
        channel = self._rows(self.channels, self.channel_proj, channels, "channels")
        t, c = torch.arange(segments, device=x.device), torch.arange(channels, device=x.device)
        behind, apart = t[:, None] - t, (c[:, None] - c).abs()
        near = self.near(segments).to(x.device)
        if self.impl == "naive":
            keys = k[:, :, None, None] * near[:, None, :, None, None]
            a = ((q + u)[:, :, :, :, None, None] * keys).sum(-1) if self.global_att else q.new_zeros(())
            of_time = time[behind.clamp_min(0)].permute(2, 0, 1, 3)  # (heads, T, T, h)
            a = a + ((q + v)[:, :, :, :, None] * of_time[:, :, None]).sum(-1)[..., None]
            of_channel = channel[apart].permute(2, 0, 1, 3)  # (heads, C, C, h)
            a = a + ((q + w)[:, :, :, :, None] * of_channel[:, None]).sum(-1)[..., None, :]
        else:
            by_time = (q + v) @ time.permute(1, 2, 0)[:, None]  # (batch, heads, T, C, distances)
            index = behind.clamp_min(0)[:, None].expand(*by_time.shape)
            a = by_time.gather(-1, index)[..., None]
            by_channel = (q + w) @ channel.permute(1, 2, 0)[:, None]
            a = a + by_channel.gather(-1, apart.expand(*by_channel.shape))[..., None, :]
            if self.global_att:
                content = ((q + u).flatten(2, 3) @ k.flatten(2, 3).mT).unflatten(-1, (segments, channels))
                a = a + content.unflatten(2, (segments, channels)) * near[:, None, :, None]
        later = (behind < 0)[:, None, :, None]
        masked: Tensor = (a * self.scale).masked_fill(later, torch.finfo(x.dtype).min)
        return masked

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        q, k, v, biases = self.terms(x)
        a = self.logits(x, q, k, biases).flatten(4).flatten(2, 3)  # (batch, heads, TC, TC)
        v = v.flatten(2, 3)
        if self.impl == "sdpa":
            nothing = torch.zeros_like(v)
            out = scaled_dot_product_attention(
                nothing, nothing, v, attn_mask=a, dropout_p=self.drop.p if self.training else 0.0
            )
        else:
            out = self.drop(a.softmax(-1)) @ v
        merged: Tensor = self.drop(self.out_proj(out.transpose(1, 2).flatten(2).view(x.shape)))
        return merged

    @property
    def recurrent(self) -> bool:
        """Whether outputs stay as they are when the series goes on."""
        return self.relative == "distance" and not self.last_global

    def initial_state(
        self, batch: int, *, channels: int | None = None, capacity: int | None = None, **options: object
    ) -> GridCache:
        """An empty cache for `capacity` segments of `channels` channels, the tables' sizes if left out."""
        shape = (
            batch,
            self.heads,
            capacity or len(self.positions),
            channels or len(self.channels),
            self.head_dim,
        )
        like = self.out_proj.weight
        return GridCache(like.new_zeros(shape), like.new_zeros(shape), 0)

    def step(self, x_t: Tensor, state: GridCache) -> tuple[Tensor, GridCache]:
        """Process the next segment `(batch, channels, width)`; the cache is written in place.

        Raises:
            InputError: if the rows of distances move as the series goes on, or there is no room left.
        """
        if not self.recurrent:
            raise InputError("step needs relative='distance' and last_global=False")
        at, channels = state.length, x_t.shape[1]
        if at >= state.keys.shape[2] or channels > state.keys.shape[3]:
            raise InputError(
                f"the cache has room for {state.keys.shape[2]} segments of {state.keys.shape[3]} channels"
            )
        q, k, v, biases = self.terms(x_t[:, None])
        state.keys[:, :, at, :channels], state.values[:, :, at, :channels] = (
            part[:, :, 0].detach() for part in (k, v)
        )
        keys, values = (part[:, :, : at + 1, :channels] for part in (state.keys, state.values))
        u, v_bias, w = biases[:, :, None, None]
        time = self._rows(self.positions, self.time_proj, at + 1, "segments").flip(0)  # oldest first
        channel = self._rows(self.channels, self.channel_proj, channels, "channels")
        c = torch.arange(channels, device=x_t.device)
        apart = (c[:, None] - c).abs()
        a = ((q + v_bias)[:, :, 0] @ time.permute(1, 2, 0))[..., None]  # (batch, heads, C, T, 1)
        by_channel = (q + w)[:, :, 0] @ channel.permute(1, 2, 0)
        a = a + by_channel.gather(-1, apart.expand(*by_channel.shape))[..., None, :]
        if self.global_att:
            near = torch.arange(at, -1, -1, device=x_t.device) <= self.window
            content = (q + u)[:, :, 0] @ keys.flatten(2, 3).mT
            a = a + content.unflatten(-1, (at + 1, channels)) * near[:, None]
        out = (a * self.scale).flatten(3).softmax(-1) @ values.flatten(2, 3)
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return y, state._replace(length=at + 1)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        q, k, _, biases = self.terms(x)
        weights: Tensor = self.logits(x, q, k, biases).flatten(4).flatten(2, 3).softmax(-1)
        return weights
