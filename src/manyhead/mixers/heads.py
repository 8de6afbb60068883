"""What attentions with heads share: the four linear maps and the use that one of them is built for.

The four uses are those of Zhang et al., 'CAB', 2022, arXiv 2210.07661, section 3: keys of the same
sequence or of another, and outputs that see all positions or those before them only.
"""

from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.mixers.base import (
    CAUSAL_CROSS,
    CAUSAL_SELF,
    NONCAUSAL_CROSS,
    NONCAUSAL_SELF,
    USES,
    Mixer,
)


def use_of(causal: bool, cross: bool) -> str:
    """The name of one of the four uses of attention."""
    return {
        (False, False): NONCAUSAL_SELF,
        (True, False): CAUSAL_SELF,
        (False, True): NONCAUSAL_CROSS,
        (True, True): CAUSAL_CROSS,
    }[causal, cross]


def absent(padding: Tensor, heads: int, released: bool = False) -> Tensor:
    """Which keys are absent for each head, `(batch, heads, keys)`.

    Args:
        padding: True where a key is absent, `(batch, keys)`.
        heads: number of heads.
        released: repeat the masks head by head where the heads are ordered sample by sample, as CAB's
            code does in three of its attentions: row r of the `batch * heads` rows gets the mask of
            sample r mod batch.
    """
    batch = len(padding)
    if not released:
        return padding[:, None].expand(-1, heads, -1)
    return padding.repeat(heads, 1).reshape(batch, heads, -1)


class HeadMixer(Mixer):
    """An attention with heads, built for one use.

    `supports` of the class is its row in the support matrix; that of an instance is its one use. In
    causal cross-attention the whole context is visible; causal says that outputs are asked for one by one.

    Args:
        channels: size of the last axis of the input.
        heads: attention heads; a divisor of `channels` and `qk_channels`.
        causal: output i depends on inputs up to i only.
        cross: keys and values come from a context.
        bias: whether the linear maps have biases.
        out_bias: whether the last of them has one; `bias` if left out.
        qk_channels: channels of all queries together; `channels` if left out.
        kv_heads: key and value heads, a divisor of `heads`; as many if left out.
        head_dim: size of a head's queries, keys and values, in place of what `heads` makes of the channels.

    Shape:
        input and output `(batch, tokens, channels)`; context `(batch, other tokens, channels)`.

    Raises:
        InputError: if `heads` or `kv_heads` is no divisor, or the mixer has no form for the use.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        bias: bool = True,
        out_bias: bool | None = None,
        qk_channels: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        qk_channels, kv_heads = qk_channels or channels, kv_heads or heads
        if heads < 1 or (head_dim is None and (channels % heads or qk_channels % heads)):
            raise InputError(f"heads must divide channels, got {channels} channels and {heads} heads")
        if heads % kv_heads:
            raise InputError(f"kv_heads must divide heads, got {kv_heads} of {heads}")
        use = use_of(causal, cross)
        if use not in type(self).supports:
            known = ", ".join(u for u in USES if u in type(self).supports)
            raise InputError(f"{type(self).__name__} has no {use} form; it supports {known}")
        self.supports = frozenset({use})
        self.channels, self.heads, self.kv_heads = channels, heads, kv_heads
        self.causal, self.cross = causal, cross
        self.head_dim, self.value_dim = head_dim or qk_channels // heads, head_dim or channels // heads
        self.q_proj = nn.Linear(channels, heads * self.head_dim, bias)
        self.k_proj = nn.Linear(channels, kv_heads * self.head_dim, bias)
        self.v_proj = nn.Linear(channels, kv_heads * self.value_dim, bias)
        self.out_proj = nn.Linear(heads * self.value_dim, channels, bias if out_bias is None else out_bias)

    @property
    def masked(self) -> bool:
        """Whether queries see no keys behind them: causal self-attention."""
        return self.causal and not self.cross

    @property
    def recurrent(self) -> bool:
        """Whether the mixer runs token by token: causal self-attention with a `step`."""
        return self.masked and type(self).step is not Mixer.step

    def tokens_of_keys(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The tokens that keys come from.

        Raises:
            InputError: if a context is given to self-attention or missing in cross-attention.
        """
        if context is None:
            if self.cross:
                raise InputError(f"this {type(self).__name__} was built with cross=True: give it a context")
            return x
        self.require_self_mixing(None if self.cross else context)
        return context

    def split(self, projected: Tensor) -> Tensor:
        """`(batch, tokens, channels)` to `(batch, heads, tokens, head_dim)`."""
        batch, tokens, channels = projected.shape
        return projected.reshape(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)

    def project(
        self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `(batch, heads, tokens, head_dim)`.

        Args:
            x: tokens that ask.
            context: tokens that keys come from, in cross-attention.
            value: tokens that values come from where they are not those of the keys.
        """
        keys = self.tokens_of_keys(x, context)
        values = keys if value is None else value
        return self.split(self.q_proj(x)), self.split(self.k_proj(keys)), self.split(self.v_proj(values))

    def merge(self, o: Tensor) -> Tensor:
        """Join heads `(batch, heads, tokens, head_dim)` and map them to the output."""
        out: Tensor = self.out_proj(o.transpose(1, 2).flatten(2))
        return out
