"""ABC: attention with bounded-memory control, a fixed number of slots that softly collect the context.

Peng et al., 'ABC: Attention with Bounded-memory Control', 2022, arXiv 2110.02488, with learned slot
vectors as in Zhang et al., 'CAB', 2022, arXiv 2210.07661.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.prefix_softmax import PrefixState, combine, prefix_softmax
from manyhead.mixers.base import USES, Traits
from manyhead.mixers.heads import HeadMixer

State = tuple[PrefixState, PrefixState]


class BoundedMemoryAttention(HeadMixer):
    """Attend to `slots` averages of keys and values; where causal, to their running averages.

    Args:
        channels, heads, causal, cross, bias: as in `HeadMixer`.
        slots: averages kept.
        released: compute causal self-attention as CAB's code does, where a slot holds only the present
            token, weighted by its share of the past; for reproducing its results.
    """

    supports = frozenset(USES)
    traits = Traits("positive, rank slots", True, True, True, True, "L r", "L r")

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        slots: int = 16,
        released: bool = False,
    ) -> None:
        super().__init__(channels, heads, causal=causal, cross=cross, bias=bias)
        if slots < 1:
            raise InputError(f"slots is at least 1, got {slots}")
        self.slots, self.released = slots, released
        self.compress_k = nn.Parameter(torch.randn(self.head_dim, slots) * self.head_dim**-0.5)
        self.compress_v = nn.Parameter(torch.randn(self.head_dim, slots) * self.head_dim**-0.5)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        value: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Mix; `padding` `(batch, keys)` marks absent keys, `value` gives the values other tokens."""
        q, k, v = self.project(x, context, value)
        if self.causal and not self.cross:
            slots_k, slots_v = (
                self._running(t, c, padding) for t, c in ((k, self.compress_k), (v, self.compress_v))
            )
            return self.merge(self._read(q, slots_k, slots_v))
        slots_k, slots_v = (
            self._masked(t @ c, padding).softmax(2).mT @ t
            for t, c in ((k, self.compress_k), (v, self.compress_v))
        )
        return self.merge(scaled_dot_product_attention(q, slots_k, slots_v))

    def initial_state(self, batch: int, **options: object) -> State:
        """Empty slots of keys and values: (m, u, w) of each head and slot."""
        m = self.compress_k.new_full((batch, self.heads, self.slots), -torch.inf)
        empty = PrefixState(m, torch.zeros_like(m), m.new_zeros(*m.shape, self.head_dim))
        return empty, empty

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.recurrent or self.released:
            raise InputError("step needs causal=True, cross=False and released=False")
        q, k, v = self.project(x_t[:, None])
        after = []
        for t, c, old in ((k, self.compress_k, state[0]), (v, self.compress_v, state[1])):
            s = (t @ c)[:, :, 0]  # (batch, heads, slots)
            after.append(combine(old, PrefixState(s, torch.ones_like(s), t.expand(-1, -1, self.slots, -1))))
        keys, values = ((a.w / a.u[..., None])[..., None, :] for a in after)
        return self.merge(self._read(q, keys, values))[:, 0], (after[0], after[1])

    def _running(self, t: Tensor, compress: Tensor, padding: Tensor | None) -> Tensor:
        """Slots after every token, `(batch, heads, slots, tokens, head_dim)`."""
        s = self._masked(t @ compress, padding).mT
        values = t[:, :, None].expand(-1, -1, self.slots, -1, -1)
        if self.released:
            return (s - torch.logcumsumexp(s, -1)).exp()[..., None] * values
        return prefix_softmax(s, values)[0]

    def _read(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each query reads the slots of its own time."""
        logits = torch.einsum("bhtd,bhrtd->bhtr", q, keys) * self.head_dim**-0.5
        return torch.einsum("bhtr,bhrtd->bhtd", logits.softmax(-1), values)

    @staticmethod
    def _masked(s: Tensor, padding: Tensor | None) -> Tensor:
        return s if padding is None else s.masked_fill(padding[:, None, :, None], -torch.inf)
