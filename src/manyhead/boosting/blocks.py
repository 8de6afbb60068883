"""Robust multi-task gradient boosting: shared trees, a soft split of outlier tasks, trees of each task.

'Robust-Multi-Task Gradient Boosting', 2025, arXiv 2507.11411. For a row of task t the ensemble is

    F(x, t) = F_sh(x) + s_t F_out(x) + (1 - s_t) F_non(x) + F_t(x),   s_t = sigmoid(theta_t)

and its blocks are boosted one after the other, all from zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from manyhead.boosting.losses import Loss
from manyhead.boosting.trees import Columns, Floats, Grower, Rows, Tree


def sigmoid(theta: Floats) -> Floats:
    """1 / (1 + exp(-theta)), without overflow."""
    result: Floats = 0.5 * (1 + np.tanh(0.5 * theta))
    return result


@dataclass
class Ensemble:
    """The trees of the three blocks and the weight of each task.

    Args:
        learning_rate: eta, the share of each tree.
        outputs: raw scores of a row.
        theta: (tasks,).
        shared: trees of block 1.
        outlier: trees of block 2 that count s_t.
        regular: trees of block 2 that count 1 - s_t.
        own: trees of block 3 of each task.
    """

    learning_rate: float
    outputs: int
    theta: Floats
    shared: list[Tree] = field(default_factory=list)
    outlier: list[Tree] = field(default_factory=list)
    regular: list[Tree] = field(default_factory=list)
    own: list[list[Tree]] = field(default_factory=list)
    theta_path: list[Floats] = field(default_factory=list)

    def raw(self, x: Columns, task: NDArray[np.intp], unknown: float) -> Floats:
        """Raw scores (n, outputs).

        Args:
            x: (n, features).
            task: (n,) index of the task, -1 for a task that was not in training.
            unknown: s of such a task.
        """
        s = np.append(sigmoid(self.theta), unknown)[task][:, None]  # index -1 is the unknown task
        total = self._sum(self.shared, x)
        if self.outlier:
            total += s * self._sum(self.outlier, x) + (1 - s) * self._sum(self.regular, x)
        for number, trees in enumerate(self.own):
            rows = np.flatnonzero(task == number)
            if len(rows) and trees:
                total[rows] += self._sum(trees, x[rows])
        return total

    def _sum(self, trees: list[Tree], x: Columns) -> Floats:
        total = np.zeros((len(x), self.outputs))
        for tree in trees:
            total += self.learning_rate * tree.predict(x)
        return total


@dataclass
class Table:
    """Rows of all tasks and what the ensemble says of them so far.

    Args:
        x: (n, features) float32.
        target: (n, outputs).
        task: (n,) index of the task.
        weight: (n,) weight of each row, None for ones.
    """

    x: Columns
    target: Floats
    task: NDArray[np.intp]
    weight: Floats | None = None

    def __post_init__(self) -> None:
        self.base = np.zeros_like(self.target)  # F_sh, later with F_t
        self.out = np.zeros_like(self.target)
        self.regular = np.zeros_like(self.target)

    def raw(self, theta: Floats, rows: Rows = slice(None)) -> Floats:
        """Raw scores (m, outputs) of some rows under the present parts."""
        s = sigmoid(theta)[self.task[rows]][:, None]
        result: Floats = self.base[rows] + s * self.out[rows] + (1 - s) * self.regular[rows]
        return result


@dataclass(frozen=True)
class Schedule:
    """Lengths of the three blocks and how their steps are taken.

    Args:
        shared: iterations of block 1.
        split: iterations of block 2.
        own: iterations of block 3.
        subsample: share of the rows, drawn afresh, that a tree is fitted to.
        theta_l2: strength of the penalty theta^2 / 2.
        theta_mean: divide the gradient of theta_t by the weight of task t's rows.
        patience: iterations without a fall of the validation loss that end a block; None never ends it.
        tolerance: fall that counts.
    """

    shared: int
    split: int
    own: int
    subsample: float = 1.0
    theta_l2: float = 0.0
    theta_mean: bool = False
    patience: int | None = None
    tolerance: float = 1e-4


class _Patience:
    """Says when a loss has not fallen for some iterations."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.best, self.since = schedule, np.inf, 0

    def over(self, loss: Callable[[], float]) -> bool:
        if self.schedule.patience is None:
            return False
        value = loss()
        if value < self.best - self.schedule.tolerance:
            self.best, self.since = value, 0
        else:
            self.since += 1
        return self.since >= self.schedule.patience


class Booster:
    """Fits the three blocks.

    Args:
        ensemble: an empty ensemble with the first theta; it is filled.
        table: training rows, sorted by task.
        grower: fits trees on the table's columns.
        loss: squared error or cross-entropy.
        schedule: lengths of the blocks.
        random: draws the subsamples.
        validation: held-out rows, needed if the schedule has patience.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        table: Table,
        grower: Grower,
        loss: Loss,
        schedule: Schedule,
        random: np.random.RandomState,
        validation: Table | None = None,
    ) -> None:
        self.ensemble, self.table, self.grower, self.loss = ensemble, table, grower, loss
        self.schedule, self.random, self.validation = schedule, random, validation
        self.tasks = len(ensemble.theta)
        bounds = np.searchsorted(table.task, np.arange(self.tasks + 1))
        self.rows_of = [slice(a, b) for a, b in pairwise(bounds)]

    def fit(self) -> None:
        """Boost block 1, block 2, block 3."""
        self._shared()
        self._split()
        self._own()

    def _grow(self, target: Floats, rows: slice) -> Tree:
        """Fit a tree to (a fresh sample of) the rows of a slice; `target` covers the slice."""
        weight = self.table.weight
        chosen: Rows = rows
        if self.schedule.subsample < 1:
            count = max(1, round(self.schedule.subsample * len(target)))
            sample = np.sort(self.random.choice(len(target), count, replace=False))
            target, chosen = target[sample], rows.start + sample
        return self.grower.grow(target, chosen, None if weight is None else weight[chosen])

    def _residual(self, rows: slice, theta: Floats) -> Floats:
        return self.loss.negative_gradient(self.table.target[rows], self.table.raw(theta, rows))

    def _mean_loss(self, table: Table, rows: Rows) -> float:
        raw = table.raw(self.ensemble.theta, rows)
        weight = None if table.weight is None else table.weight[rows]
        return float(np.average(self.loss.value(table.target[rows], raw), weights=weight))

    def _held_out_loss(self) -> float:
        assert self.validation is not None
        return self._mean_loss(self.validation, slice(None))

    @property
    def _tables(self) -> list[Table]:
        return [self.table] if self.validation is None else [self.table, self.validation]

    def _shared(self) -> None:
        everything, eta = slice(0, len(self.table.x)), self.ensemble.learning_rate
        patience = _Patience(self.schedule)
        for _ in range(self.schedule.shared):
            tree = self._grow(self._residual(everything, self.ensemble.theta), everything)
            self.ensemble.shared.append(tree)
            for table in self._tables:
                table.base += eta * tree.predict(table.x)
            if patience.over(self._held_out_loss):
                break

    def _split(self) -> None:
        everything, eta = slice(0, len(self.table.x)), self.ensemble.learning_rate
        ensemble, table, patience = self.ensemble, self.table, _Patience(self.schedule)
        for _ in range(self.schedule.split):
            s = sigmoid(ensemble.theta)
            of_row = s[table.task][:, None]
            residual = self._residual(everything, ensemble.theta)
            # dL/dtheta_t of the ensemble as it is before this iteration's trees
            pull = (residual * (table.out - table.regular)).sum(1)
            if table.weight is not None:
                pull *= table.weight
            step: Floats = np.bincount(table.task, pull, self.tasks).astype(np.float64)
            if self.schedule.theta_mean:
                step = step / np.maximum(np.bincount(table.task, table.weight, self.tasks), 1e-300)
            outlier = self._grow(of_row * residual, everything)
            regular = self._grow((1 - of_row) * residual, everything)
            ensemble.outlier.append(outlier)
            ensemble.regular.append(regular)
            for part in self._tables:
                part.out += eta * outlier.predict(part.x)
                part.regular += eta * regular.predict(part.x)
            penalty = self.schedule.theta_l2 * ensemble.theta
            ensemble.theta = ensemble.theta + eta * (step * s * (1 - s) - penalty)
            ensemble.theta_path.append(ensemble.theta)
            if patience.over(self._held_out_loss):
                break

    def _own(self) -> None:
        eta, ensemble = self.ensemble.learning_rate, self.ensemble
        for number, rows in enumerate(self.rows_of):  # tasks do not meet in this block
            trees: list[Tree] = []
            ensemble.own.append(trees)
            held = None
            if self.validation is not None:
                held = np.flatnonzero(self.validation.task == number)
            patience = _Patience(self.schedule)
            for _ in range(self.schedule.own):
                tree = self._grow(self._residual(rows, ensemble.theta), rows)
                trees.append(tree)
                self.table.base[rows] += eta * tree.predict(self.table.x[rows])
                if held is not None and len(held):
                    assert self.validation is not None
                    self.validation.base[held] += eta * tree.predict(self.validation.x[held])
                    part, at = self.validation, held

                    def loss(part: Table = part, at: NDArray[np.intp] = at) -> float:
                        return self._mean_loss(part, at)

                    if patience.over(loss):
                        break
