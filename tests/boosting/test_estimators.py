"""R-MTGB: special cases, invariances, scikit-learn's conventions, and bad input."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from manyhead.boosting.estimators import (
    RobustMultiTaskGradientBoostingClassifier as Classifier,
)
from manyhead.boosting.estimators import (
    RobustMultiTaskGradientBoostingRegressor as Regressor,
)
from manyhead.boosting.estimators import relabel
from manyhead.boosting.synthetic import synthetic_tasks
from manyhead.errors import InputError


def table(seed: int, tasks: int = 3, rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    data = synthetic_tasks(seed, 3, tasks=tasks, outliers=0, inputs=3, rows=rows, test_rows=1)
    return data.x_train, data.y_train


@pytest.mark.parametrize("splitter", ["exact", "histogram"])
def test_block_one_alone_is_ordinary_boosting_of_stumps(splitter: Any) -> None:
    x, y = table(0)
    ours = Regressor(20, 0, 0, splitter=splitter, random_state=0).fit(x, y)
    theirs = GradientBoostingRegressor(n_estimators=20, max_leaf_nodes=2, init="zero", random_state=0)
    theirs.fit(x[:, :-1].astype(np.float32), y)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x[:, :-1].astype(np.float32)), atol=1e-6)


@pytest.mark.parametrize("leaves", [2, 5])
def test_block_three_alone_is_one_booster_for_every_task(leaves: int) -> None:
    x, y = table(1)
    together = Regressor(0, 0, 15, max_leaf_nodes=leaves, random_state=0).fit(x, y)
    for task in range(3):
        rows = x[:, -1] == task
        alone = Regressor(15, 0, 0, max_leaf_nodes=leaves, random_state=0).fit(x[rows], y[rows])
        np.testing.assert_allclose(together.predict(x[rows]), alone.predict(x[rows]), atol=1e-12)


def test_after_block_one_equal_rows_of_two_tasks_are_predicted_alike() -> None:
    x, y = table(2)
    model = Regressor(15, 0, 0).fit(x, y)
    other = x.copy()
    other[:, -1] = (x[:, -1] + 1) % 3
    assert np.array_equal(model.predict(x), model.predict(other))


@pytest.mark.parametrize("side", [30.0, -30.0])
def test_with_theta_far_out_only_one_side_is_trained(side: float) -> None:
    x, y = table(3)
    model = Regressor(5, 10, 0, theta0=np.full(3, side), random_state=0).fit(x, y)
    idle = model.ensemble_.regular if side > 0 else model.ensemble_.outlier
    busy = model.ensemble_.outlier if side > 0 else model.ensemble_.regular
    assert max(np.abs(tree.value).max() for tree in idle) < 1e-12
    assert min(np.abs(tree.value).max() for tree in busy) > 1e-3


@given(st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_turning_theta_swaps_the_sides_and_keeps_predictions(seed: int) -> None:
    x, y = table(seed)
    theta = np.random.default_rng(seed).normal(size=3)
    one = Regressor(4, 12, 3, theta0=theta, random_state=0).fit(x, y)
    other = Regressor(4, 12, 3, theta0=-theta, random_state=0).fit(x, y)
    np.testing.assert_allclose(one.theta_, -other.theta_, atol=1e-10)
    np.testing.assert_allclose(one.predict(x), other.predict(x), atol=1e-10)
    for left, right in zip(one.ensemble_.outlier, other.ensemble_.regular, strict=True):
        np.testing.assert_allclose(left.value, right.value, atol=1e-10)
    np.testing.assert_allclose(one.outlierness_, other.outlierness_, atol=1e-10)


@given(st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_names_of_tasks_and_the_order_of_rows_do_not_matter(seed: int) -> None:
    x, y = table(seed)
    theta = np.random.default_rng(seed).normal(size=3)
    plain = Regressor(4, 12, 3, theta0=theta, random_state=0).fit(x, y)
    renamed, new = x.copy(), np.array([2, 0, 1])
    renamed[:, -1] = new[x[:, -1].astype(int)] * 10 - 7
    names = Regressor(4, 12, 3, theta0=theta[np.argsort(new)], random_state=0).fit(renamed, y)
    np.testing.assert_allclose(names.theta_[new], plain.theta_, atol=1e-9)
    np.testing.assert_allclose(names.predict(renamed), plain.predict(x), atol=1e-9)
    order = np.random.default_rng(seed).permutation(len(x))
    mixed = Regressor(4, 12, 3, theta0=theta, random_state=0).fit(x[order], y[order])
    np.testing.assert_allclose(mixed.predict(x), plain.predict(x), atol=1e-9)


@pytest.mark.parametrize("kind", [Regressor, Classifier])
def test_the_training_loss_never_rises_with_more_trees_of_block_one_or_three(kind: Any) -> None:
    x, y = table(4)
    y = y if kind is Regressor else (y > np.median(y)).astype(int)

    def loss(*blocks: int) -> float:
        model = kind(*blocks, learning_rate=0.5, random_state=0).fit(x, y)
        if kind is Regressor:
            return float(((model.predict(x) - y) ** 2).mean())
        return float(-np.log(model.predict_proba(x)[np.arange(len(y)), y]).mean())

    shared = [loss(n, 0, 0) for n in range(1, 8)]
    own = [loss(2, 3, n) for n in range(8)]
    assert (np.diff(shared) <= 1e-12).all()
    assert (np.diff(own) <= 1e-12).all()


def test_one_task_boosts_two_parallel_residual_learners() -> None:
    x, y = table(5, tasks=1)
    model = Regressor(0, 30, 0, theta0=[0.0]).fit(x, y)
    # at s = 1/2 both sides get the same trees, so theta has nothing to pull it
    assert abs(model.theta_[0]) < 1e-12
    for left, right in zip(model.ensemble_.outlier, model.ensemble_.regular, strict=True):
        np.testing.assert_allclose(left.value, right.value, atol=1e-12)
    # s F_out + (1 - s) F_non then grows by half of eta times a tree of half the residual, twice
    half = Regressor(30, 0, 0, learning_rate=0.05).fit(x, y)
    np.testing.assert_allclose(model.predict(x), half.predict(x), atol=1e-12)


@pytest.mark.parametrize("classify", [False, True])
def test_planted_outliers_are_found(classify: bool) -> None:
    data = synthetic_tasks(0, rows=100, test_rows=200, classify=classify)
    kind = Classifier if classify else Regressor
    model = kind(50, 100, 0, random_state=0).fit(data.x_train, data.y_train)
    assert np.array_equal(model.outlierness_ > 0.5, data.outliers)
    gap = model.outlierness_[data.outliers].mean() - model.outlierness_[~data.outliers].mean()
    assert gap > 0.6
    pooled = kind(150, 0, 0, random_state=0).fit(data.x_train, data.y_train)
    rows = np.isin(data.x_test[:, -1], np.flatnonzero(data.outliers))
    assert model.score(data.x_test[rows], data.y_test[rows]) > pooled.score(
        data.x_test[rows], data.y_test[rows]
    )


def test_a_task_absent_from_a_test_table_changes_nothing_for_the_others() -> None:
    x, y = table(6)
    model, before = Regressor(5, 15, 5, random_state=0).fit(x, y), x.copy()
    rows = x[:, -1] != 0  # the published code would take the trees of tasks 0 and 1 for these
    np.testing.assert_array_equal(model.predict(x[rows]), model.predict(x)[rows])
    np.testing.assert_array_equal(x, before)


def test_an_unknown_task_takes_the_side_of_the_majority_or_a_half_or_is_refused() -> None:
    x, y = table(7)
    model = Regressor(5, 15, 5, random_state=0).fit(x, y)
    strange = x.copy()
    strange[:, -1] = 1.5
    parts = model.ensemble_
    features = x[:, :-1].astype(np.float32)
    shared, out, regular = (
        parts._sum(t, features)[:, 0] for t in (parts.shared, parts.outlier, parts.regular)
    )
    s = model.task_weights_[model.outlierness_ <= 0.5].mean()
    np.testing.assert_allclose(model.predict(strange), shared + s * out + (1 - s) * regular)
    model.unknown_task = "half"
    np.testing.assert_allclose(model.predict(strange), shared + 0.5 * (out + regular))
    model.unknown_task = "error"
    with pytest.raises(InputError, match=r"task 1.5 was not in training"):
        model.predict(strange)


def test_outliers_are_relabelled_to_the_smaller_side() -> None:
    np.testing.assert_allclose(relabel(np.array([0.9, 0.8, 0.7, 0.1])), [0.1, 0.2, 0.3, 0.9])
    np.testing.assert_allclose(relabel(np.array([0.1, 0.2, 0.9])), [0.1, 0.2, 0.9])
    np.testing.assert_allclose(relabel(np.array([0.5])), [0.5])


def test_penalty_and_mean_of_theta() -> None:
    x, y = table(8)
    free = Regressor(5, 40, 0, theta0=[1.0, 1.0, -1.0]).fit(x, y)
    held = Regressor(5, 40, 0, theta0=[1.0, 1.0, -1.0], theta_l2=1.0).fit(x, y)
    assert np.abs(held.theta_).sum() < np.abs(free.theta_).sum()
    # in the second iteration, the first that moves theta, both steps differ by the rows of a task alone
    two = [
        Regressor(5, 2, 0, theta0=[1.0, 1.0, -1.0], theta_mean=mean).fit(x, y).theta_
        for mean in (False, True)
    ]
    np.testing.assert_allclose(two[0] - [1, 1, -1], 40 * (two[1] - [1, 1, -1]), rtol=1e-9)


def test_subsamples_are_fresh_so_that_every_row_is_used() -> None:
    x, y = table(9)
    seen: list[int] = []
    model = Regressor(60, 0, 0, subsample=0.2, random_state=0)

    class Watch:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def grow(self, target: Any, rows: Any, weight: Any) -> Any:
            assert len(target) == len(rows) == 24
            seen.extend(rows.tolist())
            return self.inner.grow(target, rows, weight)

    grower = model._grower
    model._grower = lambda *given: Watch(grower(*given))  # type: ignore[method-assign]
    model.fit(x, y)
    assert len(set(seen)) == len(x)


def test_blocks_end_early_when_held_out_rows_gain_nothing() -> None:
    random = np.random.default_rng(0)
    x = np.column_stack([random.normal(size=(300, 3)), np.repeat([0, 1, 2], 100)])
    noise = random.normal(size=300)
    short = Regressor(200, 200, 200, n_iter_no_change=3, validation_fraction=0.3, random_state=0).fit(
        x, noise
    )
    assert len(short.ensemble_.shared) < 60
    assert len(short.ensemble_.outlier) < 60
    assert all(len(trees) < 60 for trees in short.ensemble_.own)
    learnable = Regressor(40, 0, 0, n_iter_no_change=3, random_state=0).fit(x, x[:, 0])
    assert len(learnable.ensemble_.shared) == 40


def test_several_outputs_are_fitted_jointly() -> None:
    x, y = table(10)
    both = np.column_stack([y, -2 * y])
    model = Regressor(10, 10, 5, theta0=np.zeros(3) + 0.3, random_state=0).fit(x, both)
    assert model.predict(x).shape == both.shape
    np.testing.assert_allclose(model.predict(x)[:, 1], -2 * model.predict(x)[:, 0], atol=1e-9)


def test_rows_of_no_weight_are_rows_that_are_not_there() -> None:
    x, y = table(11)
    weight = np.ones(len(x))
    weight[::3] = 0
    theta = [0.1, -0.2, 0.3]
    weighted = Regressor(5, 10, 5, theta0=theta, random_state=0).fit(x, y, sample_weight=weight)
    removed = Regressor(5, 10, 5, theta0=theta, random_state=0).fit(x[weight > 0], y[weight > 0])
    np.testing.assert_allclose(weighted.predict(x), removed.predict(x))
    twice = Regressor(5, 10, 5, theta0=theta, random_state=0).fit(np.tile(x, (2, 1)), np.tile(y, 2))
    double = Regressor(5, 10, 5, theta0=theta, random_state=0).fit(x, y, sample_weight=np.full(len(x), 2.0))
    np.testing.assert_allclose(twice.predict(x), double.predict(x), atol=1e-9)


def test_the_task_column_goes_through_cross_validation() -> None:
    x, y = table(12)
    scores = cross_val_score(Regressor(10, 10, 5, task_column=-1, random_state=0), x, y, cv=3)
    assert scores.shape == (3,)
    front = np.column_stack([x[:, -1], x[:, :-1]])
    one = Regressor(5, 5, 5, task_column=0, random_state=0).fit(front, y).predict(front)
    np.testing.assert_allclose(one, Regressor(5, 5, 5, random_state=0).fit(x, y).predict(x))


# fifteen rows of thirty columns have many equally good splits, and the rounding of a weighted sum decides
# which of them scikit-learn's trees take; with the splits tied down, weights do equal repeated rows (above)
TIES = {"check_sample_weight_equivalence_on_dense_data": "equally good splits are taken by rounding"}


@parametrize_with_checks(
    [
        Regressor(8, 5, 3, learning_rate=0.4, task_column=None, random_state=0),
        Classifier(8, 5, 3, learning_rate=0.4, task_column=None, random_state=0),
    ],
    expected_failed_checks=lambda estimator: TIES,
)
def test_scikit_learn_finds_nothing_to_object(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_shared": -1}, "n_shared is a whole number of at least 0, got -1"),
        ({"n_split": 1.5}, "n_split is a whole number"),
        ({"max_leaf_nodes": 1}, "max_leaf_nodes is a whole number of at least 2"),
        ({"max_depth": 0}, "max_depth is a whole number of at least 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"subsample": 1.2}, "subsample must be above 0 and at most 1"),
        ({"theta0": [1.0]}, "one finite number for each of the 3 tasks"),
        ({"theta_l2": -1}, "theta_l2 and tol"),
        ({"splitter": "best"}, "splitter is one of auto, exact, histogram"),
        ({"unknown_task": "guess"}, "unknown_task is one of"),
        ({"max_bins": 1000}, "max_bins must be 2 to 256"),
        ({"validation_fraction": 1}, "validation_fraction must be between"),
        ({"task_column": 9}, "task_column 9 is not a column of X, which has 4"),
        ({"n_iter_no_change": 2, "validation_fraction": 1e-3}, "holds out no row"),
    ],
)
def test_parameters_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    x, y = table(13)
    with pytest.raises(InputError, match=message):
        Regressor(**parameters).fit(x, y)


def test_a_single_class_is_refused() -> None:
    x, y = table(14)
    with pytest.raises(InputError, match="at least two classes"):
        Classifier().fit(x, np.zeros(len(y)))
    with pytest.raises(InputError, match="outliers must be at least 0 and below the 3 tasks"):
        synthetic_tasks(0, tasks=3, outliers=3)
    with pytest.raises(InputError, match="scenario is 1, 2, 3 or 4"):
        synthetic_tasks(0, 5)  # type: ignore[arg-type]
