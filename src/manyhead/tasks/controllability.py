"""How far a model with a preference over tasks can be steered: hypervolume, and the range of each task.

'Efficient Controllable Multi-Task Architectures', 2023, arXiv 2308.11744, section 4.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from manyhead.errors import InputError


def hypervolume(points: Tensor, reference: Tensor) -> float:
    """Volume of scores that some point reaches, above a reference.

    Args:
        points: `(n, tasks)`, higher is better.
        reference: `(tasks,)`, below the points that count.

    Returns:
        the volume of the union of the boxes from the reference to each point, exact.

    Raises:
        InputError: if the shapes do not fit together.
    """
    if points.ndim != 2 or reference.shape != points.shape[1:]:
        raise InputError(
            "points must be (n, tasks) and reference (tasks,), got "
            f"{tuple(points.shape)} and {tuple(reference.shape)}"
        )
    rows = (points - reference).double()
    return _volume(rows[(rows > 0).all(1)])


def _volume(rows: Tensor) -> float:
    """Union of boxes from the origin, by slices along the last axis."""
    if len(rows) == 0:
        return 0.0
    if rows.shape[1] == 1:
        return float(rows.max())
    rows = rows[rows[:, -1].argsort(descending=True)]
    heights = [*rows[:, -1].tolist(), 0.0]
    return math.fsum(
        (heights[number] - heights[number + 1]) * _volume(rows[: number + 1, :-1])
        for number in range(len(rows))
        if heights[number] > heights[number + 1]
    )


def task_ranges(preferences: Tensor, scores: Tensor) -> list[float]:
    """For each task its score where it is preferred most, less that where it is preferred least.

    Args:
        preferences: `(n, tasks)`.
        scores: `(n, tasks)`; points of equal preference are averaged.
    """
    if preferences.shape != scores.shape or preferences.ndim != 2:
        raise InputError(
            "preferences and scores must both be (n, tasks), got "
            f"{tuple(preferences.shape)} and {tuple(scores.shape)}"
        )
    found = []
    for wanted, score in zip(preferences.T, scores.T, strict=True):
        most, least = score[wanted == wanted.max()], score[wanted == wanted.min()]
        found.append(float(most.mean() - least.mean()))
    return found


__all__: Sequence[str] = ["hypervolume", "task_ranges"]
