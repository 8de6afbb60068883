"""A check of what a network is about to be fed: inputs that carry nothing, or far too much.

The released Stockformer checkpoint (arXiv 2401.06139) was trained with 59 of its 360 factors at zero: after
a day without volume, volume[t-i] / (0 + 1e-12) is so large that the global deviation overflows and every
value of the factor, scaled by it, is 0. The weights of these columns never moved, and no loss shows it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.factors.source import FactorSource
from manyhead.stocks.preprocess.columns import columns

BULK = 0.01  # share of values beyond each end of what counts as the bulk
SPREAD = 1e-6  # a bulk narrower than this, in scaled units, holds one value
SWAMPED = 0.05  # width of the bulk, in standard deviations, below which rare values are all there is
HUGE = 50.0  # scaled values are of order one
MISSING = 0.5  # share of missing values from which on an input is mostly missing
SAMPLE = 32768  # values a factor that tell the bulk, on evenly spaced days; extremes are of all values


@dataclass(frozen=True)
class InputReport:
    """Names of inputs that should not go into a network as they are.

    Args:
        zero: all but the rarest values are 0: dead.
        constant: all but the rarest values are one other number: a bias, not a signal.
        swamped: a few values are so large that beside them the bulk hardly differs.
        exploding: some value is infinite or beyond 50 in magnitude.
        missing: more than half of the values are missing.
    """

    zero: tuple[str, ...]
    constant: tuple[str, ...]
    swamped: tuple[str, ...]
    exploding: tuple[str, ...]
    missing: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Say it for a report, one sentence a finding; empty if all is well."""
        found = {
            "zero on nearly every stock-day, so they teach the network nothing": self.zero,
            "one constant on nearly every stock-day": self.constant,
            "swamped: all but a few values are the same beside those few": self.swamped,
            f"infinite or beyond {HUGE:g} in magnitude somewhere": self.exploding,
            "missing on more than half of the stock-days": self.missing,
        }
        return [
            f"{len(names)} {'factor is' if len(names) == 1 else 'factors are'} {what}: {shortened(names)}."
            for what, names in found.items()
            if names
        ]


def dead_inputs(source: FactorSource, rows: range) -> InputReport:
    """Name the dead, exploding and mostly missing inputs among scaled factors.

    Args:
        source: factors as the network would get them.
        rows: rows to look at, the training rows.

    Raises:
        InputError: if there are no rows.
    """
    if len(rows) == 0:
        raise InputError("dead_inputs needs at least one row to look at, got none")
    whole = columns(source, rows)
    symbols = source.rows(rows.start, rows.start).shape[1]
    step = max(1, len(rows) * symbols // SAMPLE)
    sample = np.concatenate([source.rows(row, row + 1)[0] for row in rows[::step]]).T
    ordered = np.sort(sample, axis=-1)  # (factors, values), NaN last
    last = np.maximum(ordered.shape[-1] - np.isnan(ordered).sum(axis=-1) - 1, 0)
    beyond = np.floor(BULK * last).astype(np.int64)
    factor = np.arange(len(ordered))
    low, high = ordered[factor, beyond], ordered[factor, last - beyond]
    known = whole.count > 0
    with np.errstate(invalid="ignore"):
        one = known & (high - low <= SPREAD)
        zero = one & (np.maximum(np.abs(low), np.abs(high)) <= SPREAD)
        swamped = known & ~one & (high - low < SWAMPED * np.sqrt(whole.squares / np.maximum(whole.count, 1)))
        exploding = np.maximum(np.abs(whole.low), np.abs(whole.high)) > HUGE
    missing = whole.count < (1 - MISSING) * whole.total

    def names(which: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(source.names[index] for index in np.flatnonzero(which))

    return InputReport(
        names(zero), names(one & ~zero), names(swamped), names(known & exploding), names(missing)
    )


def shortened(names: tuple[str, ...], most: int = 6) -> str:
    """List some names and count the rest."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
