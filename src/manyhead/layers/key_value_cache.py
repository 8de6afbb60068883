"""Keys and values of earlier tokens as an explicit value, sized in advance."""

from dataclasses import dataclass, replace

from torch import Tensor

from manyhead.errors import InputError


@dataclass(frozen=True)
class KeyValueCache:
    """Room for the keys and values of `capacity` tokens, of which the first `length` are filled.

    The tensors are written in place: after `append`, use the returned cache and drop the old one.

    Args:
        keys: `(batch, heads, capacity, head_dim)`.
        values: `(batch, heads, capacity, head_dim)`.
        length: tokens stored so far.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, batch: int, heads: int, capacity: int, head_dim: int, like: Tensor) -> "KeyValueCache":
        """A cache without tokens, of the device and type of `like`."""
        shape = (batch, heads, capacity, head_dim)
        return cls(like.new_zeros(shape), like.new_zeros(shape))

    def append(self, keys: Tensor, values: Tensor) -> "KeyValueCache":
        """Store the keys and values `(batch, heads, new, head_dim)` of the next tokens.

        Raises:
            InputError: if there is no room left.
        """
        end = self.length + keys.shape[2]
        if end > self.keys.shape[2]:
            raise InputError(f"the cache has room for {self.keys.shape[2]} tokens, asked to hold {end}")
        self.keys[:, :, self.length : end] = keys.detach()
        self.values[:, :, self.length : end] = values.detach()
        return replace(self, length=end)

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Stored keys and values, each `(batch, heads, length, head_dim)`."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    @property
    def nbytes(self) -> int:
        """Bytes held, filled or not."""
        return self.keys.nbytes + self.values.nbytes
