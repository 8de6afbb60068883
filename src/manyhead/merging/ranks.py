"""Exact order statistics of vectors too long for memory, sixteen bits at a time.

The magnitude of a floating-point number grows with its bits read as an integer, so the k-th smallest
is found digit by digit from the top: one pass over the data and a histogram of 65,536 counts a digit.
"""

import torch
from torch import Tensor

DIGIT = 16


def passes(dtype: torch.dtype) -> int:
    """Passes over the data that a dtype needs: 2 for float32, 4 for float64."""
    return dtype.itemsize * 8 // DIGIT


class Rank:
    """The k-th smallest magnitude of a stream.

    Args:
        rank: k, counted from 1.
        dtype: float32 or float64.
        digits: digits found in earlier passes, each (digit, rank that is left inside it).
    """

    def __init__(self, rank: int, dtype: torch.dtype) -> None:
        self.rank = rank
        self.dtype = dtype
        self.integers = torch.int32 if dtype == torch.float32 else torch.int64
        self.prefix = 0
        self.found = 0
        self.counts = torch.zeros(2**DIGIT, dtype=torch.int64)

    def see(self, values: Tensor) -> None:
        """Count one part of the stream, (n,), in the present pass."""
        bits = values.abs().view(self.integers)
        shift = (passes(self.dtype) - 1 - self.found) * DIGIT
        if self.found:
            bits = bits[(bits >> (shift + DIGIT)) == self.prefix]
        digit = (bits >> shift) & (2**DIGIT - 1)
        self.counts += torch.bincount(digit, minlength=2**DIGIT)

    def close(self) -> None:
        """End a pass: fix the next digit."""
        upto = self.counts.cumsum(0)
        digit = int(torch.searchsorted(upto, self.rank))
        self.rank -= int(upto[digit - 1]) if digit else 0
        self.prefix = (self.prefix << DIGIT) | digit
        self.found += 1
        self.counts.zero_()

    @property
    def value(self) -> float:
        """The magnitude, once every pass is closed."""
        return float(torch.tensor(self.prefix, dtype=self.integers).view(self.dtype))
