"""Temporal index of the calendar rows: the two integers a day that the network embeds."""

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.panel import Dates

FIRST_DAY = 42  # the published counter begins in its third month, March
MONTH = 21
YEAR = 252


def running_index(rows: int, first: int = FIRST_DAY) -> NDArray[np.int64]:
    """Count trading days in a year of 12 months of 21 days (Stockformer's released code).

    It ignores the true calendar, and begins anew with every sub-dataset.

    Args:
        rows: trading days.
        first: counter of the first row, 0..251.

    Returns:
        (rows, 2): month 0..11 and day of month 0..20.

    Raises:
        InputError: if `rows` is negative.
    """
    if rows < 0:
        raise InputError(f"rows must not be negative, got {rows}")
    day = (first + np.arange(rows)) % YEAR
    return np.stack([day // MONTH, day % MONTH], axis=1).astype(np.int64)


def calendar_index(dates: Dates) -> NDArray[np.int64]:
    """Return the true calendar: month 0..11 and day of the month 0..30, (rows, 2)."""
    months = dates.astype("datetime64[M]")
    month = months.astype(np.int64) % 12
    day = (dates.astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
    return np.stack([month, day], axis=1)
