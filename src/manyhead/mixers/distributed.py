"""Multi-head attention of a sequence that is spread over processes.

He and Kabic, 'A Unified View of Long-Sequence Models towards Modeling Million-Scale Dependencies', 2023,
arXiv 2302.06218: the sequence is sharded, queries stay, keys and values travel. The exact ring is that of
Li et al., 2021, arXiv 2105.13120; every process works in tiles, so no row of scores is stored.
"""

from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.kernels.ring import Engine, ring_attend
from manyhead.kernels.rings import Ring
from manyhead.kernels.shards import Layout
from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, Traits
from manyhead.mixers.neighborhood import check_heads, split_heads
from manyhead.pattern import Causal, Everything, Pattern


class DistributedAttention(Mixer):
    """Exact attention over all tokens of a ring of processes, on this process's shard.

    Args:
        channels: size of the last axis of the input.
        heads: number of heads, a divisor of `channels`.
        tokens: length of the whole sequence.
        pattern: who sees whom on it.
        ring: the processes; the default process group, or this process alone, if left out.
        layout: how `shards.shard` has spread the tokens.
        engine: as of `ring_attend`.

    Shape:
        input and output `(batch, tokens of this process, channels)`.

    Gradients of parameters are those of this process's tokens; add them up with `sum_gradients`.
    """

    traits = Traits("dense positive, sharded", True, True, True, True, "L^2 / N", "L / N")

    def __init__(
        self,
        channels: int,
        heads: int,
        tokens: int,
        pattern: Pattern | None = None,
        *,
        ring: Ring | None = None,
        layout: Layout = "zigzag",
        engine: Engine = "native",
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if tokens < 1:
            raise InputError(f"tokens is at least 1, got {tokens}")
        self.heads, self.tokens, self.ring, self.layout, self.engine = heads, tokens, ring, layout, engine
        self.pattern = Everything() if pattern is None else pattern
        self.supports = frozenset({CAUSAL_SELF if self.pattern == Causal() else NONCAUSAL_SELF})
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        q, k, v = split_heads(self.qkv(x), self.heads)
        mixed = ring_attend(
            q, k, v, self.pattern, self.tokens, ring=self.ring, layout=self.layout, engine=self.engine
        )
        out: Tensor = self.proj(mixed.flatten(2))
        return out
