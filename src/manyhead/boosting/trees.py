"""Regression trees for boosting: scikit-learn's exact ones, and histogram trees for long tables.

Both are fitted to all outputs jointly by squared error and keep the mean target in each leaf. The
histogram tree sorts a column once into at most `bins` bins; every split is then two sums over the bins.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import optional

Floats = NDArray[np.float64]
Columns = NDArray[np.float32]
Rows = NDArray[np.intp] | slice


@dataclass(frozen=True)
class Tree:
    """A binary tree; a row goes left where `x[feature] <= threshold`.

    Args:
        feature: (nodes,) feature of each split, -1 at leaves.
        threshold: (nodes,).
        left: (nodes,) index of the left child.
        right: (nodes,) index of the right child.
        value: (nodes, outputs) mean target.
    """

    feature: NDArray[np.intp]
    threshold: Floats
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    value: Floats

    def predict(self, x: Columns) -> Floats:
        """Value of the leaf of every row of `x` (n, features), (n, outputs)."""
        if self.feature[0] < 0:
            return np.broadcast_to(self.value[0], (len(x), self.value.shape[1]))
        if len(self.feature) == 3:  # a stump needs no walk
            goes_left = x[:, self.feature[0]] <= self.threshold[0]
            leaf: Floats = self.value[np.where(goes_left, self.left[0], self.right[0])]
            return leaf
        node = np.zeros(len(x), dtype=np.intp)
        while True:
            rows = np.flatnonzero(self.feature[node] >= 0)
            if not len(rows):
                return self.value[node]
            at = node[rows]
            goes_left = x[rows, self.feature[at]] <= self.threshold[at]
            node[rows] = np.where(goes_left, self.left[at], self.right[at])


class Grower(Protocol):
    """Fits trees to different targets on one table."""

    def grow(self, target: Floats, rows: Rows, weight: Floats | None) -> Tree:
        """Fit a tree to `target` (m, outputs), `weight` (m,), on the m rows `rows` of the table."""


class ExactGrower:
    """Trees of scikit-learn, which tries every split.

    Args:
        x: (n, features) float32.
        max_leaf_nodes: leaves of a tree.
        max_depth: longest path of a tree, None for no bound.
        min_samples_leaf: rows that a leaf has at least.
        random_state: breaks ties between equally good splits.
    """

    def __init__(
        self,
        x: Columns,
        max_leaf_nodes: int,
        max_depth: int | None,
        min_samples_leaf: int,
        random_state: np.random.RandomState,
    ) -> None:
        self.x = x
        tree: Any = optional("sklearn.tree", "boosting").DecisionTreeRegressor
        self.make: Callable[[], Any] = lambda: tree(
            criterion="squared_error",
            max_leaf_nodes=max_leaf_nodes,
            max_depth=max_depth,
            min_samples_leaf=min_samples_leaf,
            random_state=random_state,
        )

    def grow(self, target: Floats, rows: Rows, weight: Floats | None) -> Tree:
        """Fit a tree to `target` (m, outputs), `weight` (m,), on the m rows `rows` of the table."""
        found = self.make().fit(self.x[rows], target, sample_weight=weight, check_input=False).tree_
        feature = np.where(found.children_left < 0, -1, found.feature)
        return Tree(
            feature.astype(np.intp),
            found.threshold.astype(np.float64),
            found.children_left.astype(np.intp),
            found.children_right.astype(np.intp),
            found.value[:, :, 0].astype(np.float64),
        )


@dataclass(frozen=True)
class _Split:
    gain: float
    feature: int
    bin: int


class HistogramGrower:
    """Trees on binned columns: time linear in rows, whatever the targets.

    Args:
        x: (n, features) float32.
        max_leaf_nodes: leaves of a tree.
        max_depth: longest path of a tree, None for no bound.
        min_samples_leaf: rows that a leaf has at least.
        bins: largest number of bins of a column, at most 256; columns with fewer values are exact.
    """

    def __init__(
        self,
        x: Columns,
        max_leaf_nodes: int,
        max_depth: int | None,
        min_samples_leaf: int,
        bins: int = 255,
    ) -> None:
        self.max_leaf_nodes, self.max_depth = max_leaf_nodes, max_depth
        self.min_samples_leaf = min_samples_leaf
        self.edges = [bin_edges(x[:, column], bins) for column in range(x.shape[1])]
        self.codes = np.empty(x.shape, dtype=np.uint8, order="F")
        for column, edges in enumerate(self.edges):
            # code b holds edges[b - 1] < x <= edges[b]
            self.codes[:, column] = np.searchsorted(edges, x[:, column], side="left")

    def grow(self, target: Floats, rows: Rows, weight: Floats | None) -> Tree:
        """Fit a tree to `target` (m, outputs), `weight` (m,), on the m rows `rows` of the table."""
        codes = self.codes[rows]
        feature, threshold, left, right, value = [-1], [0.0], [-1], [-1], []
        everything = np.arange(len(target))
        value.append(np.average(target, axis=0, weights=weight))
        depths = [0]
        waiting: list[tuple[float, int, _Split, NDArray[np.intp]]] = []

        def consider(node: int, members: NDArray[np.intp]) -> None:
            if self.max_depth is not None and depths[node] >= self.max_depth:
                return
            whole = len(members) == len(everything)
            split = self._best(
                codes if whole else codes[members],
                target if whole else target[members],
                weight if whole or weight is None else weight[members],
            )
            if split is not None:
                heapq.heappush(waiting, (-split.gain, node, split, members))

        consider(0, everything)
        leaves = 1
        while waiting and leaves < self.max_leaf_nodes:
            _, node, split, members = heapq.heappop(waiting)
            goes_left = codes[members, split.feature] <= split.bin
            feature[node], threshold[node] = split.feature, float(self.edges[split.feature][split.bin])
            left[node], right[node] = len(feature), len(feature) + 1
            leaves += 1
            for part in (members[goes_left], members[~goes_left]):
                child = len(feature)
                feature.append(-1)
                threshold.append(0.0)
                left.append(-1)
                right.append(-1)
                depths.append(depths[node] + 1)
                value.append(
                    np.average(target[part], axis=0, weights=None if weight is None else weight[part])
                )
                if leaves < self.max_leaf_nodes:
                    consider(child, part)
        return Tree(np.array(feature), np.array(threshold), np.array(left), np.array(right), np.array(value))

    def _best(self, codes: NDArray[np.uint8], target: Floats, weight: Floats | None) -> _Split | None:
        """The split with the largest fall of the squared error, None where no split is possible."""
        best: _Split | None = None
        weighted = target if weight is None else target * weight[:, None]
        sums = weighted.sum(0)  # (outputs,)
        mass = float(len(target) if weight is None else weight.sum())
        parent = float(sums @ sums) / mass
        for feature, edges in enumerate(self.edges):
            if not len(edges):
                continue
            column, size = codes[:, feature].astype(np.intp), len(edges) + 1
            count = np.bincount(column, minlength=size)[:-1].cumsum()  # rows that go left, by split
            held = count if weight is None else np.bincount(column, weight, size)[:-1].cumsum()
            left = np.stack([np.bincount(column, w, size)[:-1].cumsum() for w in weighted.T], axis=1)
            allowed = (count >= self.min_samples_leaf) & (len(target) - count >= self.min_samples_leaf)
            if not allowed.any():
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                gain = (left**2).sum(1) / held + ((sums - left) ** 2).sum(1) / (mass - held) - parent
            gain = np.where(allowed, gain, -np.inf)
            at = int(gain.argmax())
            if gain[at] > max(1e-12 * parent, best.gain if best else 0.0):
                best = _Split(float(gain[at]), feature, at)
        return best


def bin_edges(column: Columns, bins: int) -> Floats:
    """Thresholds between bins: midpoints of neighbouring values, or of quantiles where there are many."""
    values = np.unique(column).astype(np.float64)
    if len(values) > bins:
        sample = column if len(column) <= 200_000 else column[:: len(column) // 200_000 + 1]
        values = np.unique(np.quantile(sample, np.linspace(0, 1, bins)))
    edges: Floats = values[:-1] / 2 + values[1:] / 2
    return edges
