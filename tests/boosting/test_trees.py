"""Histogram trees against scikit-learn's exact ones, and against every split tried by hand."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from manyhead.boosting.trees import ExactGrower, HistogramGrower, bin_edges


@pytest.mark.parametrize("leaves", [2, 3, 8])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_with_a_bin_for_every_value_both_trees_say_the_same(
    leaves: int, outputs: int, weighted: bool
) -> None:
    random = np.random.default_rng(leaves * outputs)
    x = np.asfortranarray(random.integers(0, 40, (300, 4)), dtype=np.float32)
    target = random.normal(size=(300, outputs)) + x[:, :1]
    weight = random.uniform(0.1, 2, 300) if weighted else None
    shape = (leaves, None, 5)
    exact = ExactGrower(x, *shape, np.random.RandomState(0)).grow(target, slice(0, 300), weight)
    binned = HistogramGrower(x, *shape).grow(target, slice(0, 300), weight)
    np.testing.assert_allclose(binned.predict(x), exact.predict(x), atol=1e-12)
    assert len(binned.feature) == 2 * leaves - 1


def test_a_stump_is_the_best_of_all_splits() -> None:
    random = np.random.default_rng(3)
    x = np.asfortranarray(random.normal(size=(60, 3)), dtype=np.float32)
    target = random.normal(size=(60, 2))
    errors = {}
    for feature in range(3):
        for threshold in bin_edges(x[:, feature], 255):
            left = x[:, feature] <= threshold
            parts = (target[left], target[~left])
            errors[feature, threshold] = sum(((part - part.mean(0)) ** 2).sum() for part in parts)
    best = min(errors, key=lambda split: errors[split])
    tree = HistogramGrower(x, 2, None, 1).grow(target, slice(0, 60), None)
    assert (tree.feature[0], tree.threshold[0]) == best


def test_depth_and_rows_of_a_leaf_are_bounded() -> None:
    random = np.random.default_rng(4)
    x = np.asfortranarray(random.normal(size=(500, 2)), dtype=np.float32)
    target = random.normal(size=(500, 1))
    shallow = HistogramGrower(x, 64, 2, 1).grow(target, slice(0, 500), None)
    assert (shallow.feature < 0).sum() <= 4
    wide = HistogramGrower(x, 64, None, 40).grow(target, slice(0, 500), None)
    _, sizes = np.unique(wide.predict(x), return_counts=True)
    assert sizes.min() >= 40


@pytest.mark.parametrize("kind", [ExactGrower, HistogramGrower])
def test_what_cannot_be_split_is_one_leaf(kind: type) -> None:
    x = np.ones((10, 2), dtype=np.float32)
    extra = (np.random.RandomState(0),) if kind is ExactGrower else ()
    tree = kind(x, 2, None, 1, *extra).grow(np.arange(10.0)[:, None], slice(0, 10), None)
    assert tree.feature.tolist() == [-1]
    np.testing.assert_allclose(tree.predict(x), 4.5)


def test_many_values_fall_into_at_most_the_bins_asked_for() -> None:
    column = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    edges = bin_edges(column, 64)
    assert len(edges) <= 63
    counts = np.bincount(np.searchsorted(edges, column))
    assert counts.max() < 3 * len(column) / 64
