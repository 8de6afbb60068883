"""Routers that say for every token which attention heads work, and how much each one counts.

Jin et al., 'MoH: Multi-Head Attention as Mixture-of-Head Attention', 2024, arXiv 2410.11842, section 3.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyhead.errors import InputError


class HeadGates(NamedTuple):
    """What a router decided.

    Args:
        gates: multiplier of every head's output, `(batch, tokens, heads)`, shared heads first.
        selected: which routed heads work, `(batch, tokens, routed)`.
        probability: softmax over the routed heads before selection, `(batch, tokens, routed)`.
    """

    gates: Tensor
    selected: Tensor
    probability: Tensor

    def balance_loss(self, scale: Literal["code", "paper"] = "code") -> Tensor:
        """Load balance `sum_i P_i f_i` over routed heads, times their number in the code's scaling.

        `f`, the share of tokens that selected a head, has no gradient. In perfect balance the code's
        form equals the number of selected heads.
        """
        share = self.selected.float().mean((0, 1))
        loss = (self.probability.mean((0, 1)) * share).sum()
        return loss * self.selected.shape[-1] if scale == "code" else loss


def _top(probability: Tensor, active: int) -> Tensor:
    """True at the `active` largest of the last axis."""
    index = probability.topk(active, -1).indices
    return torch.zeros_like(probability, dtype=torch.bool).scatter(-1, index, True)


class TwoStageRouter(nn.Module):
    """Weights of shared heads, of the selected of the others, and between both groups.

    Args:
        channels: features of a token.
        heads: all heads.
        shared: heads that always work, the first ones.
        active: how many of the other heads work for a token (K).
        gate_scale: 'code' multiplies every factor by its number of choices and renormalises over the
            selected heads, so that equal scores give gates of one; 'paper' is the text's bare product.

    Raises:
        InputError: if the numbers do not fit, or the scale is unknown.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        shared: int,
        active: int,
        gate_scale: Literal["code", "paper"] = "code",
    ) -> None:
        super().__init__()
        if not (0 <= shared <= heads and 0 <= active <= heads - shared and shared + active > 0):
            raise InputError(
                f"shared + active must lie in 1..{heads} with neither below zero, got {shared} and {active}"
            )
        if gate_scale not in ("code", "paper"):
            raise InputError(f"gate_scale is 'code' or 'paper', got {gate_scale!r}")
        if shared < heads and active == 0:
            raise InputError(f"active=0 needs shared={heads}, all heads: the others would never work")
        self.heads, self.shared, self.active, self.gate_scale = heads, shared, active, gate_scale
        routed = heads - shared
        self.to_shared = nn.Linear(channels, shared, False) if shared > 1 else None
        self.to_routed = nn.Linear(channels, routed, False) if routed else None
        self.to_groups = nn.Linear(channels, 2, False) if shared and routed else None

    def forward(self, x: Tensor, query: Tensor | None = None) -> HeadGates:
        """Gate the tokens `(batch, tokens, channels)`; queries are not looked at."""
        code = self.gate_scale == "code"
        one = x.new_ones(*x.shape[:-1], 1)
        a_shared = a_routed = one
        if self.to_groups is not None:
            a = self.to_groups(x).softmax(-1) * (2 if code else 1)
            a_shared, a_routed = a[..., :1], a[..., 1:]
        parts = []
        if self.shared:
            p = one if self.to_shared is None else self.to_shared(x).softmax(-1)
            parts.append(a_shared * p * (self.shared if code else 1))
        probability = x.new_zeros(*x.shape[:-1], 0)
        selected = probability.bool()
        if self.to_routed is not None:
            probability = self.to_routed(x).softmax(-1)
            selected = _top(probability, self.active)
            kept = probability * selected
            if code:
                floor = torch.finfo(kept.dtype).eps
                kept = kept / kept.sum(-1, keepdim=True).clamp_min(floor) * self.active
            parts.append(a_routed * kept)
        return HeadGates(torch.cat(parts, -1), selected, probability)


class QueryNormRouter(nn.Module):
    """Choose heads by the length of their queries: no parameters, gates of zero or one.

    This is the form in which a trained multi-head model continues as MoH. Logits are the L2 norms of the
    routed heads' queries before rotation over their standard deviation; in training the gates carry the
    softmax's gradient straight through (`m + p - stop(p)`).

    Args:
        heads: all heads.
        shared: heads that always work, the first ones.
        active: how many of the others work for a token.

    Raises:
        InputError: if the numbers do not fit.
    """

    def __init__(self, heads: int, shared: int, active: int) -> None:
        super().__init__()
        if shared < 0 or not 0 < active <= heads - shared or heads - shared < 2:
            raise InputError(
                f"query norms choose active >= 1 of at least two heads that are not shared; "
                f"got heads={heads}, shared={shared}, active={active}"
            )
        self.heads, self.shared, self.active = heads, shared, active

    def forward(self, x: Tensor, query: Tensor) -> HeadGates:
        """Gate by the queries `(batch, heads, tokens, head_dim)`."""
        norm = query[:, self.shared :].norm(dim=-1).transpose(1, 2)  # (batch, tokens, routed)
        probability = (norm / norm.std(-1, keepdim=True)).softmax(-1)
        selected = _top(probability, self.active)
        gates = selected.to(query.dtype)
        if self.training:
            gates = gates + (probability - probability.detach())
        return HeadGates(
            torch.cat([gates.new_ones(*gates.shape[:2], self.shared), gates], -1), selected, probability
        )
