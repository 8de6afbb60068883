"""Routing attention: some heads attend to neighbours, the others inside learned clusters of tokens.

Roy et al., 'Efficient Content-Based Sparse Attention with Routing Transformers', 2020, arXiv 2003.05997,
section 4. With as many clusters as tokens in a cluster the cost is O(n^1.5 d).
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.kernels.clusters import best_members, cluster_attention, recent_attention, recent_members
from manyhead.kernels.relative_blocks import local_attention
from manyhead.layers.centroids import Centroids, unit_norm
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_CROSS, NONCAUSAL_SELF, Mixer, Traits

Membership = tuple[Tensor, Tensor]


class RoutingState(NamedTuple):
    """Explicit caches of strictly causal routing, sized in advance.

    Args:
        position: tokens so far.
        local_keys: ring of the last `(flank + 1) * block` keys of the local heads.
        local_values: likewise.
        member_keys: ring of the last `window` keys of each cluster, `(batch, routed, clusters, window, d)`.
        member_values: likewise.
        counts: tokens each cluster has had, `(batch, routed, clusters)`.
    """

    position: int
    local_keys: Tensor
    local_values: Tensor
    member_keys: Tensor
    member_values: Tensor
    counts: Tensor


class RoutingAttention(Mixer):
    """Local heads first, routing heads after them, one output projection.

    Args:
        channels: size of the last axis of the input.
        heads: all heads; a divisor of `channels`.
        routed: how many of them route.
        clusters: clusters of each routing head.
        window: tokens of a cluster.
        block: tokens of a local block.
        flank: neighbouring blocks that local heads see.
        max_distance: local relative positions are clipped there.
        causal: whether a token sees itself and earlier ones only.
        share_qk: let routing heads' keys be their queries; None shares where causal.
        strict_causal: give each token to its best cluster and let it see the `window` most recent
            members, so that membership does not depend on later tokens either and steps are possible.
        router: 'kmeans' learns centroids, 'random' draws clusters by position, 'lsh' takes the signs of
            log2(clusters) random orthogonal projections.
        count_epsilon: added to the number of clusters a token is averaged over (0.01 as the official).
        decay: of the centroids' averages.
        commitment: weight beta of the commitment loss.
        initial_count: see `Centroids`.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if the numbers do not fit or an option is unknown.
    """

    traits = Traits("block-diagonal after a learned permutation,", True, True, False, True, "L^1.5", "L")

    def __init__(
        self,
        channels: int,
        heads: int,
        routed: int,
        clusters: int,
        window: int,
        *,
        block: int = 256,
        flank: int = 1,
        max_distance: int = 64,
        causal: bool = True,
        share_qk: bool | None = None,
        strict_causal: bool = False,
        router: Literal["kmeans", "random", "lsh"] = "kmeans",
        count_epsilon: float = 0.01,
        decay: float = 0.999,
        commitment: float = 1e-4,
        initial_count: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads or not 0 <= routed <= heads:
            raise InputError(f"heads must divide channels and hold routed, got {channels}, {heads}, {routed}")
        if router not in ("kmeans", "random", "lsh"):
            raise InputError(f"router is 'kmeans', 'random' or 'lsh', got {router!r}")
        if router == "lsh" and 2 ** int(math.log2(clusters)) != clusters:
            raise InputError(f"router='lsh' needs a power of two of clusters, got {clusters}")
        if strict_causal and not causal:
            raise InputError("strict_causal=True needs causal=True")
        d = channels // heads
        self.heads, self.routed, self.head_dim, self.clusters, self.window = (
            heads,
            routed,
            d,
            clusters,
            window,
        )
        self.block, self.flank, self.causal, self.strict_causal = block, flank, causal, strict_causal
        self.share_qk = causal if share_qk is None else share_qk
        self.router, self.count_epsilon, self.beta, self.seed = router, count_epsilon, commitment, seed
        uses = {CAUSAL_SELF} if causal else {NONCAUSAL_SELF}
        if not causal and routed == heads and not self.share_qk:
            uses.add(NONCAUSAL_CROSS)
        self.supports = frozenset(uses)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out_proj = nn.Linear(channels, channels, bias=False)
        self.centroids = Centroids(routed, clusters, d, decay, initial_count)
        if router == "lsh":
            bits = int(math.log2(clusters))
            planes = torch.linalg.qr(torch.randn(routed, d, max(bits, 1)))[0].mT  # orthogonal rows
            signs = (
                2.0 * torch.tensor([[c >> b & 1 for b in range(max(bits, 1))] for c in range(clusters)]) - 1
            )
            self.centroids.means.copy_(signs @ planes)
        local = heads - routed
        self.key_table = nn.Parameter(torch.zeros(local, 2 * max_distance + 1, d))
        self.value_table = nn.Parameter(torch.zeros(local, 2 * max_distance + 1, d))
        nn.init.normal_(self.key_table, std=d**-0.5)
        nn.init.normal_(self.value_table, std=d**-0.5)
        self.commitment: Tensor | None = None

    def parts(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, each `(batch, heads, tokens, head_dim)`."""
        weights = self.qkv.weight.chunk(3)
        sources = (x, x if context is None else context, x if context is None else context)
        q, k, v = (
            (source @ weight.T).reshape(*source.shape[:-1], self.heads, -1).transpose(1, 2)
            for source, weight in zip(sources, weights, strict=True)
        )
        return q * self.head_dim**-0.5, k, v

    def routing_parts(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normed queries and keys of the routing heads; keys are queries where shared."""
        q = unit_norm(q[:, self.heads - self.routed :])
        return q, q if self.share_qk else unit_norm(k[:, self.heads - self.routed :])

    def scores(self, x: Tensor) -> Tensor:
        """Affinity of normed tokens `(batch, routed, tokens, d)` to clusters; higher is nearer."""
        if self.router == "random":
            random = torch.Generator().manual_seed(self.seed)
            drawn = torch.rand(x.shape[2], self.routed, self.clusters, generator=random)
            return drawn.transpose(0, 1).to(x).expand(len(x), -1, -1, -1)
        return self.centroids.scores(x)

    def membership(self, x: Tensor, context: Tensor | None = None) -> Membership:
        """Queries and keys of each cluster in order of time, both `(batch, routed, clusters, window)`."""
        with torch.no_grad():
            q, k = self.routing_parts(*self.parts(x, context)[:2])
            q_index = best_members(self.scores(q), self.window)
            return q_index, q_index if self.share_qk else best_members(self.scores(k), self.window)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        membership: Membership | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Mix; `membership` freezes who is in which cluster, `padding` `(batch, keys)` marks absent keys.

        In training the centroids move and `commitment` holds the loss to add (see `commitment_loss`).
        """
        if NONCAUSAL_CROSS not in self.supports:
            self.require_self_mixing(context)
        q, k, v = self.parts(x, context)
        local, outs = self.heads - self.routed, []
        if local:
            tables = (self.key_table, self.value_table)
            outs.append(
                local_attention(
                    q[:, :local],
                    k[:, :local],
                    v[:, :local],
                    self.block,
                    self.flank,
                    *tables,
                    causal=self.causal,
                    absent=padding,
                )
            )
        if self.routed:
            absent = (padding if context is None else None, padding)
            outs.append(self._route(*self.routing_parts(q, k), v[:, local:], membership, absent))
        out: Tensor = self.out_proj(torch.cat(outs, 1).transpose(1, 2).flatten(2))
        return out

    def _route(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        membership: Membership | None,
        absent: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        """The routing heads; `absent` marks padding among queries and among keys, `(batch, tokens)`."""
        if self.strict_causal:
            q_cluster, k_cluster = (self.scores(part.detach()).argmax(-1) for part in (q, k))
            if absent[1] is not None:  # a cluster of their own, which no query belongs to
                k_cluster = k_cluster.masked_fill(absent[1][:, None], self.clusters)
            found = recent_members(q_cluster, k_cluster, self.clusters + 1, self.window)
            out = recent_attention(q, k, v, *found)
        else:
            if membership is None:
                q_index = self._best(q, absent[0])
                membership = q_index, q_index if self.share_qk else self._best(k, absent[1])
            out = cluster_attention(
                q, k, v, *membership, causal=self.causal, absent=absent[1], epsilon=self.count_epsilon
            )
        self.commitment = None
        if self.training and self.router == "kmeans":
            # shared queries count twice, as queries and as keys
            keep_q, keep_k = (None if mask is None else ~mask for mask in absent)
            of_both = self.centroids.commitment(q, keep_q) + self.centroids.commitment(k, keep_k)
            self.commitment = self.beta * of_both
            self.centroids.update(q, keep_q)
            if not self.share_qk:
                self.centroids.update(k, keep_k)
        return out

    def _best(self, x: Tensor, absent: Tensor | None) -> Tensor:
        scores = self.scores(x.detach())
        if absent is not None:  # chosen only where a cluster wants more tokens than there are
            scores = scores.masked_fill(absent[:, None, :, None], -torch.inf)
        return best_members(scores, self.window)

    @property
    def recurrent(self) -> bool:
        return self.strict_causal and self.router != "random"

    def initial_state(self, batch: int, **options: object) -> RoutingState:
        """Empty rings of the local heads and of every cluster."""
        like, d, local = self.out_proj.weight, self.head_dim, self.heads - self.routed
        ring = like.new_zeros(batch, local, (self.flank + 1) * self.block, d)
        members = like.new_zeros(batch, self.routed, self.clusters, self.window, d)
        counts = torch.zeros(batch, self.routed, self.clusters, dtype=torch.long, device=like.device)
        return RoutingState(0, ring, ring.clone(), members, members.clone(), counts)

    def step(self, x_t: Tensor, state: RoutingState) -> tuple[Tensor, RoutingState]:
        """One token; the state's rings are written in place.

        Raises:
            InputError: if routing is not strictly causal.
        """
        if not self.recurrent:
            raise InputError("step needs strict_causal=True and a router that looks at the token")
        at, local, size = state.position, self.heads - self.routed, (self.flank + 1) * self.block
        q, k, v = (part[:, :, 0] for part in self.parts(x_t[:, None]))  # (batch, heads, d)
        state.local_keys[:, :, at % size], state.local_values[:, :, at % size] = k[:, :local], v[:, :local]
        first = max(0, (at // self.block - self.flank) * self.block)
        seen = torch.arange(first, at + 1, device=x_t.device)
        m = self.key_table.shape[1] // 2
        row = (seen - at).clamp(-m, m) + m
        keys = state.local_keys[:, :, seen % size] + self.key_table[:, row]
        values = state.local_values[:, :, seen % size] + self.value_table[:, row]
        outs = [((q[:, :local, None] @ keys.mT).softmax(-1) @ values)[:, :, 0]]
        r_q, r_k = (part[:, :, 0] for part in self.routing_parts(q[:, :, None], k[:, :, None]))
        q_cluster, k_cluster = (self.scores(part[:, :, None])[:, :, 0].argmax(-1) for part in (r_q, r_k))
        b = torch.arange(len(x_t), device=x_t.device)[:, None]
        h = torch.arange(self.routed, device=x_t.device)
        slot = state.counts[b, h, k_cluster] % self.window
        state.member_keys[b, h, k_cluster, slot] = r_k
        state.member_values[b, h, k_cluster, slot] = v[:, local:]
        state.counts[b, h, k_cluster] += 1
        there = torch.arange(self.window, device=x_t.device) < state.counts[b, h, q_cluster][..., None]
        logits = (state.member_keys[b, h, q_cluster] @ r_q[..., None])[..., 0].masked_fill(~there, -1e9)
        routed = (logits.softmax(-1)[..., None, :] @ state.member_values[b, h, q_cluster])[..., 0, :]
        outs.append(routed * there.any(-1, keepdim=True))
        return self.out_proj(torch.cat(outs, 1).flatten(1)), state._replace(position=at + 1)


def commitment_loss(network: nn.Module) -> Tensor:
    """Sum of the commitment losses of a network's routing layers in their last training pass.

    Raises:
        InputError: if none has run in training mode.
    """
    found = [getattr(m, "commitment", None) for m in network.modules() if isinstance(m, Mixer)]
    losses = [loss for loss in found if isinstance(loss, Tensor)]
    if not losses:
        raise InputError("commitment_loss finds no routing attention that has run in training mode")
    return torch.stack(losses).sum()


def routing_layers(
    layers: int, skip_first: int, channels: int, heads: int, routed: int, *sizes: int, **options: object
) -> list[RoutingAttention]:
    """Mixers of a stack whose first `skip_first` layers have local heads only.

    Args:
        layers: number of layers.
        skip_first: layers without routing.
        channels, heads, routed: as of `RoutingAttention`.
        sizes: its clusters and window.
        options: its other arguments.
    """
    return [
        RoutingAttention(channels, heads, routed if n >= skip_first else 0, *sizes, **options)  # type: ignore[arg-type]
        for n in range(layers)
    ]
