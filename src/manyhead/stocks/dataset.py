"""Windows over one panel: what a model sees on each decision day, and what it is asked.

A *decision row* r is a day after whose close a score is computed; the position is bought at the close of
r+1 and earns flow[r] = close[r+2]/close[r+1] - 1 (section 2 of the Stockformer card). Two alignments:

- 'information': every input ends at row r. The return input of row t is close[t]/close[t-1] - 1, the
  newest one known at r; the targets are flow[r], flow[r+1], ..., and the first output is the score.
- 'official': the window of the released code. Returns, trends and factors end at row r-2, because flow
  of row r-2 is known at r; the targets are flow[r-1], flow[r], ..., and the second output is the score.

Windows are views by row index over arrays of (days, symbols); nothing is stored per window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Alignment = Literal["information", "official"]

# a label of row t needs the close of row t + HORIZON
HORIZON = 2


class FactorRows(Protocol):
    """Factors on demand: `rows(start, stop)` gives (stop - start, symbols, factors) float32, no NaN."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def rows(self, start: int, stop: int) -> NDArray[np.float32]: ...


class Batch(NamedTuple):
    """One batch of windows; B decision rows, T1 input and T2 output days, N symbols, F factors."""

    rows: Tensor  # (B,) decision rows
    returns: Tensor  # (B, T1, N)
    trend: Tensor  # (B, T1, N) 1.0 where the return was positive
    factors: Tensor  # (B, T1, N, F)
    time: Tensor  # (B, T1 + T2, 2) month and day, as the temporal embedding takes them
    flow: Tensor  # (B, T2, N) targets, 0 where unknown
    known: Tensor  # (B, T2, N) bool, where a target exists


@dataclass(frozen=True)
class Windows:
    """The windows of one split, by decision row.

    Args:
        flow: (days, N) next returns, NaN where unknown.
        factors: a source of standardised factor rows.
        time: (days + T2, 2) integer temporal index.
        input_days: T1.
        output_days: T2.
        alignment: see the module's text.
    """

    flow: NDArray[np.float32]
    factors: FactorRows
    time: NDArray[np.int64]
    input_days: int = 20
    output_days: int = 2
    alignment: Alignment = "information"

    @property
    def lag(self) -> int:
        """Rows between the decision and the newest input row."""
        return HORIZON if self.alignment == "official" else 0

    @property
    def tradable(self) -> int:
        """Which output is the score of the decision row."""
        return 1 if self.alignment == "official" else 0

    @property
    def reach(self) -> int:
        """Rows before the decision row at which a window's inputs begin."""
        return self.lag + self.input_days - 1

    def decision_rows(
        self, span: range, *, within: bool = False, labelled: bool = False
    ) -> NDArray[np.int64]:
        """List the decision rows of a span.

        Args:
            span: calendar rows.
            within: keep only windows whose inputs lie inside the span, as the released code does.
            labelled: keep only windows whose every target is known by the close of the span's last
                row: labels that need prices of the next span are purged.
        """
        first = max(span.start + self.reach, self.reach) if within else max(span.start, self.reach)
        last_target = self.output_days - 1 - self.tradable
        stop = span.stop - (HORIZON + last_target if labelled else 0)
        return np.arange(first, max(first, stop), dtype=np.int64)

    def batch(self, rows: Tensor | NDArray[np.int64] | Sequence[int]) -> Batch:
        """Gather the windows of some decision rows."""
        decided = torch.as_tensor(rows, dtype=torch.long)
        days = len(self.flow)
        newest = decided - self.lag
        inputs = newest[:, None] + torch.arange(-self.input_days + 1, 1)  # (B, T1)
        outputs = decided[:, None] - self.tradable + torch.arange(self.output_days)  # (B, T2)
        spans = torch.cat([inputs, newest[:, None] + torch.arange(1, self.output_days + 1)], dim=1)

        # the return input of row t is flow[t - 2] under 'information' and flow[t] under 'official'
        shift = 0 if self.alignment == "official" else HORIZON
        seen = self._flow(inputs - shift, days)
        target = self._flow(outputs, days)
        known = torch.isfinite(target)
        returns = torch.nan_to_num(seen, nan=0.0)
        return Batch(
            rows=decided,
            returns=returns,
            trend=(returns > 0).to(returns.dtype),
            factors=self._factors(inputs),
            time=torch.from_numpy(self.time)[spans],
            flow=torch.nan_to_num(target, nan=0.0),
            known=known,
        )

    def _flow(self, rows: Tensor, days: int) -> Tensor:
        """Rows of flow, NaN outside the calendar."""
        inside = (rows >= 0) & (rows < days)
        values = torch.from_numpy(self.flow)[rows.clamp(0, days - 1)]
        return torch.where(inside[..., None], values, torch.nan)

    def _factors(self, inputs: Tensor) -> Tensor:
        """Factor rows of each window; neighbouring windows share one reading of their stretch."""
        first, last = int(inputs.min()), int(inputs.max())
        if last - first < inputs.numel():
            return torch.from_numpy(self.factors.rows(first, last + 1))[inputs - first]
        return torch.stack(
            [torch.from_numpy(self.factors.rows(int(window[0]), int(window[-1]) + 1)) for window in inputs]
        )


@dataclass(frozen=True)
class Samples:
    """A map-style data set over chosen decision rows, for `fit`."""

    windows: Windows
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Batch:
        """Gather samples by their position in `rows`."""
        return self.windows.batch(self.rows[indices.numpy()])
