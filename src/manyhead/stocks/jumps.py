"""Closes that leap: a split that was not adjusted, or a wrong cell."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.notices import Mask, examples
from manyhead.stocks.panel import Panel, Values

Jumps = Literal["suspend", "keep", "refuse"]
JUMP, MOVE = 50.0, 3.0  # ratio of a close to the last trusted one


def take_out_jumps(panel: Panel, jumps: Jumps) -> list[str]:
    """Make bars missing, in place, whose close is a jump away from the last trusted one of the symbol.

    Returns:
        Warnings: 'jump' and 'large-move'.

    Raises:
        InputError: if `jumps` is 'refuse' and there is one.
    """
    close = panel["close"]
    last = _last_known(close)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = close[1:] / last[:-1]
        size = np.maximum(ratio, 1 / ratio)
    moved = np.zeros(close.shape, bool)
    moved[1:] = size >= MOVE
    leapt = np.zeros(close.shape, bool)
    leapt[1:] = size >= JUMP

    def factor(row: int, col: int) -> str:
        return f"{last[row - 1, col]:.6g} to {close[row, col]:.6g}"

    found = []
    if leapt.any():
        where = examples(panel, leapt, factor)
        if jumps == "refuse":
            raise InputError(
                f"close jumps: {where}; a split that was not adjusted? Adjust the prices, leave the symbol"
                " out, or choose jumps='suspend' or 'keep'"
            )
        if jumps == "keep":
            found.append(f"jump: close of {where}; kept as asked")
        else:
            out = _untrusted(close, np.flatnonzero(leapt.any(0)))
            found.append(
                f"jump: close of {where}; a split that was not adjusted? The symbol is missing from there on"
                f" until its close is back in range ({int(out.sum())} bars)"
            )
            for values in panel.fields.values():
                values[out] = np.nan
    moved &= ~leapt
    if moved.any():
        found.append(f"large-move: close of {examples(panel, moved, factor)}; kept")
    return found


def _last_known(values: Values) -> Values:
    """Carry the last present value of each column forward."""
    row = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.asarray(np.take_along_axis(values, np.maximum.accumulate(row, axis=0), axis=0))


def _untrusted(close: Values, columns: NDArray[np.intp]) -> Mask:
    """Mark the closes that lie a jump away from the last close that did not."""
    out = np.zeros(close.shape, bool)
    for col in columns:
        trusted = np.nan
        for row in np.flatnonzero(~np.isnan(close[:, col])):
            ratio = close[row, col] / trusted
            if ratio >= JUMP or ratio <= 1 / JUMP:
                out[row, col] = True
            else:
                trusted = close[row, col]
    return out
