"""Routing attention as a widely used PyTorch port has it, for models that were trained with it.

What differs from the paper's algorithm (`manyhead.mixers.routing`) stands in
`manyhead.kernels.clusters_normalised`; here are its projections, memory slots and centroids, which start
from the first batch and follow the normed means of their members (Roy et al., 2020, arXiv 2003.05997).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from manyhead.errors import InputError
from manyhead.kernels.clusters_normalised import clustered_attention
from manyhead.layers.rotary import rotate
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, Traits

ITERATIONS = 10  # of k-means on the first batch


def member_means(x: Tensor, means: Tensor) -> Tensor:
    """One step of spherical k-means; centres without members stay.

    Args:
        x: tokens of length one, `(batch, heads, tokens, d)`.
        means: centres of length one, `(heads, clusters, d)`.
    """
    members = one_hot((x @ means.mT).argmax(-1), means.shape[1]).to(x.dtype)
    sums = torch.einsum("bhnc,bhnd->hcd", members, x)
    empty = members.sum((0, 2)) == 0
    return torch.where(empty[..., None], means, normalize(sums, dim=-1))


class PortRoutingAttention(Mixer):
    """All heads route; keys are queries, or clusters have learned memory slots where these differ.

    Args:
        channels: size of the last axis of the input.
        heads: a divisor of `channels`.
        clusters: clusters of each head.
        window: tokens of a cluster.
        causal: whether a token sees itself and earlier ones only.
        share_qk: let keys be the queries.
        memory: learned slots of each cluster; at least one where causal without sharing, so that no
            query is left with nothing to see.
        rotary_base: base of rotary positions on queries, keys and values, as in the port; None for none.
        decay: of the centroids.
        commitment: weight of the commitment loss.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if heads do not divide the channels, or the memory is too small.
    """

    traits = Traits("block-diagonal after a learned permutation,", True, True, False, True, "L^1.5", "L")
    means: Tensor
    started: Tensor

    def __init__(
        self,
        channels: int,
        heads: int,
        clusters: int,
        window: int,
        *,
        causal: bool = True,
        share_qk: bool = False,
        memory: int | None = None,
        rotary_base: float | None = None,
        decay: float = 0.999,
        commitment: float = 1e-4,
    ) -> None:
        super().__init__()
        least = int(causal and not share_qk)
        memory = least if memory is None else memory
        if heads < 1 or channels % heads or memory < least:
            raise InputError(
                f"heads must divide channels, and memory is at least {least} here; "
                f"got {channels}, {heads} and {memory}"
            )
        d = channels // heads
        self.heads, self.window, self.causal, self.share_qk = heads, window, causal, share_qk
        self.rotary_base, self.decay, self.beta = rotary_base, decay, commitment
        self.supports = frozenset({CAUSAL_SELF if causal else NONCAUSAL_SELF})
        self.qkv = nn.Linear(channels, (2 if share_qk else 3) * channels, bias=False)
        self.out_proj = nn.Linear(channels, channels, bias=False)
        self.memory_key = nn.Parameter(torch.randn(heads, clusters, memory, d))
        self.memory_value = nn.Parameter(torch.randn(heads, clusters, memory, d))
        self.register_buffer("means", normalize(torch.randn(heads, clusters, d), dim=-1))
        self.register_buffer("started", torch.tensor(False))
        self.commitment: Tensor | None = None

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(batch, heads, tokens, head_dim)`; keys are queries where shared."""
        parts = self.qkv(x).unflatten(-1, (-1, self.heads, x.shape[-1] // self.heads)).movedim(-3, 0)
        split = [part.transpose(1, 2) for part in parts]
        if self.rotary_base is not None:
            at = torch.arange(x.shape[1], device=x.device)
            split = [rotate(part, at, base=self.rotary_base) for part in split]
        return split[0], split[-2], split[-1]

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Place centroids at random tokens `(batch, heads, tokens, d)` and run k-means."""
        flat = x.transpose(0, 1).flatten(1, 2)
        count = self.means.shape[1]
        order = torch.rand(flat.shape[:2], device=x.device).argsort(-1)[:, :count]
        if order.shape[1] < count:  # fewer tokens than clusters: some begin at the same place
            order = order.repeat(1, -(-count // order.shape[1]))[:, :count]
        means = flat.gather(1, order[..., None].expand(-1, -1, flat.shape[-1]))
        for _ in range(ITERATIONS):
            means = member_means(x, means)
        self.means.copy_(means)
        self.started.fill_(True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Mix; the first call places the centroids, calls in training move them and set `commitment`."""
        self.require_self_mixing(context)
        q, k, v = self.parts(x)
        unit = normalize((q if self.share_qk else torch.cat([q, k], 2)).detach(), dim=-1)
        if not self.started:
            self.start(unit)
        means = self.means.clone()  # the backward pass needs those of this call
        out, loss = clustered_attention(
            q,
            k,
            v,
            means,
            self.window,
            shared_qk=self.share_qk,
            causal=self.causal,
            memory_key=self.memory_key,
            memory_value=self.memory_value,
            commitment=self.beta,
        )
        self.commitment = loss if self.training else None
        if self.training:
            with torch.no_grad():
                self.means.lerp_(member_means(unit, means), 1 - self.decay)
        mixed: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return mixed
