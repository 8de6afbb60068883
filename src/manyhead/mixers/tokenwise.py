"""No mixing at all: a gated feed-forward map of every token, with as many weights as attention.

Xue et al., 'Deconstructing Attention', 2025, arXiv 2510.11602, its 'mlp' variant.
"""

from torch import Tensor, nn
from torch.nn.functional import silu

from manyhead.mixers.base import CAUSAL_SELF, NONCAUSAL_SELF, Mixer, Traits


class TokenwiseMixer(Mixer):
    """`W_down (SiLU(W_gate x) * W_up x)`, in the place of a mixer.

    Args:
        channels: size of the last axis of the input.
        hidden: width between; None for the number at which the weights are as many as those of attention
            with biases on queries, keys and values, `4 channels^2 + 3 channels`.

    Shape:
        input and output `(..., channels)`.
    """

    supports = frozenset({CAUSAL_SELF, NONCAUSAL_SELF})
    traits = Traits("diagonal", True, True, False, True, "L", "L")

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or round((4 * channels + 3) / 3)
        self.gate = nn.Linear(channels, hidden, bias=False)
        self.up = nn.Linear(channels, hidden, bias=False)
        self.down = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        out: Tensor = self.down(silu(self.gate(x)) * self.up(x))
        return out

    def initial_state(self, batch: int, **options: object) -> tuple[()]:
        """Nothing: no token knows of another."""
        return ()

    def step(self, x_t: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return self(x_t), state
