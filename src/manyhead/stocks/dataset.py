"""Windows over one panel: what a model sees on each decision day, and what it is asked.

A *decision row* r is a day after whose close a score is computed. Which rows of returns, factors and targets
belong to it is `labels.Alignment`'s to say; here they are gathered. Windows are read by row index from
arrays of (days, symbols); nothing is stored per window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyhead.stocks.factors import FactorSource
from manyhead.stocks.labels import Alignment, known_within


class Batch(NamedTuple):
    """One batch of windows; B decision rows, T1 input and T2 output days, N symbols, F factors."""

    rows: Tensor  # (B,) decision rows
    returns: Tensor  # (B, T1, N)
    trend: Tensor  # (B, T1, N) 1.0 where the return was positive
    factors: Tensor  # (B, T1, N, F)
    time: Tensor  # (B, T1 + T2, 2) month and day, as the temporal embedding takes them
    flow: Tensor  # (B, T2, N) targets, 0 where unknown
    known: Tensor  # (B, T2, N) bool, where a target exists

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(part.to(device) for part in self))


@dataclass(frozen=True)
class Windows:
    """The windows of one split, by decision row.

    Args:
        flow: (days, N) next returns, NaN where unknown.
        factors: a source of standardised factor rows without NaN.
        time: (days + T2, 2) integer temporal index.
        alignment: which rows belong to a decision.
        labels: (days, N) targets in place of `flow`, such as a placebo's; the return inputs stay true.
        ahead: (days, T2, 2) temporal index of the days after each row as it is expected on that row; what
            `time` says of them if left out. Which days will be sessions is not known beforehand, and a
            score must not change when it becomes known.
    """

    flow: NDArray[np.float32]
    factors: FactorSource
    time: NDArray[np.int64]
    alignment: Alignment
    labels: NDArray[np.float32] | None = None
    ahead: NDArray[np.int64] | None = None

    @property
    def targets(self) -> NDArray[np.float32]:
        """What a decision on each row is taken to have earned, (days, N)."""
        return self.flow if self.labels is None else self.labels

    @property
    def reach(self) -> int:
        """Rows before the decision row at which a window's factors begin."""
        sample = self.alignment.window(0)
        return sample.decision - sample.factors.start

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
        sample = self.alignment.window(0)
        first = span.start + self.reach if within else max(span.start, self.reach)
        stop = span.stop
        if labelled:
            stop = known_within(span).stop - (sample.targets.stop - 1 - sample.decision)
        return np.arange(first, max(first, stop), dtype=np.int64)

    def batch(self, rows: Tensor | NDArray[np.int64] | Sequence[int]) -> Batch:
        """Gather the windows of some decision rows."""
        decided = torch.as_tensor(rows, dtype=torch.long)
        sample = self.alignment.window(0)

        def around(offsets: range) -> Tensor:
            return decided[:, None] + (torch.arange(offsets.start, offsets.stop) - sample.decision)

        inputs = around(sample.factors)  # (B, T1)
        target = _rows(self.targets, around(sample.targets))
        returns = torch.nan_to_num(_rows(self.flow, around(sample.series)), nan=0.0)
        return Batch(
            rows=decided,
            returns=returns,
            trend=(returns > 0).to(returns.dtype),
            factors=self._factors(inputs),
            time=self._time(decided),
            flow=torch.nan_to_num(target, nan=0.0),
            known=torch.isfinite(target),
        )

    def _time(self, decided: Tensor) -> Tensor:
        """Temporal index of each window's input and output days, (B, T1 + T2, 2)."""
        sample = self.alignment.window(0)
        start, stop = sample.factors.start, sample.factors.stop + self.alignment.output_days
        offsets = torch.arange(start, stop) - sample.decision
        if self.ahead is None:
            return torch.from_numpy(self.time)[decided[:, None] + offsets]
        past, later = offsets[offsets <= 0], offsets[offsets > 0]
        seen = torch.from_numpy(self.time)[decided[:, None] + past]
        return torch.cat([seen, torch.from_numpy(self.ahead)[decided[:, None], later - 1]], dim=1)

    def _factors(self, inputs: Tensor) -> Tensor:
        """Factor rows of each window; neighbouring windows share one reading of their stretch."""
        first, last = int(inputs.min()), int(inputs.max())
        if last - first < inputs.numel():
            return torch.from_numpy(self.factors.rows(first, last + 1))[inputs - first]
        return torch.stack(
            [torch.from_numpy(self.factors.rows(int(window[0]), int(window[-1]) + 1)) for window in inputs]
        )


def _rows(series: NDArray[np.float32], rows: Tensor) -> Tensor:
    """Gather rows of a series, NaN outside the calendar."""
    days = len(series)
    inside = (rows >= 0) & (rows < days)
    values = torch.from_numpy(series)[rows.clamp(0, days - 1)]
    return torch.where(inside[..., None], values, torch.nan)


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
