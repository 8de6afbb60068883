"""Linear recurrences over all positions at once, in O(N) work and O(log N) depth.

Brent and Kung, 'A Regular Layout for Parallel Adders', 1982; as a primitive of sequence models: Martin
and Cundy, 'Parallelizing Linear Recurrent Neural Nets Over Sequence Length', 2018, arXiv 1709.04057.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _scan(a: Tensor, b: Tensor) -> Tensor:
    """h_i = a_i h_{i-1} + b_i along axis 1: pairs are joined, the half as long problem is solved."""
    length = b.shape[1]
    if length == 1:
        return b
    half = length // 2
    first, second = slice(0, 2 * half, 2), slice(1, None, 2)
    a_second = a[:, second]
    odd = _scan(a_second * a[:, first], a_second * b[:, first] + b[:, second])
    h = torch.empty_like(b)
    h[:, 1::2] = odd
    h[:, 0] = b[:, 0]
    if length > 2:
        h[:, 2::2] = a[:, 2::2] * odd[:, : (length - 1) // 2] + b[:, 2::2]
    return h


class _LinearScan(torch.autograd.Function):
    """The scan with its adjoint, the same recurrence run backwards, so that only `a` and `h` are kept."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        after = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)  # a_{i+1} carries from i + 1 to i
        adjoint = _scan(after.conj().resolve_conj().flip(1), grad.flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return (adjoint * before.conj()).sum_to_size(a.shape), adjoint


def linear_scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    """Return every state of h_i = a_i h_{i-1} + b_i.

    Args:
        a: factors, `(batch, length, ...)`, broadcastable to `b` in the axes after the second; real or
            complex. Products are formed, never quotients, so that zeros and long decays are safe.
        b: inputs, `(batch, length, ...)`.
        initial: h_{-1}, `(batch, ...)`; zero if left out.

    Returns:
        h, of the shape of `b`.
    """
    if initial is not None:
        b = torch.cat([(b[:, :1] + a[:, :1] * initial[:, None]), b[:, 1:]], 1)
    return cast(Tensor, _LinearScan.apply(a, b))  # type: ignore[no-untyped-call]
