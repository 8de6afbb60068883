"""R-MTGB as scikit-learn estimators.

'Robust-Multi-Task Gradient Boosting', 2025, arXiv 2507.11411. One column of X names the task of a row;
the other columns are what trees see.
"""

from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyhead.boosting.blocks import Booster, Ensemble, Schedule, Table, sigmoid
from manyhead.boosting.losses import CrossEntropy, Loss, SquaredError, softmax
from manyhead.boosting.trees import ExactGrower, Floats, Grower, HistogramGrower
from manyhead.errors import InputError, optional

optional("sklearn", "boosting")

from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data  # noqa: E402

EXACT_ROWS = 20_000  # splitter 'auto' tries every split up to here


class RobustMultiTaskGradientBoosting(BaseEstimator):  # type: ignore[misc]
    """What the regressor and the classifier share; use one of those.

    Args:
        n_shared: iterations of block 1, trees of all tasks.
        n_split: iterations of block 2, which separates outlier tasks from the others; 0 gives
            multi-task boosting without outliers.
        n_own: iterations of block 3, trees of each task alone.
        learning_rate: share of each tree, above 0.
        task_column: column of X with the task of each row (any numbers); None takes all rows as one
            task and every column as a feature.
        max_leaf_nodes: leaves of a tree; 2, a stump, is what the paper's code fits.
        max_depth: longest path of a tree, None for no bound.
        min_samples_leaf: rows that a leaf has at least.
        subsample: share of the rows, drawn afresh for every tree.
        splitter: 'exact' takes scikit-learn's trees, 'histogram' trees on binned columns, which are
            faster on long tables; 'auto' is exact up to 20,000 rows.
        max_bins: bins of a column of the histogram splitter, 2 to 256.
        theta0: (tasks,) first theta in the sorted order of the tasks; None draws 0.1 N(0, 1).
        theta_l2: strength of a penalty on theta.
        theta_mean: average the gradient of theta over a task's rows instead of adding it up.
        unknown_task: s of a task that was not in training: 'majority' takes the mean of the larger side,
            'half' takes 0.5, 'error' refuses.
        n_iter_no_change: iterations without a fall of the loss on held-out rows that end a block; None
            holds out nothing.
        validation_fraction: share of the rows held out of every task.
        tol: fall of the held-out loss that counts.
        random_state: seed of theta, of subsamples, of the rows held out and of ties between splits.

    Attributes:
        tasks_: (tasks,) task names in sorted order.
        theta_: (tasks,); `theta_path_` (n_split, tasks) after every iteration of block 2.
        task_weights_: (tasks,) s = sigmoid(theta), whose polarity is arbitrary.
        outlierness_: (tasks,) s turned so that the larger group of tasks is below one half.
        ensemble_: the trees.
    """

    def __init__(
        self,
        n_shared: int = 50,
        n_split: int = 150,
        n_own: int = 50,
        learning_rate: float = 0.1,
        task_column: int | None = -1,
        max_leaf_nodes: int = 2,
        max_depth: int | None = None,
        min_samples_leaf: int = 1,
        subsample: float = 1.0,
        splitter: Literal["auto", "exact", "histogram"] = "auto",
        max_bins: int = 255,
        theta0: ArrayLike | None = None,
        theta_l2: float = 0.0,
        theta_mean: bool = False,
        unknown_task: Literal["majority", "half", "error"] = "majority",
        n_iter_no_change: int | None = None,
        validation_fraction: float = 0.1,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_shared = n_shared
        self.n_split = n_split
        self.n_own = n_own
        self.learning_rate = learning_rate
        self.task_column = task_column
        self.max_leaf_nodes = max_leaf_nodes
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.subsample = subsample
        self.splitter = splitter
        self.max_bins = max_bins
        self.theta0 = theta0
        self.theta_l2 = theta_l2
        self.theta_mean = theta_mean
        self.unknown_task = unknown_task
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.random_state = random_state

    def _check_parameters(self) -> None:
        whole = {
            "n_shared": (self.n_shared, 0),
            "n_split": (self.n_split, 0),
            "n_own": (self.n_own, 0),
            "max_leaf_nodes": (self.max_leaf_nodes, 2),
            "min_samples_leaf": (self.min_samples_leaf, 1),
        }
        for optional_name, value in (
            ("max_depth", self.max_depth),
            ("n_iter_no_change", self.n_iter_no_change),
        ):
            if value is not None:
                whole[optional_name] = (value, 1)
        for name, (value, least) in whole.items():
            if not isinstance(value, Integral) or value < least:
                raise InputError(f"{name} is a whole number of at least {least}, got {value!r}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate!r}")
        if not 0 < self.subsample <= 1:
            raise InputError(f"subsample must be above 0 and at most 1, got {self.subsample!r}")
        if self.theta_l2 < 0 or self.tol < 0:
            raise InputError(
                f"theta_l2 and tol must be at or above 0, got {self.theta_l2!r} and {self.tol!r}"
            )
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction!r}")
        if not 2 <= self.max_bins <= 256:
            raise InputError(f"max_bins must be 2 to 256, got {self.max_bins!r}")
        for name, choice, accepted in (
            ("splitter", self.splitter, ("auto", "exact", "histogram")),
            ("unknown_task", self.unknown_task, ("majority", "half", "error")),
        ):
            if choice not in accepted:
                raise InputError(f"{name} is one of {', '.join(accepted)}; got {choice!r}")

    def _columns(self, X: NDArray[np.floating]) -> tuple[NDArray[np.float32], Floats]:
        """Features (n, features) column by column in memory, and task names (n,)."""
        if self.task_column is None:
            return np.asfortranarray(X, dtype=np.float32), np.zeros(len(X))
        if not -X.shape[1] <= self.task_column < X.shape[1]:
            raise InputError(f"task_column {self.task_column} is not a column of X, which has {X.shape[1]}")
        if X.shape[1] < 2:
            raise InputError(
                "X has 1 feature(s) and that is the task; trees need a minimum of 1 besides it "
                "(task_column=None takes all rows as one task)"
            )
        names = X[:, self.task_column].astype(np.float64)
        features = np.delete(X, self.task_column % X.shape[1], axis=1)
        return np.asfortranarray(features, dtype=np.float32), names

    def _fit(self, X: NDArray[np.floating], target: Floats, weight: Floats | None, loss: Loss) -> Self:
        """Fit to targets (n, outputs) that are already encoded."""
        if weight is not None:  # a row of no weight is a row that is not there
            kept = weight > 0
            X, target, weight = X[kept], target[kept], weight[kept]
            if not len(X):
                raise InputError("sample_weight is zero for every row")
            if (weight == weight[0]).all():
                weight = None if weight[0] == 1 else weight
        random = check_random_state(self.random_state)
        features, names = self._columns(X)
        self.tasks_, task = np.unique(names, return_inverse=True)
        theta = self._first_theta(random)
        order = np.argsort(task, kind="stable")
        held = np.zeros(len(task), dtype=bool)
        if self.n_iter_no_change is not None:
            for number in range(len(self.tasks_)):
                rows = np.flatnonzero(task == number)
                count = min(round(self.validation_fraction * len(rows)), len(rows) - 1)
                held[random.permutation(rows)[:count]] = True
            if not held.any():
                raise InputError(
                    f"validation_fraction {self.validation_fraction:g} holds out no row of any task; "
                    "raise it, or set n_iter_no_change=None"
                )

        def table(rows: NDArray[np.intp]) -> Table:
            part = None if weight is None else weight[rows]
            return Table(np.asfortranarray(features[rows]), target[rows], task[rows], part)

        training = table(order[~held[order]])
        self.ensemble_ = Ensemble(self.learning_rate, target.shape[1], theta)
        schedule = Schedule(
            self.n_shared,
            self.n_split,
            self.n_own,
            self.subsample,
            self.theta_l2,
            self.theta_mean,
            self.n_iter_no_change,
            self.tol,
        )
        validation = table(np.flatnonzero(held)) if self.n_iter_no_change is not None else None
        Booster(
            self.ensemble_, training, self._grower(training.x, random), loss, schedule, random, validation
        ).fit()
        self.theta_ = self.ensemble_.theta
        self.theta_path_ = np.array(self.ensemble_.theta_path).reshape(-1, len(self.tasks_))
        self.task_weights_ = sigmoid(self.theta_)
        self.outlierness_ = relabel(self.task_weights_)
        return self

    def _first_theta(self, random: np.random.RandomState) -> Floats:
        if self.theta0 is None:
            return 0.1 * random.standard_normal(len(self.tasks_))
        theta = np.asarray(self.theta0, dtype=np.float64)
        if theta.shape != (len(self.tasks_),) or not np.isfinite(theta).all():
            raise InputError(
                f"theta0 needs one finite number for each of the {len(self.tasks_)} tasks, "
                f"got shape {theta.shape}"
            )
        return theta

    def _grower(self, x: NDArray[np.float32], random: np.random.RandomState) -> Grower:
        shape = (self.max_leaf_nodes, self.max_depth, self.min_samples_leaf)
        exact = self.splitter == "exact" or (self.splitter == "auto" and len(x) <= EXACT_ROWS)
        return ExactGrower(x, *shape, random) if exact else HistogramGrower(x, *shape, self.max_bins)

    def _raw(self, X: Any) -> Floats:
        """Raw scores (n, outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        features, names = self._columns(X)
        place = np.searchsorted(self.tasks_, names)
        known = self.tasks_[np.minimum(place, len(self.tasks_) - 1)] == names
        if self.unknown_task == "error" and not known.all():
            raise InputError(f"task {names[~known][0]:g} was not in training")
        return self.ensemble_.raw(features, np.where(known, place, -1), self._unknown_weight())

    def _unknown_weight(self) -> float:
        if self.unknown_task == "half":
            return 0.5
        return float(self.task_weights_[self.outlierness_ <= 0.5].mean())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = False
        return tags


def relabel(weights: Floats) -> Floats:
    """Turn weights s of tasks so that the larger group is not above one half; equal groups by their mean.

    Args:
        weights: (tasks,) in 0 to 1.
    """
    above = int((weights >= 0.5).sum())
    below = len(weights) - above
    turn = above > below or (above == below and weights.mean() > 0.5)
    turned: Floats = 1 - weights if turn else weights
    return turned


class RobustMultiTaskGradientBoostingRegressor(RegressorMixin, RobustMultiTaskGradientBoosting):  # type: ignore[misc]
    """Regression over several tasks by half the squared error; several outputs are fitted jointly.

    'Robust-Multi-Task Gradient Boosting', 2025, arXiv 2507.11411. Parameters and attributes are those of
    `RobustMultiTaskGradientBoosting`.
    """

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to X (n, features with the task column), y (n,) or (n, outputs).

        Raises:
            InputError: if a parameter is out of its range or the task column is not there.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        target = np.asarray(y, dtype=np.float64)
        self._flat = target.ndim == 1
        return self._fit(X, target.reshape(len(target), -1), weight, SquaredError())

    def predict(self, X: ArrayLike) -> Floats:
        """Predicted targets, of the shape of y in training."""
        raw = self._raw(X)
        return raw[:, 0] if self._flat else raw

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class RobustMultiTaskGradientBoostingClassifier(ClassifierMixin, RobustMultiTaskGradientBoosting):  # type: ignore[misc]
    """Classification over several tasks by softmax cross-entropy, two raw scores for two classes.

    'Robust-Multi-Task Gradient Boosting', 2025, arXiv 2507.11411. Parameters and attributes are those of
    `RobustMultiTaskGradientBoosting`, and `classes_`.
    """

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to X (n, features with the task column) and class labels y (n,).

        Raises:
            InputError: if a parameter is out of its range, the task column is not there, or there is
                only one class.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.classes_, label = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"a classifier needs at least two classes, the labels have 1 class, {self.classes_[0]!r}"
            )
        return self._fit(X, np.eye(len(self.classes_))[label], weight, CrossEntropy())

    def decision_function(self, X: ArrayLike) -> Floats:
        """Raw scores (n, classes); for two classes the second minus the first, (n,)."""
        raw = self._raw(X)
        return raw[:, 1] - raw[:, 0] if len(self.classes_) == 2 else raw

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities (n, classes)."""
        return softmax(self._raw(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class of every row, (n,)."""
        raw = self._raw(X)
        result: NDArray[Any] = self.classes_[raw.argmax(1)]
        return result
