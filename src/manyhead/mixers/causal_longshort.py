"""Long-short attention for autoregressive use: the last tokens, and averages of the chunks before.

Zhu et al., 'Long-Short Transformer', 2021, arXiv 2107.02192, section 3.3, with relative positions as in
Dai et al., 'Transformer-XL', 2019, arXiv 1901.02860.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_SELF, Mixer, Traits


def sinusoid(positions: Tensor, channels: int) -> Tensor:
    """[sin(p f), cos(p f)], f = 10000^(-2i / channels): `(..., channels)`."""
    rate = 10000.0 ** (-torch.arange(0, channels, 2, device=positions.device) / channels)
    angle = positions[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


class LongShortState(NamedTuple):
    """The last width - 1 keys and values, the unfinished chunk, and the averages of finished chunks.

    Args:
        k, v: normalised, `(batch, width - 1, channels)`.
        pending: k, v and share of the tokens of the unfinished chunk.
        chunk_k, chunk_v: `(batch, room, heads, head_dim)`, room sized in advance.
        length: tokens so far.
    """

    k: Tensor
    v: Tensor
    pending: tuple[Tensor, Tensor, Tensor]
    chunk_k: Tensor
    chunk_v: Tensor
    length: int


class CausalLongShortAttention(Mixer):
    """Every query sees the last `width` tokens and `rank` averages of every earlier chunk.

    Args:
        channels: size of the last axis of the input.
        heads: attention heads.
        chunk: tokens of a chunk.
        width: tokens of the window.
        rank: averages of a chunk, a head.
        memory: tokens of zero memory in front, a multiple of `chunk`; they matter to `released` only.
        released: attend to the zero rows in front of the sequence (keys and values that equal the layer
            norm's bias), as CAB's code does; they are left out otherwise.
    """

    supports = frozenset({CAUSAL_SELF})
    traits = Traits("banded plus low rank", True, True, True, True, "L (w + L / c)", "L (w + L / c)")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        chunk: int = 32,
        width: int = 256,
        rank: int = 1,
        memory: int = 0,
        released: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads or channels % 2:
            raise InputError(f"heads must divide an even number of channels, got {heads} and {channels}")
        if min(chunk, width, rank) < 1 or memory % chunk:
            raise InputError(
                f"chunk, width and rank are at least 1 and memory a multiple of chunk; got {chunk}, {width}, "
                f"{rank} and {memory}"
            )
        self.heads, self.chunk, self.width, self.rank = heads, chunk, width, rank
        self.memory, self.released = memory if released else 0, released
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )
        self.share = nn.Linear(channels, heads * rank)
        self.norm_window, self.norm_chunk = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.window_position = nn.Linear(channels, channels, bias=False)
        self.chunk_position = nn.Linear(channels, channels)
        self.content_bias = nn.Parameter(torch.zeros(heads, channels // heads))
        self.position_bias = nn.Parameter(torch.zeros(heads, channels // heads))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        tokens = x.shape[1]
        q, k, v = self._queries(x), self.k_proj(x), self.v_proj(x)
        front = (0, 0, self.width - 1, 0)
        near_k, near_v = (
            self._heads(self.norm_window(pad(t, front))).unfold(1, self.width, 1) for t in (k, v)
        )  # (batch, tokens, heads, head_dim, width), oldest first
        near = self._near(q, near_k)
        if not self.released:
            times = torch.arange(tokens, device=x.device)[:, None] + torch.arange(self.width, device=x.device)
            near = near.masked_fill((times < self.width - 1)[:, None], -torch.inf)
        whole = tokens // self.chunk * self.chunk
        cut = [t[:, :whole].unflatten(1, (-1, self.chunk)) for t in (k, v, self.share(x))]
        chunk_k, chunk_v = self._averages(*cut)  # (batch, chunks rank, heads, head_dim)
        if self.memory:
            empty = self._heads(self.norm_chunk(torch.zeros_like(x[:, :1]))).expand(
                -1, self.memory // self.chunk * self.rank, -1, -1
            )
            chunk_k, chunk_v = torch.cat([empty, chunk_k], 1), torch.cat([empty, chunk_v], 1)
        at = (torch.arange(tokens, device=x.device) + self.memory) // self.chunk
        far = self._far(q, chunk_k, at)
        weights = torch.cat([far, near], -1).softmax(-1)  # (batch, tokens, heads, chunks rank + width)
        far, near = weights[..., : far.shape[-1]], weights[..., far.shape[-1] :]
        out = torch.einsum("bthc,bchd->bthd", far, chunk_v) + torch.einsum("bthw,bthdw->bthd", near, near_v)
        y: Tensor = self.out_proj(out.flatten(2))
        return y

    def initial_state(self, batch: int, *, capacity: int = 1024, **options: object) -> LongShortState:
        """An empty state with room for the chunks of `capacity` tokens."""
        like = self.q_proj.weight
        channels = like.shape[0]
        empty = self._heads(self.norm_chunk(like.new_zeros(batch, 1, channels)))
        chunks = (-(-capacity // self.chunk) + self.memory // self.chunk) * self.rank
        recent = self.norm_window(like.new_zeros(batch, self.width - 1, channels))
        nothing = like.new_zeros(batch, 0, channels)
        pending = (nothing, nothing, like.new_zeros(batch, 0, self.heads * self.rank))
        room = empty.repeat(1, chunks, 1, 1)
        return LongShortState(recent, recent, pending, room, room.clone(), 0)

    def step(self, x_t: Tensor, state: LongShortState) -> tuple[Tensor, LongShortState]:
        x = x_t[:, None]
        q, k, v = self._queries(x), self.k_proj(x), self.v_proj(x)
        recent_k, recent_v = (
            torch.cat([old, self.norm_window(new)], 1) for old, new in ((state.k, k), (state.v, v))
        )
        near = self._near(q, self._heads(recent_k).permute(0, 2, 3, 1)[:, None])
        if not self.released and state.length + 1 < self.width:
            near[..., : self.width - 1 - state.length] = -torch.inf
        done = (state.length + self.memory) // self.chunk
        seen_k, seen_v = (t[:, : done * self.rank] for t in (state.chunk_k, state.chunk_v))
        far = self._far(q, seen_k, torch.tensor([done], device=x.device))
        weights = torch.cat([far, near], -1).softmax(-1)
        far, near = weights[..., : far.shape[-1]], weights[..., far.shape[-1] :]
        out = torch.einsum("bthc,bchd->bthd", far, seen_v)
        out = out + torch.einsum("bthw,bwhd->bthd", near, self._heads(recent_v))
        new = (k, v, self.share(x))
        pending = tuple(torch.cat(pair, 1) for pair in zip(state.pending, new, strict=True))
        chunk_k, chunk_v = state.chunk_k, state.chunk_v
        if pending[0].shape[1] == self.chunk:
            place = slice(done * self.rank, (done + 1) * self.rank)
            if place.stop > chunk_k.shape[1]:
                raise InputError(f"the state has room for {chunk_k.shape[1]} chunk averages, no more")
            chunk_k, chunk_v = chunk_k.clone(), chunk_v.clone()
            chunk_k[:, place], chunk_v[:, place] = self._averages(*(t[:, None] for t in pending))
            pending = tuple(t[:, :0] for t in pending)
        state = LongShortState(
            recent_k[:, 1:],
            recent_v[:, 1:],
            (pending[0], pending[1], pending[2]),
            chunk_k,
            chunk_v,
            state.length + 1,
        )
        return self.out_proj(out.flatten(2))[:, 0], state

    def _queries(self, x: Tensor) -> Tensor:
        q = self._heads(self.q_proj(x))
        return q / math.sqrt(q.shape[-1])

    def _heads(self, t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:-1], self.heads, -1)

    def _near(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores of the window `(batch, tokens, heads, width)` for keys `(..., heads, head_dim, width)`."""
        distance = torch.arange(self.width - 1, -1, -1, device=q.device, dtype=q.dtype)
        position = self._heads(self.window_position(sinusoid(distance, self.heads * q.shape[-1])))
        content = ((q + self.content_bias)[..., None, :] @ k)[..., 0, :]
        return content + torch.einsum("bthd,whd->bthw", q + self.position_bias, position)

    def _far(self, q: Tensor, k: Tensor, at: Tensor) -> Tensor:
        """Scores of chunk averages, -inf for those not before the query's chunk `at` `(tokens,)`."""
        number = torch.arange(k.shape[1], device=q.device) // self.rank
        distance = at[:, None] - 1 - number  # (tokens, chunks rank)
        longest = max(int(at.max()), 1)
        steps = torch.arange(longest, device=q.device, dtype=q.dtype)
        table = self._heads(self.chunk_position(sinusoid(steps, self.heads * q.shape[-1])))
        by_distance = torch.einsum("bthd,phd->bthp", q, table)
        index = distance.clamp(0, longest - 1)[None, :, None].expand(len(q), -1, self.heads, -1)
        scores = torch.einsum("bthd,bchd->bthc", q, k) + by_distance.gather(-1, index)
        return scores.masked_fill((distance < 0)[:, None], -torch.inf)

    def _averages(self, k: Tensor, v: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks `(batch, chunks, chunk, ...)` to averages `(batch, chunks rank, heads, head_dim)`."""
        weight = share.reshape(*share.shape[:-1], self.heads, self.rank).softmax(2)
        found = []
        for t in (k, v):
            mean = torch.einsum("bcshr,bcshd->bcrhd", weight, self._heads(t))
            found.append(self._heads(self.norm_chunk(mean.flatten(1, 2).flatten(2))))
        return found[0], found[1]
