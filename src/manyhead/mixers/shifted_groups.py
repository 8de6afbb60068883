"""Group attention with some heads shifted by half a group and with sinks that every token sees.

Zhang, 'SinkLoRA', 2024, arXiv 2406.05678 (SF-Attn: a quarter of the heads shifted, four sinks), after
S2-Attn of Chen et al., 'LongLoRA', 2023, arXiv 2309.12307 (half of the heads shifted, no sinks). The
released code holds S2-Attn only; SF-Attn follows the text.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.mixers.base import Mixer, Traits
from manyhead.mixers.multihead import MultiHeadAttention


def group_mask(
    tokens: int,
    group: int,
    sinks: int,
    *,
    shifted: bool,
    causal: bool,
    mask_wrap: bool,
    sink_rows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Which key slots a query of each group sees, and which tokens the groups hold.

    Args:
        tokens: length of the sequence.
        group: tokens of a group, a divisor of it.
        sinks: first tokens that all see.
        shifted: whether groups begin half a group later, the last one going round to the start.
        causal: whether a query sees its past only.
        mask_wrap: in the group that goes round, keep both sides apart. False is the released code, whose
            first tokens see the last ones.

    Returns:
        Mask `(groups, group, sinks + group)`, True where seen, and positions `(groups, group)`.
    """
    at = torch.arange(tokens).roll(-(group // 2) if shifted else 0).view(-1, group)
    inside = at[:, :, None] >= at[:, None] if causal else torch.ones(len(at), group, group, dtype=torch.bool)
    if shifted:
        same_side = (at < group // 2)[-1]
        if mask_wrap:
            inside[-1] &= same_side[:, None] == same_side
        elif causal:  # order inside the group, as the released code has it
            inside[-1] = torch.ones(group, group, dtype=torch.bool).tril()
    # a sink inside the group stands among the group's own keys where it is seen there
    sink = torch.arange(sinks)
    own = at[:, :, None] == sink  # (groups, group, sinks)
    there = (inside[..., None] & own[:, None]).any(2)
    of_sink = ~there
    if causal:
        of_sink = of_sink & (at[:, :, None] >= sink)
    return torch.cat([of_sink, inside], -1), at


class ShiftedGroupAttention(Mixer):
    """Attention inside groups of tokens, in place of full attention while a model learns longer contexts.

    Args:
        attention: the model's attention; its parameters are used, not copied.
        group: tokens of a group; None for a quarter of the sequence.
        shift_frac: share of the heads, the last ones, whose groups begin half a group later: 0.25 is
            SF-Attn, 0.5 S2-Attn, 0 plain groups.
        sinks: first tokens that every token sees; 4 is SF-Attn, 0 S2-Attn.
        mask_wrap: keep both ends of the sequence apart in the group that goes round.
        sink_rows: let sinks see all tokens, in attention both ways.

    Shape:
        input and output `(batch, tokens, channels)`, tokens a multiple of the group.

    Raises:
        InputError: if numbers do not fit, or causal attention is to have rows of sinks.
    """

    traits = Traits(
        "block-diagonal with a few full columns,", True, True, True, True, "L (G + s)", "L (G + s)"
    )

    def __init__(
        self,
        attention: MultiHeadAttention,
        group: int | None = None,
        *,
        shift_frac: float = 0.25,
        sinks: int = 4,
        mask_wrap: bool = True,
        sink_rows: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= shift_frac <= 1 or sinks < 0:
            raise InputError(
                f"shift_frac lies in 0..1 and sinks is not negative, got {shift_frac} and {sinks}"
            )
        if attention.cross:
            raise InputError("groups of one sequence need self-attention: build it with cross=False")
        if sink_rows and attention.causal:
            raise InputError(
                "sink_rows=True shows the sinks their future: it needs attention that is not causal"
            )
        self.attention, self.group, self.sinks = attention.plain("ShiftedGroupAttention"), group, sinks
        self.shifted = round(attention.heads * shift_frac)
        self.mask_wrap, self.sink_rows = mask_wrap, sink_rows
        self.supports = attention.supports

    def size(self, tokens: int) -> int:
        """Tokens of a group in a sequence.

        Raises:
            InputError: if groups do not divide the sequence, or a shift has no half group.
        """
        group = self.group or tokens // 4
        if group < 1 or tokens % group or (self.shifted and group % 2):
            raise InputError(
                f"groups divide the sequence and have an even size where heads are shifted; "
                f"got groups of {group} in {tokens} tokens"
            )
        return group

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        q, k, v = self.attention.parts(x)
        plain = self.attention.heads - self.shifted
        outs = [self._heads(*(part[:, :plain] for part in (q, k, v)), shifted=False)] if plain else []
        if self.shifted:
            outs.append(self._heads(*(part[:, plain:] for part in (q, k, v)), shifted=True))
        out = torch.cat(outs, 1)
        if self.sink_rows and self.sinks:
            rows = scaled_dot_product_attention(q[:, :, : self.sinks], k, v)
            out = torch.cat([rows, out[:, :, self.sinks :]], 2)
        return self.attention.merge(out)

    def _mask(self, tokens: int, shifted: bool) -> tuple[Tensor, Tensor]:
        return group_mask(
            tokens,
            self.size(tokens),
            self.sinks,
            shifted=shifted,
            causal=self.attention.causal,
            mask_wrap=self.mask_wrap,
        )

    def _heads(self, q: Tensor, k: Tensor, v: Tensor, *, shifted: bool) -> Tensor:
        """Heads with the same groups, `(batch, heads, tokens, head_dim)`."""
        mask, at = self._mask(q.shape[2], shifted)
        flat, back = at.flatten(), at.flatten().argsort()
        q, k_in, v_in = (
            part[:, :, flat].reshape(*part.shape[:2], *at.shape, part.shape[-1]) for part in (q, k, v)
        )
        wide = (-1, -1, len(at), -1, -1)
        keys = torch.cat([k[:, :, None, : self.sinks].expand(wide), k_in], 3)
        values = torch.cat([v[:, :, None, : self.sinks].expand(wide), v_in], 3)
        out = scaled_dot_product_attention(q, keys, values, attn_mask=mask.to(q.device))
        return out.flatten(2, 3)[:, :, back]

    def mixing_matrix(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        q, k, _ = self.attention.parts(x)
        seen = torch.zeros(self.attention.heads, tokens, tokens, dtype=torch.bool)
        plain = self.attention.heads - self.shifted
        for heads, shifted in ((slice(0, plain), False), (slice(plain, None), True)):
            mask, at = self._mask(tokens, shifted)
            for n, row in enumerate(at):
                of_group = torch.zeros(len(row), tokens, dtype=torch.bool)
                of_group[:, row] = mask[n, :, self.sinks :]
                of_group[:, : self.sinks] |= mask[n, :, : self.sinks]
                seen[heads, row] = of_group
        if self.sink_rows:
            seen[:, : self.sinks] = True
        logits = q @ k.mT * self.attention.head_dim**-0.5
        weights: Tensor = logits.masked_fill(~seen.to(x.device), -torch.inf).softmax(-1)
        return weights
