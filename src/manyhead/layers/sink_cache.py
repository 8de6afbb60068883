"""A cache of the first tokens and the most recent ones: flat memory for streams without end.

Xiao et al., 'StreamingLLM', 2023, arXiv 2309.17453: the first few tokens, the sinks, draw attention
whatever they say, so that a plain window without them fails.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from manyhead.errors import InputError


@dataclass(frozen=True)
class SinkCache:
    """Keys and values of `sinks` first tokens and of a ring of `recent` others.

    The tensors are written in place: after `append`, use the returned cache and drop the old one. Keys keep
    the positions that they were turned by.

    Args:
        keys: `(batch, heads, sinks + recent, head_dim)`, the sinks first.
        values: likewise.
        sinks: tokens that are never dropped.
        length: tokens seen.
    """

    keys: Tensor
    values: Tensor
    sinks: int
    length: int = 0

    @classmethod
    def empty(
        cls, batch: int, heads: int, sinks: int, recent: int, head_dim: int, like: Tensor
    ) -> "SinkCache":
        """A cache without tokens, of the device and type of `like`.

        Raises:
            InputError: if sinks are negative, or no recent token has room.
        """
        if sinks < 0 or recent < 1:
            raise InputError(f"sinks is at least 0 and recent at least 1, got {sinks} and {recent}")
        shape = (batch, heads, sinks + recent, head_dim)
        return cls(like.new_zeros(shape), like.new_zeros(shape), sinks)

    def append(self, key: Tensor, value: Tensor) -> "SinkCache":
        """Store the next token's key and value `(batch, heads, head_dim)` over the oldest recent one."""
        at, recent = self.length, self.keys.shape[2] - self.sinks
        slot = at if at < self.sinks else self.sinks + (at - self.sinks) % recent
        self.keys[:, :, slot], self.values[:, :, slot] = key.detach(), value.detach()
        return replace(self, length=at + 1)

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Stored keys and values, each `(batch, heads, stored, head_dim)`, not in order of time."""
        held = min(self.length, self.keys.shape[2])
        return self.keys[:, :, :held], self.values[:, :, :held]

    @property
    def nbytes(self) -> int:
        """Bytes held, filled or not."""
        return self.keys.nbytes + self.values.nbytes
