"""What every token mixer is: a module from grid tokens to grid tokens of the same shape.

A mixer says which of the four uses of attention in Zhang et al., 'CAB', 2022, arXiv 2210.07661, it
supports, and writes its row in the table of He and Kabic, 'A Unified View of Long-Sequence Models',
2023, arXiv 2302.06218: how its token-mixing matrix M in `Y = M(X) U(X)` comes about and what it costs.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from manyhead.errors import InputError

NONCAUSAL_SELF: Final = "noncausal self"
CAUSAL_SELF: Final = "causal self"
NONCAUSAL_CROSS: Final = "noncausal cross"
CAUSAL_CROSS: Final = "causal cross"
USES: Final = (NONCAUSAL_SELF, CAUSAL_SELF, NONCAUSAL_CROSS, CAUSAL_CROSS)


@dataclass(frozen=True)
class Traits:
    """One row of the unified table of token mixers.

    Args:
        structure: the form of the mixing matrix, such as 'dense positive' or 'banded Toeplitz'.
        input_dependent: whether the matrix depends on the input.
        learned: whether its entries, or the maps that produce them, are parameters.
        rows_sum_to_one: whether every row is an average.
        any_length: whether a trained mixer runs at another number of tokens.
        time: training time as a function of the tokens L, in words or symbols.
        memory: training memory likewise.
    """

    structure: str
    input_dependent: bool
    learned: bool
    rows_sum_to_one: bool
    any_length: bool
    time: str
    memory: str


class Mixer(nn.Module):
    """Map tokens `(batch, *grid, channels)` to tokens of the same shape.

    A subclass names its uses in `supports` (of the class, or set in the constructor where an argument
    decides) and implements `forward`; those that are recurrent also implement `initial_state` and
    `step`, those whose output is a weighted sum of values also `mixing_matrix`.
    """

    supports: frozenset[str] = frozenset({NONCAUSAL_SELF})
    traits: ClassVar[Traits | None] = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Mix the tokens of `x`; with `context`, let them look at the tokens of `context` instead.

        Args:
            x: tokens, `(batch, *grid, channels)`.
            context: tokens of another sequence, `(batch, *other_grid, channels)`, for cross-attention.

        Returns:
            Tokens of the shape of `x`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def require_self_mixing(self, context: Tensor | None) -> None:
        """Refuse a context where the mixer has no cross-attention.

        Raises:
            InputError: if `context` is given.
        """
        if context is not None:
            uses = ", ".join(use for use in USES if use in self.supports)
            raise InputError(
                f"{type(self).__name__} takes no context (it supports {uses}); "
                f"got one of shape {tuple(context.shape)}"
            )

    def initial_state(self, batch: int, **options: Any) -> Any:
        """State before the first token, for mixers with a recurrent form."""
        raise NotImplementedError(f"{type(self).__name__} has no recurrent form")

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Process one token `(batch, channels)` and return its output and the next state."""
        raise NotImplementedError(f"{type(self).__name__} has no recurrent form")

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Weights that the mixer applies to values, `(batch, heads, queries, keys)`, for small inputs."""
        raise NotImplementedError(f"{type(self).__name__} is not a weighted sum of values")

    @property
    def recurrent(self) -> bool:
        """Whether the mixer runs token by token (`initial_state` and `step`)."""
        return type(self).step is not Mixer.step

    @property
    def weighted(self) -> bool:
        """Whether the output is a weighted sum of values (`mixing_matrix`)."""
        return type(self).mixing_matrix is not Mixer.mixing_matrix

    def describe(self) -> str:
        """The mixer's row in the unified table, as a sentence."""
        if self.traits is None:
            return f"{type(self).__name__}: no description"
        traits = self.traits
        facts = [
            f"{traits.structure} mixing matrix",
            "input-dependent" if traits.input_dependent else "the same for every input",
            "learned" if traits.learned else "without parameters",
            "rows sum to one" if traits.rows_sum_to_one else "rows do not sum to one",
            f"time {traits.time}, memory {traits.memory}",
            "any length" if traits.any_length else "fixed length",
            "supports " + ", ".join(use for use in USES if use in self.supports),
        ]
        return f"{type(self).__name__}: " + "; ".join(facts)
