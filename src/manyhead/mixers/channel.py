"""Channel group attention: every channel is a token whose features are its whole map.

Ding et al., 'DaViT', 2022, arXiv 2204.03645, section 3.2. Per group of `c` channels
`A = softmax(scale Q^T K)` is a `c x c` matrix over channels, summed over all tokens, and
`Y = (A V^T)^T`. The released code names the three differently (`A = softmax(scale K^T V)`, applied
to `Q`), the same function with renamed weights.
"""

from typing import Literal

from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.mixers.base import NONCAUSAL_SELF, Mixer, Traits
from manyhead.mixers.neighborhood import check_heads, split_heads


class ChannelGroupAttention(Mixer):
    """Attention between the channels of each group, over all tokens of the grid.

    Args:
        channels: size of the last axis of the input.
        groups: number of channel groups, a divisor of `channels`.
        naming: 'code' for weights of the released networks, 'paper' for the paper's letters.
        scale: 'channels' for `c ** -0.5` with `c` channels of a group, 'tokens' for `L ** -0.5` with
            `L` tokens, which does not change with the resolution.

    Shape:
        input and output `(batch, *grid, channels)`.

    Raises:
        InputError: if groups do not divide the channels, or an option is unknown.
    """

    supports = frozenset({NONCAUSAL_SELF})
    traits = Traits("none over tokens: channels are mixed by", True, True, False, True, "L c", "c^2")

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        naming: Literal["code", "paper"] = "code",
        scale: Literal["channels", "tokens"] = "channels",
    ) -> None:
        super().__init__()
        check_heads(channels, groups)
        if naming not in ("code", "paper"):
            raise InputError(f"naming is 'code' or 'paper', got {naming!r}")
        if scale not in ("channels", "tokens"):
            raise InputError(f"scale is 'channels' or 'tokens', got {scale!r}")
        self.groups, self.naming, self.scale = groups, naming, scale
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is compared, with what, and what is mixed, each `(batch, groups, tokens, c)`."""
        q, k, v = (part.transpose(1, 2) for part in split_heads(self.qkv(x.flatten(1, -2)), self.groups))
        return (k, v, q) if self.naming == "code" else (q, k, v)

    def channel_weights(self, x: Tensor) -> Tensor:
        """The `(batch, groups, c, c)` weights between channels."""
        left, right, _ = self._parts(x)
        factor = (left.shape[-1] if self.scale == "channels" else left.shape[-2]) ** -0.5
        weights: Tensor = (left.transpose(-1, -2) @ right * factor).softmax(-1)
        return weights

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        mixed = self._parts(x)[2] @ self.channel_weights(x).transpose(-1, -2)  # (batch, groups, tokens, c)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(-2).reshape(x.shape))
        return out
