"""No mixing at all: what a network can do without attention (Zhang et al., 'CAB', 2022, arXiv 2210.07661)."""

import torch
from torch import Tensor

from manyhead.mixers.base import CAUSAL_CROSS, NONCAUSAL_CROSS, USES, Mixer, Traits
from manyhead.mixers.heads import use_of


class NoMixing(Mixer):
    """Zeros, so that beside the residual path nothing comes from other tokens.

    Args:
        channels, heads: for the sake of the constructor that mixers share.
        causal, cross: the use.

    Shape:
        input and output `(batch, tokens, channels)`.
    """

    supports = frozenset(USES)
    traits = Traits("zero", False, False, False, True, "1", "1")

    def __init__(self, channels: int, heads: int = 1, *, causal: bool = False, cross: bool = False) -> None:
        super().__init__()
        self.supports = frozenset({use_of(causal, cross)})

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if not self.supports & {NONCAUSAL_CROSS, CAUSAL_CROSS}:
            self.require_self_mixing(context)
        return torch.zeros_like(x) * x

    def initial_state(self, batch: int, **options: object) -> None:
        """There is nothing to remember."""

    def step(self, x_t: Tensor, state: None) -> tuple[Tensor, None]:
        return self.forward(x_t), None
