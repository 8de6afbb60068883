"""One layer of a transformer: a mixer, cross-attention where asked for, and a feed-forward part.

Normalisation first as in Xiong et al., 2020, arXiv 2002.04745; both parts side by side as in GPT-NeoX,
Black et al., 2022, arXiv 2204.06745; gated feed-forward layers as in Shazeer, 2020, arXiv 2002.05202.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from manyhead.errors import InputError
from manyhead.mixers.base import Mixer

Norm = Literal["layer", "rms"]
Arrangement = Literal["pre", "post", "parallel"]
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]  # a token (batch, channels) and a state, both onwards
Activation = Literal["gelu", "relu", "swiglu", "geglu"]


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity, or a gate, between.

    Args:
        channels: size of the last axis.
        hidden: width between the maps.
        activation: 'gelu' and 'relu' apply it; 'swiglu' and 'geglu' multiply a second map by it.
    """

    def __init__(self, channels: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "gelu": gelu,
            "relu": relu,
            "swiglu": silu,
            "geglu": gelu,
        }
        if activation not in functions:
            raise InputError(f"activation is one of {', '.join(functions)}; got {activation!r}")
        self.gated, self.function = activation.endswith("glu"), functions[activation]
        self.wide = nn.Linear(channels, hidden * (2 if self.gated else 1))
        self.narrow = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        if self.gated:
            gate, x = x.chunk(2, -1)
            x = self.function(gate) * x
        else:
            x = self.function(x)
        out: Tensor = self.narrow(x)
        return out


def normalization(kind: Norm, channels: int) -> nn.Module:
    """Layer or root-mean-square normalisation of the last axis."""
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "layer": nn.LayerNorm,
        "rms": lambda size: nn.RMSNorm(size, eps=1e-6),
    }
    if kind not in kinds:
        raise InputError(f"norm is one of {', '.join(kinds)}; got {kind!r}")
    return kinds[kind](channels)


def extend_mixer(mixer: Mixer, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Process the next tokens `(batch, tokens, channels)`, by the mixer's `extend` or step by step."""
    extend: Callable[[Tensor, Any], tuple[Tensor, Any]] | None = getattr(mixer, "extend", None)
    if extend is not None:
        return extend(x, state)
    return by_steps(mixer.step, x, state)


def by_steps(step: Step, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Process tokens `(batch, tokens, channels)` one by one."""
    steps = []
    for x_t in x.unbind(1):
        y_t, state = step(x_t, state)
        steps.append(y_t)
    return torch.stack(steps, 1), state


class Remembered(NamedTuple):
    """What a cross-attention keeps of a context, so that later queries need not read it again."""

    memory: Any


def remembered(cross: Mixer | None, context: Tensor) -> Tensor | Remembered:
    """A context as `Layer.extend` takes it: remembered where the cross-attention can, else as it is."""
    remember: Callable[[Tensor], Any] | None = getattr(cross, "remember", None)
    return context if remember is None else Remembered(remember(context))


def look(cross: Mixer, x: Tensor, context: Tensor | Remembered | None) -> Tensor:
    """Cross-attention to a context, remembered or not."""
    if isinstance(context, Remembered):
        recall: Callable[[Tensor, Any], Tensor] = cross.recall  # type: ignore[assignment]
        return recall(x, context.memory)
    out: Tensor = cross(x, context)
    return out


class Layer(nn.Module):
    """A mixer, cross-attention where asked for, and a feed-forward part, each with a residual.

    Args:
        channels: size of the last axis.
        mixer: mixes the tokens.
        cross: lets them look at a context; None for none.
        feed_forward: works on every token alone.
        norm: kind of normalisation.
        arrangement: normalise before each part, after it, or before two that run side by side.
        dropout: rate on the output of each part while training.
    """

    def __init__(
        self,
        channels: int,
        mixer: Mixer,
        feed_forward: nn.Module,
        *,
        cross: Mixer | None = None,
        norm: Norm = "layer",
        arrangement: Arrangement = "pre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if arrangement not in ("pre", "post", "parallel"):
            raise InputError(f"arrangement is pre, post or parallel; got {arrangement!r}")
        self.mixer, self.cross, self.feed_forward = mixer, cross, feed_forward
        self.arrangement = arrangement
        self.norm_mixer, self.norm_feed = normalization(norm, channels), normalization(norm, channels)
        self.norm_cross = normalization(norm, channels) if cross is not None else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Tensor:
        return self._around(x, context, lambda t: self.mixer(t, **options))

    def extend(
        self, x: Tensor, state: Any, context: Tensor | Remembered | None = None, *, step: Step | None = None
    ) -> tuple[Tensor, Any]:
        """Process the next tokens and return the mixer's next state; `step` replaces the mixer's own."""
        after = [state]

        def mix(t: Tensor) -> Tensor:
            if step is None:
                y, after[0] = extend_mixer(self.mixer, t, state)
            else:
                y, after[0] = by_steps(step, t, state)
            return y

        return self._around(x, context, mix), after[0]

    def _around(
        self, x: Tensor, context: Tensor | Remembered | None, mix: Callable[[Tensor], Tensor]
    ) -> Tensor:
        drop, cross = self.dropout, self.cross
        if self.arrangement == "parallel":
            y: Tensor = x + drop(mix(self.norm_mixer(x))) + drop(self.feed_forward(self.norm_feed(x)))
            if cross is not None and self.norm_cross is not None:
                y = y + drop(look(cross, self.norm_cross(x), context))
            return y
        if self.arrangement == "pre":
            x = x + drop(mix(self.norm_mixer(x)))
            if cross is not None and self.norm_cross is not None:
                x = x + drop(look(cross, self.norm_cross(x), context))
            y = x + drop(self.feed_forward(self.norm_feed(x)))
            return y
        x = self.norm_mixer(x + drop(mix(x)))
        if cross is not None and self.norm_cross is not None:
            x = self.norm_cross(x + drop(look(cross, x, context)))
        out: Tensor = self.norm_feed(x + drop(self.feed_forward(x)))
        return out
