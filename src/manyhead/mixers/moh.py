"""Mixture of heads: multi-head attention as a sum over heads that every token weighs and thins out.

Jin et al., 'MoH: Multi-Head Attention as Mixture-of-Head Attention', 2024, arXiv 2410.11842. With the
output matrix in row blocks, `MHA = sum_i H_i W_i`; here `sum_i g_i(t) H_i(t) W_i` with a router's gates,
all but a few of them zero. The released code computes all heads and multiplies by zero; `sparse=True`
computes only what is selected.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.kernels.selected import from_heads, pack, packed_attention, to_heads
from manyhead.layers.head_gates import HeadGates, QueryNormRouter, TwoStageRouter
from manyhead.layers.key_value_cache import KeyValueCache
from manyhead.mixers.base import Mixer, Traits
from manyhead.mixers.multihead import MultiHeadAttention


class MixtureOfHeads(Mixer):
    """Attention of which every token uses the shared heads and its `active` best of the others.

    Args:
        attention: the multi-head attention to gate, new or trained (its parameters are used, not copied).
        shared: heads that always work, the first ones.
        active: how many of the others work for a token; the share of heads at work is
            `(shared + active) / heads`.
        router: 'two_stage' learns maps from the token to gates; 'query_norm' chooses the heads with the
            longest queries and adds no parameters, for continuing a trained model.
        gate_scale: of the two-stage router, see `TwoStageRouter`.
        sparse: compute selected (token, head) pairs only. Training the query-norm router's
            straight-through gradient needs the outputs of all heads, and computes them.

    Shape:
        input and output `(batch, tokens, channels)`.

    Raises:
        InputError: if the numbers of heads do not fit, or the router is unknown.
    """

    traits = Traits("dense positive, rows of heads left out,", True, True, False, True, "a L^2", "L")

    def __init__(
        self,
        attention: MultiHeadAttention,
        shared: int,
        active: int,
        *,
        router: Literal["two_stage", "query_norm"] = "two_stage",
        gate_scale: Literal["code", "paper"] = "code",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.sparse = attention.plain("MixtureOfHeads"), sparse
        self.supports = attention.supports
        self.router: TwoStageRouter | QueryNormRouter
        if router == "two_stage":
            self.router = TwoStageRouter(attention.channels, attention.heads, shared, active, gate_scale)
        elif router == "query_norm":
            self.router = QueryNormRouter(attention.heads, shared, active)
        else:
            raise InputError(f"router is 'two_stage' or 'query_norm', got {router!r}")
        self.decided: HeadGates | None = None

    def gates(self, x: Tensor) -> HeadGates:
        """What the router decides for the tokens `x`."""
        decided: HeadGates = self.router(x, self.attention.queries(x))
        return decided

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        attention = self.attention
        # the query-norm router looks at all queries, and trains through all outputs
        wants_queries = isinstance(self.router, QueryNormRouter)
        q = attention.queries(x) if wants_queries or not self.sparse else None
        decided: HeadGates = self.router(x, q)
        self.decided = decided if self.training else None
        k, v = attention.keys_values(attention.tokens_of_keys(x, context))
        k, v = attention.repeat(attention.rotate(k)), attention.repeat(v)
        if self.sparse and not (wants_queries and self.training):
            return self._selected(x, k, v, decided)
        q = attention.rotate(attention.queries(x) if q is None else q)
        out = scaled_dot_product_attention(q, k, v, is_causal=attention.masked)
        return attention.merge(out * decided.gates.transpose(1, 2)[..., None])

    def _selected(self, x: Tensor, k: Tensor, v: Tensor, decided: HeadGates) -> Tensor:
        """Project, attend and merge the selected (token, head) pairs only."""
        attention, shared = self.attention, self.router.shared
        to_q, to_out, dim = attention.q_proj, attention.out_proj, attention.head_dim
        width = shared * dim
        y: Tensor | None = to_out.bias
        if shared:
            bias = None if to_q.bias is None else to_q.bias[:width]
            q = linear(x, to_q.weight[:width], bias).unflatten(-1, (shared, dim))
            q = attention.rotate(attention.q_norm(q).transpose(1, 2))
            out = scaled_dot_product_attention(q, k[:, :shared], v[:, :shared], is_causal=attention.masked)
            gated = out.transpose(1, 2) * decided.gates[..., :shared, None]
            # no view, so that what the other heads say can be added in place
            y = linear(gated.flatten(2).flatten(0, 1), to_out.weight[:, :width], y)
        if self.router.active:
            pairs = pack(decided.selected)
            bias = None if to_q.bias is None else to_q.bias[width:]
            q = attention.q_norm(to_heads(x.flatten(0, 1), to_q.weight[width:], bias, pairs))
            q = attention.rotate_at(q, pairs.places)
            out = packed_attention(q, k[:, shared:], v[:, shared:], pairs, causal=attention.masked)
            by_head = decided.selected.permute(2, 0, 1)
            gates = decided.gates[..., shared:].permute(2, 0, 1)[by_head]
            if not shared:
                y = x.new_zeros(x.shape[:2].numel(), len(to_out.weight)) + (0 if y is None else y)
            assert y is not None
            y = from_heads(out * gates[:, None], to_out.weight[:, width:], pairs, y)
        assert y is not None  # shared + active > 0
        return y.view_as(x)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        return self.attention.mixing_matrix(x) * self.gates(x).gates.transpose(1, 2)[..., None]

    @property
    def recurrent(self) -> bool:
        return self.attention.recurrent

    def initial_state(self, batch: int, **options: int) -> KeyValueCache:
        """An empty cache for `capacity` tokens."""
        return self.attention.initial_state(batch, **options)

    def step(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        q, out, state = self.attention.advance(x_t[:, None], state)
        decided: HeadGates = self.router(x_t[:, None], q)
        return self.attention.merge(out * decided.gates.transpose(1, 2)[..., None])[:, 0], state


def balance_loss(network: nn.Module, scale: Literal["code", "paper"] = "code") -> Tensor:
    """Mean load-balance loss of a network's mixtures of heads in their last training pass.

    Add 0.01 of it to the task's loss, as the paper does everywhere. Layers that route nothing count not.

    Raises:
        InputError: if no mixture of heads with routed heads has run in training mode.
    """
    losses = [
        module.decided.balance_loss(scale)
        for module in network.modules()
        if isinstance(module, MixtureOfHeads) and module.decided is not None and module.router.active
    ]
    if not losses:
        raise InputError("balance_loss finds no mixture of heads that has run in training mode")
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total / len(losses)


def continue_as_mixture(
    network: nn.Module,
    shared: int,
    active: int,
    *,
    router: Literal["two_stage", "query_norm"] = "query_norm",
    sparse: bool = False,
) -> int:
    """Turn every multi-head attention inside a trained network into a mixture of its heads, in place.

    A two-stage router starts at zero weights: the gates of working heads are one, so that with all heads
    active the network computes what it did.

    Returns:
        How many layers were turned.

    Raises:
        InputError: if the network has no multi-head attention inside.
    """
    found = [
        (parent, name, child)
        for parent in network.modules()
        if not isinstance(parent, MixtureOfHeads)
        for name, child in parent.named_children()
        if isinstance(child, MultiHeadAttention)
    ]
    if not found:
        raise InputError(f"{type(network).__name__} has no MultiHeadAttention inside")
    for parent, name, child in found:
        mixture = MixtureOfHeads(child, shared, active, router=router, sparse=sparse).to(child.q_proj.weight)
        for weight in mixture.router.parameters():
            nn.init.zeros_(weight)
        setattr(parent, name, mixture.train(child.training))
    return len(found)
