"""Locally biased subsampling on a grid: windows over sources that are shuffled in both directions.

Hussain et al., 'The Information Pathways Hypothesis', 2023, arXiv 2306.01705, with the windows of Liu et al.,
'Swin Transformer', 2021, arXiv 2103.14030. The paper's two-dimensional construction is not public in full;
this is the analogue of `local_sources`: sources get noisy coordinates, are sorted into rows by the one and
within rows by the other, and queries of a window see the sources that landed in it.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.mixers.base import NONCAUSAL_SELF, Traits
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.subsampled import SubsampledAttention


def grid_order(
    batch: int, height: int, width: int, sigma: float, generator: torch.Generator | None = None
) -> Tensor:
    """Locally biased shuffles of a grid: the source in each cell, `(batch, height * width)`, row by row."""
    noise = sigma * torch.randn(2, batch, height * width, generator=generator)
    at = torch.arange(height * width)
    by_row = (at // width + noise[0]).argsort(-1)  # the first `width` of them make the first row
    columns = (at % width + noise[1]).gather(-1, by_row)
    within = columns.unflatten(-1, (height, width)).argsort(-1)
    order: Tensor = by_row.unflatten(-1, (height, width)).gather(-1, within).flatten(1)
    return order


class SubsampledWindowAttention(SubsampledAttention):
    """Attention on a grid whose queries see `window^2` sources, drawn anew in every training step.

    In evaluation it is dense, unless inside `subsampling(network)`. Without noise these are plain windows,
    with much noise uniform samples.

    Args:
        attention: the attention to draw for, not causal.
        window: side of a window, in cells; a divisor of both sides of the grid.
        sigma: how far sources are shuffled, in cells.
        offset: moves the windows down and right, so that layers overlap differently; those that go over
            the edge keep their parts apart, as in Swin.
        per_sample: draw for each sample, or once for the batch.
        generator: of the draws; None for torch's own.

    Shape:
        input and output `(batch, height, width, channels)`.

    Raises:
        InputError: if the attention is causal, or numbers do not fit.
    """

    traits = Traits("a random part of a dense positive", True, True, True, True, "w^2 L", "w^2 L")

    def __init__(
        self,
        attention: MultiHeadAttention,
        window: int,
        sigma: float,
        *,
        offset: int = 0,
        per_sample: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if attention.causal or attention.cross or not 0 <= offset < window:
            raise InputError(
                f"windows on a grid need self-attention that is not causal, and an offset below the window; "
                f"got causal={attention.causal}, offset {offset} and window {window}"
            )
        super().__init__(
            attention,
            mode="local",
            window=window,
            sigma=sigma,
            offset=offset,
            per_sample=per_sample,
            keep_self=False,
            generator=generator,
        )
        self.supports = frozenset({NONCAUSAL_SELF})

    def forward(  # type: ignore[override]
        self, x: Tensor, context: Tensor | None = None, *, order: Tensor | None = None
    ) -> Tensor:
        """Mix; `order`, as from `grid_order`, replaces the draw.

        Raises:
            InputError: if there is a context, or windows do not divide the grid.
        """
        self.require_self_mixing(context)
        height, width = x.shape[1:3]
        flat = x.flatten(1, 2)
        if order is None and not (self.enabled and (self.training or self.in_evaluation)):
            dense: Tensor = self.attention(flat).view_as(x)
            return dense
        if height % self.window or width % self.window:
            raise InputError(f"windows of {self.window} do not divide a grid of {height} x {width}")
        if order is None:
            drawn = len(x) if self.per_sample else 1
            order = grid_order(drawn, height, width, self.sigma, self.generator)
        q, k, v = self.attention.parts(flat)
        index = order.to(x.device)[:, None, :, None].expand(*k.shape)
        q, k, v = (self._cut(part, height, width) for part in (q, k.gather(2, index), v.gather(2, index)))
        seen = self._apart(height, width).to(x.device)
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.attention.merge(self._join(out, height, width)).view_as(x)

    def _cut(self, part: Tensor, height: int, width: int) -> Tensor:
        """`(batch, heads, cells, d)` to `(batch, heads, windows, cells of a window, d)`."""
        w = self.window
        grid = part.unflatten(2, (height, width)).roll((-self.offset, -self.offset), (2, 3))
        windows = grid.unflatten(3, (-1, w)).unflatten(2, (-1, w)).transpose(3, 4)
        cut: Tensor = windows.flatten(4, 5).flatten(2, 3)
        return cut

    def _join(self, out: Tensor, height: int, width: int) -> Tensor:
        w = self.window
        windows = out.unflatten(3, (w, w)).unflatten(2, (height // w, width // w)).transpose(3, 4)
        grid = windows.flatten(4, 5).flatten(2, 3).roll((self.offset, self.offset), (2, 3))
        joined: Tensor = grid.flatten(2, 3)
        return joined

    def _apart(self, height: int, width: int) -> Tensor:
        """Which cells of a window lie on the same side of the grid's edge, `(windows, cells, cells)`."""
        wrapped = [torch.arange(size) < self.offset for size in (height, width)]
        side = (2 * wrapped[0][:, None] + 1 * wrapped[1]).float()
        cells = self._cut(side.view(1, 1, -1, 1), height, width)[0, 0, :, :, 0]
        return cells[:, :, None] == cells[:, None]

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """Weights of the dense form."""
        return self.attention.mixing_matrix(x.flatten(1, 2))
