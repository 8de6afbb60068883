"""What Qlib's learning processors make of a label."""

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError

Floats = NDArray[np.floating]


def learn_labels(label: Floats, fit_rows: range | None = None, qlib_compat: bool = False) -> Floats:
    """Z-score labels over each day's symbols, ddof 1 (Qlib's CSZScoreNorm, arXiv 2009.11189).

    Args:
        label: (days, symbols) returns, NaN where unknown.
        fit_rows: rows that Qlib's ZScoreNorm was fitted on; only for `qlib_compat`.
        qlib_compat: do as Qlib's default handlers do, whose factor processors also touch the label:
            infinities become the day's mean, the label is z-scored over all stock-days of `fit_rows`, and
            an unknown label becomes 0, the average. Nothing is then dropped for want of a label.

    Returns:
        (days, symbols), same dtype. Unknown labels stay NaN unless `qlib_compat`; a day without spread
        is NaN.

    Raises:
        InputError: if `qlib_compat` is wanted without rows to fit on.
    """
    values = label.astype(np.float64)
    if qlib_compat:
        if fit_rows is None or len(fit_rows) == 0:
            raise InputError("qlib_compat needs fit_rows, the rows of which mean and deviation are taken")
        infinite = np.isinf(values)
        values = np.where(infinite, _over_day(np.where(infinite, np.nan, values))[0], values)
        fitted = values[fit_rows.start : fit_rows.stop]
        spread = np.nanstd(fitted)
        if spread != 0:
            values = (values - np.nanmean(fitted)) / spread
        values = np.where(np.isnan(values), 0.0, values)
    mean, spread_of_day = _over_day(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        scored = (values - mean) / spread_of_day
    return np.where(np.isfinite(scored), scored, np.nan).astype(label.dtype)


def _over_day(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sample standard deviation over the symbols of each day, as columns."""
    present = ~np.isnan(values)
    count = present.sum(axis=1, keepdims=True)
    mean = np.where(present, values, 0).sum(axis=1, keepdims=True) / np.where(count > 0, count, np.nan)
    squares = (np.where(present, values - mean, 0) ** 2).sum(axis=1, keepdims=True)
    return mean, np.sqrt(squares / np.where(count > 1, count - 1, np.nan))
