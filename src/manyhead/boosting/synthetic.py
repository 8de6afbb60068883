"""Synthetic tasks with planted outliers, as R-MTGB is tested on.

'Robust-Multi-Task Gradient Boosting', 2025, arXiv 2507.11411, section 4: functions drawn as sums of
random Fourier features, mixed from a common part and each task's own.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError

FEATURES = 500  # cosines of one function
Floats = NDArray[np.float64]
Scenario = Literal[1, 2, 3, 4]


@dataclass(frozen=True)
class Tasks:
    """Rows of several tasks; the last column of `x_train` and `x_test` is the task.

    Args:
        x_train: (tasks * rows, features + 1).
        y_train: (tasks * rows,) values, or classes 0 and 1.
        x_test: (tasks * test_rows, features + 1).
        y_test: (tasks * test_rows,).
        outliers: (tasks,) whether a task was planted as an outlier.
    """

    x_train: Floats
    y_train: Floats
    x_test: Floats
    y_test: Floats
    outliers: NDArray[np.bool_]


class RandomFunction:
    """f(x) = sum_j a_j sqrt(2 / J) cos(w_j x / l + b_j) with a length scale l of a quarter of the inputs."""

    def __init__(self, inputs: int, random: np.random.Generator) -> None:
        self.frequency = random.standard_normal((inputs, FEATURES)) / (0.25 * inputs)
        self.phase = random.uniform(0, 2 * np.pi, FEATURES)
        self.amplitude = random.standard_normal(FEATURES) * np.sqrt(2 / FEATURES)

    def __call__(self, x: Floats) -> Floats:
        """Values (n,) at x (n, inputs)."""
        result: Floats = np.cos(x @ self.frequency + self.phase) @ self.amplitude
        return result


def synthetic_tasks(
    seed: int,
    scenario: Scenario = 4,
    *,
    tasks: int = 10,
    outliers: int = 2,
    inputs: int = 5,
    rows: int = 300,
    test_rows: int = 1000,
    classify: bool = False,
) -> Tasks:
    """Draw tasks: 1 one function for all, 2 unrelated, 3 related, 4 related with a second, outlying group.

    Args:
        seed: of everything drawn.
        scenario: which of the four.
        tasks: number of tasks.
        outliers: tasks of scenario 4 that share another common function.
        inputs: columns besides the task.
        rows: training rows of a task.
        test_rows: test rows of a task.
        classify: give the sign of the function as classes 0 and 1; functions are drawn again until each
            class has a tenth of every task's training rows.

    Raises:
        InputError: if the scenario is unknown, or there are not fewer outliers than tasks.
    """
    if scenario not in (1, 2, 3, 4):
        raise InputError(f"scenario is 1, 2, 3 or 4; got {scenario!r}")
    if not 0 <= outliers < tasks:
        raise InputError(f"outliers must be at least 0 and below the {tasks} tasks, got {outliers}")
    random = np.random.default_rng(seed)
    planted = np.zeros(tasks, dtype=bool)
    if scenario == 4 and outliers:
        planted[-outliers:] = True
    x = random.uniform(-1, 1, (tasks, rows + test_rows, inputs))
    while True:
        common, second = RandomFunction(inputs, random), RandomFunction(inputs, random)
        values = np.empty((tasks, rows + test_rows))
        for task in range(tasks):
            own = RandomFunction(inputs, random)
            shared = second if planted[task] else common
            share = {1: 1.0, 2: 0.0, 3: 0.9, 4: 0.9}[scenario]
            values[task] = share * shared(x[task]) + (1 - share) * own(x[task])
        positive = (values[:, :rows] > 0).mean(1)
        if not classify or (positive.min() >= 0.1 and positive.max() <= 0.9):
            break
    if classify:
        values = (values > 0).astype(np.float64)
    number = np.broadcast_to(np.arange(tasks)[:, None, None], (*x.shape[:2], 1))
    table = np.concatenate([x, number], axis=2)

    def flat(part: slice) -> tuple[Floats, Floats]:
        return table[:, part].reshape(-1, inputs + 1), values[:, part].reshape(-1)

    return Tasks(*flat(slice(0, rows)), *flat(slice(rows, None)), planted)
