"""What a kernel is: one way to compute `attend`, which says what it cannot do and what it costs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manyhead.grid import Grid
from manyhead.kernels.relative import RelativeBias
from manyhead.pattern.base import Pattern

# Seconds on one CPU core, chosen by hand so that the estimates agree with what `benchmarks/plan.py` measures:
# it prints measured over estimated time for every kernel. Only ratios between kernels matter.
PER_PRODUCT = 0.038e-9  # one multiply-add of a large matrix product
PER_PASS = 0.45e-9  # one pass over one entry of a large array
PER_CALL = 60e-6  # one call of any kernel


Bias = Tensor | RelativeBias | None


@dataclass(frozen=True)
class Request:
    """One call of `attend`, without its numbers.

    Args:
        batch: samples.
        query_grid: grid of the queries.
        key_grid: grid of the keys.
        heads: query heads.
        key_heads: key heads, a divisor of `heads`.
        head_dim: channels of queries and keys per head.
        value_dim: channels of values per head.
        dtype: of all inputs.
        device: of all inputs, such as 'cpu' or 'cuda'.
        pattern: who sees whom.
        bias: whether a bias is added to the logits.
        relative: whether it depends on key minus query only.
        lse: whether the log-sum-exp is asked for.
        grad: whether gradients will be.
    """

    batch: int
    query_grid: Grid
    key_grid: Grid
    heads: int
    key_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: str
    pattern: Pattern
    bias: bool = False
    relative: bool = False
    lse: bool = False
    grad: bool = True

    @property
    def groups(self) -> int:
        return self.heads // self.key_heads

    @property
    def queries(self) -> int:
        return math.prod(self.query_grid)

    @property
    def keys(self) -> int:
        return math.prod(self.key_grid)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def statsize(self) -> int:
        """Bytes of a number of the softmax statistics."""
        return 8 if self.dtype == torch.float64 else 4

    @property
    def out_bytes(self) -> int:
        return self.batch * self.queries * self.heads * self.value_dim * self.itemsize

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of all three inputs."""
        q = self.queries * self.heads * self.head_dim
        kv = self.keys * self.key_heads * (self.head_dim + self.value_dim)
        return self.batch * (q + kv) * self.itemsize


class Kernel:
    """One way to compute exact attention."""

    name = ""
    relative = False

    def refusal(self, request: Request) -> str | None:
        """Why the kernel cannot run a request, in a sentence, or None if it can."""
        raise NotImplementedError

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, request: Request, scale: float, bias: Bias
    ) -> tuple[Tensor, Tensor | None]:
        """Output `(B, *query_grid, H, E)` and, where asked for, log-sum-exp `(B, *query_grid, H)`.

        A relative bias comes as it is to kernels that are `relative`, as a bias of all pairs to the others.
        """
        raise NotImplementedError

    def peak_bytes(self, request: Request) -> int:
        """Most bytes allocated at a time, beyond the inputs and the gradient of the output."""
        raise NotImplementedError

    def seconds(self, request: Request) -> float:
        """Estimated time on one CPU core."""
        raise NotImplementedError


def heads_first(x: Tensor) -> Tensor:
    """`(B, *grid, H, D)` to `(B, H, tokens, D)`."""
    return x.flatten(1, -3).transpose(1, 2)


def heads_last(x: Tensor, grid: Grid) -> Tensor:
    """`(B, H, tokens, D)` to `(B, *grid, H, D)`."""
    x = x.transpose(1, 2)
    return x.reshape(x.shape[0], *grid, *x.shape[2:])
