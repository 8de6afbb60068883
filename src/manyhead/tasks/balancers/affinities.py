"""Cosines between the channel affinities of Rep-MTL, without building an affinity where that costs more.

Wang et al., 'Rep-MTL', 2025, arXiv 2507.21049, section 3. In Frobenius norms `<A A', S S'> = |A' S|^2` and
`|S S'| = |S' S|`. Anchors of all pairs of samples are compared either as `|A_b' A_k|^2` (tasks^2 channels
products a pair) or as `<A_b A_b', A_k A_k'>` (channels^2 / 2 products a pair, whatever the tasks), the
cheaper of the two, piece by piece: no `(batch tasks)^2` numbers, nor all affinities, are held at once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 21  # numbers of one piece of products, 8 MB in float32


def similarities(saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines between channel affinities, from Gram matrices of the shorter side.

    Args:
        saliency: `(tasks, batch, channels, positions)`.

    Returns:
        of each sample's anchor with its tasks, `(tasks, batch)`, and of anchors with each other,
        `(batch, batch)`.
    """
    tasks, batch, channels, positions = saliency.shape
    # cosines do not see these scales; without them fourth powers of small numbers would vanish
    means = saliency.mean(3).permute(1, 2, 0)  # A_b: (batch, channels, tasks)
    anchor = means / largest(means, (1, 2))
    scaled = saliency / largest(saliency, (2, 3))
    own = norm(anchor.mT @ anchor)  # |A A'| for each sample
    if positions > channels:
        affinity = scaled @ scaled.mT  # (tasks, batch, channels, channels)
        of_task, inner = norm(affinity), (affinity * (anchor @ anchor.mT)).sum((2, 3))
    else:
        of_task = norm(scaled.mT @ scaled)
        # all tasks' positions side by side: one product of matrices for each sample
        side = scaled.permute(1, 2, 0, 3).reshape(batch, channels, tasks * positions)
        both = (anchor.mT @ side).unflatten(2, (tasks, positions))  # A_b' S: (batch, tasks, tasks, positions)
        inner = both.square().sum((1, 3)).T
    near = inner / (own * of_task)
    return near, anchor_products(anchor) / (own[:, None] * own)


def anchor_products(anchor: Tensor) -> Tensor:
    """Inner products of the affinities `A_b A_b'` of all samples with each other.

    Args:
        anchor: `(batch, channels, tasks)`.

    Returns:
        `(batch, batch)`, once differentiable.
    """
    _, channels, tasks = anchor.shape
    route = _ByAffinity if channels + 1 < 2 * tasks**2 else _ByColumn
    products: Tensor = route.apply(anchor)  # type: ignore[no-untyped-call]
    return products


class _ByColumn(torch.autograd.Function):
    """`|A_b' A_k|^2` from the products of all columns, some samples at a time."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(anchor)
        batch, _, tasks = anchor.shape
        columns = anchor.mT.flatten(0, 1)  # (batch tasks, channels)
        found = anchor.new_empty(batch, batch)
        for rows in _pieces(batch, tasks * tasks * batch):
            product = columns[rows.start * tasks : rows.stop * tasks] @ columns.T
            found[rows] = product.square_().view(-1, tasks, batch, tasks).sum((1, 3))
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (anchor,) = ctx.saved_tensors
        batch, channels, tasks = anchor.shape
        weight = gradients[0] + gradients[0].T  # a product appears for b with k and for k with b
        columns = anchor.mT.flatten(0, 1)
        found = torch.empty_like(columns)
        for rows in _pieces(batch, tasks * tasks * batch):
            span = slice(rows.start * tasks, rows.stop * tasks)
            product = (columns[span] @ columns.T).view(-1, tasks, batch, tasks)
            product.mul_(2 * weight[rows, None, :, None])
            torch.mm(product.view(-1, batch * tasks), columns, out=found[span])
        return found.view(batch, tasks, channels).mT


class _ByAffinity(torch.autograd.Function):
    """`<A_b A_b', A_k A_k'>` from the affinities themselves, some of their rows at a time.

    Of the symmetric affinities only the part right of the diagonal blocks is built, and counts twice.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(anchor)
        found = anchor.new_zeros(len(anchor), len(anchor))
        for rows in _pieces(anchor.shape[1], anchor.shape[0] * anchor.shape[1]):
            flat = _affinity_rows(anchor, rows).flatten(1)
            found.addmm_(flat, flat.T)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (anchor,) = ctx.saved_tensors
        weight = gradients[0] + gradients[0].T
        found = torch.zeros_like(anchor)
        for rows in _pieces(anchor.shape[1], anchor.shape[0] * anchor.shape[1]):
            part = _affinity_rows(anchor, rows)  # (batch, rows, channels from the first of them)
            change = (weight @ part.flatten(1)).view_as(part)
            change[:, :, rows.stop - rows.start :] *= 2**0.5
            found[:, rows] += change @ anchor[:, rows.start :]
            found[:, rows.start :] += change.mT @ anchor[:, rows]
        return found


def _affinity_rows(anchor: Tensor, rows: slice) -> Tensor:
    """Rows of `A A'` from the diagonal on; what stands for two entries is scaled by the root of 2."""
    part = anchor[:, rows] @ anchor[:, rows.start :].mT
    part[:, :, rows.stop - rows.start :] *= 2**0.5
    return part


def _pieces(count: int, numbers: int) -> Iterator[slice]:
    """Spans of `count` rows of `numbers` each that stay within PIECE."""
    step = max(1, PIECE // numbers)
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def largest(tensor: Tensor, axes: tuple[int, int]) -> Tensor:
    """The largest absolute value over two axes, kept and without a graph; 1 where all are zero."""
    found = tensor.detach().abs().amax(axes, keepdim=True)
    return torch.where(found > 0, found, 1.0)


def norm(matrix: Tensor) -> Tensor:
    """Frobenius norm of the last two axes, with a gradient of zero at zero."""
    return matrix.square().sum((-2, -1)).clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
