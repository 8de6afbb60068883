"""Two numbers that CAB gives a mixer: its composite index, and the length from which it pays.

Zhang et al., 'CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling', 2022, arXiv
2210.07661, sections 4.2 and 4.3; and a score by ranks, which no failed run can inflate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyhead.errors import InputError

# metrics of each task of the paper, in its order of metrics, for each use of attention
PAPER_TASKS: dict[str, tuple[int, ...]] = {
    "noncausal self": (4, 3, 2, 1),  # speech, summarisation, super-resolution, masked language
    "causal self": (2, 3, 1),  # speech, summarisation, language
    "noncausal cross": (3, 6),  # point clouds, forecasting
    "causal cross": (2, 3),  # speech, summarisation
}


def composite_index(
    scores: ArrayLike, mean: ArrayLike, deviation: ArrayLike, sign: ArrayLike, tasks: Sequence[int]
) -> tuple[NDArray[np.float64], float]:
    """Average standardised metrics within tasks, then tasks.

    Args:
        scores: one mixer's metrics.
        mean, deviation: of every metric over the mixers that are compared.
        sign: 1 where higher is better, -1 where lower is.
        tasks: how many consecutive metrics belong to each task.

    Returns:
        The index of each task and of all.

    Raises:
        InputError: if the numbers of metrics differ.
    """
    columns = [np.asarray(c, np.float64) for c in (scores, mean, deviation, sign)]
    if len({c.shape for c in columns}) != 1 or columns[0].shape != (sum(tasks),):
        raise InputError(
            f"scores, mean, deviation, sign and tasks must count the same metrics, got "
            f"{[c.shape for c in columns]} and tasks of {sum(tasks)}"
        )
    values, mu, sigma, direction = columns
    standard = direction * (values - mu) / sigma
    parts = np.split(standard, np.cumsum(tasks)[:-1])
    by_task = np.array([part.mean() for part in parts])
    return by_task, float(by_task.mean())


def rank_score(scores: ArrayLike, sign: ArrayLike) -> NDArray[np.float64]:
    """Mean share of rivals that a mixer beats, over metrics; ties count half.

    Args:
        scores: `(mixers, metrics)`.
        sign: 1 where higher is better, -1 where lower is, `(metrics,)`.

    Returns:
        One number from 0 to 1 for each mixer.
    """
    signed = np.asarray(scores, np.float64) * np.asarray(sign)
    if signed.ndim != 2 or len(signed) < 2:
        raise InputError(f"scores are (mixers, metrics) of two mixers or more, got shape {signed.shape}")
    beats = (signed[:, None] > signed[None]) + 0.5 * (signed[:, None] == signed[None])
    count = len(signed)
    share: NDArray[np.float64] = (beats.sum(1) - 0.5) / (count - 1)
    score: NDArray[np.float64] = share.mean(1)
    return score


@dataclass(frozen=True)
class EfficiencyLength:
    """Where a mixer of linear cost meets softmax attention.

    Args:
        length: tokens from which the mixer costs less; NaN if its line never meets the parabola.
        softmax: a, b, c of the fitted a L^2 + b L + c.
        mixer: d, e of the fitted d L + e.
        r2: of the two fits.
    """

    length: float
    softmax: tuple[float, float, float]
    mixer: tuple[float, float]
    r2: tuple[float, float]


def efficiency_length(
    lengths: ArrayLike, softmax: ArrayLike, mixer: ArrayLike, *, drop_first: bool = False
) -> EfficiencyLength:
    """Fit both costs by least squares and solve for the length at which they are equal.

    Args:
        lengths: tokens of the measurements.
        softmax: time or memory of softmax attention at each.
        mixer: that of the mixer.
        drop_first: leave the shortest length out of the mixer's fit, as the paper does for time.

    Raises:
        InputError: if there are fewer than three measurements, or their numbers differ.
    """
    x, dense, own = (np.asarray(v, np.float64) for v in (lengths, softmax, mixer))
    if x.ndim != 1 or x.shape != dense.shape or x.shape != own.shape or len(x) < 3 + drop_first:
        raise InputError(
            f"three lengths or more with a cost each are needed, got {x.shape}, {dense.shape}, {own.shape}"
        )
    first = int(drop_first)
    a, b, c = np.polyfit(x, dense, 2)
    d, e = np.polyfit(x[first:], own[first:], 1)
    inside = (b - d) ** 2 - 4 * a * (c - e)
    length = (-(b - d) + np.sqrt(inside)) / (2 * a) if inside >= 0 and a else np.nan
    r2 = (_r2(dense, np.polyval([a, b, c], x)), _r2(own[first:], np.polyval([d, e], x[first:])))
    return EfficiencyLength(float(length), (float(a), float(b), float(c)), (float(d), float(e)), r2)


def _r2(values: NDArray[np.float64], fitted: NDArray[np.float64]) -> float:
    spread = ((values - values.mean()) ** 2).sum()
    return float(1 - ((values - fitted) ** 2).sum() / spread) if spread else 1.0
