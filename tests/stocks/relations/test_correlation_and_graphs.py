"""Correlations against pandas-free references, graphs, and how both follow a permutation of the stocks."""

import numpy as np
import pytest
from scipy import stats

from manyhead.errors import InputError
from manyhead.stocks.relations import (
    Graph,
    correlation,
    nearest_graph,
    order_graph,
    spectral_vectors,
    threshold_graph,
)


def clustered(days: int = 200, stocks: int = 12, clusters: int = 3, seed: int = 0) -> np.ndarray:
    """Returns in which stock n moves with cluster n % clusters."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((days, clusters))
    return 0.01 * (common[:, np.arange(stocks) % clusters] + generator.standard_normal((days, stocks)))


def gapped(seed: int = 0) -> np.ndarray:
    returns = clustered(seed=seed)
    generator = np.random.default_rng(seed + 100)
    returns[generator.random(returns.shape) < 0.2] = np.nan
    return returns


def test_correlations_of_complete_rows_equal_numpy_and_scipy() -> None:
    returns = clustered()
    np.testing.assert_allclose(correlation(returns), np.corrcoef(returns.T), atol=1e-12)
    np.testing.assert_allclose(
        correlation(returns, "spearman"), stats.spearmanr(returns).statistic, atol=1e-12
    )


def test_gaps_are_left_out_pair_by_pair() -> None:
    returns = gapped()
    ours = correlation(returns)
    for first in range(12):
        for second in range(first):
            both = np.isfinite(returns[:, first]) & np.isfinite(returns[:, second])
            expected = np.corrcoef(returns[both, first], returns[both, second])[0, 1]
            assert ours[first, second] == pytest.approx(expected, abs=1e-10)
    assert np.array_equal(ours, ours.T)


def test_the_official_reading_of_gaps_is_a_return_of_zero() -> None:
    returns = gapped()
    expected = np.corrcoef(np.nan_to_num(returns).T)
    np.testing.assert_allclose(correlation(returns, missing="zero"), expected, atol=1e-12)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_still_or_absent_stocks_have_no_relations(method: str) -> None:
    returns = gapped()
    returns[:, 0] = 0.001
    returns[:, 1] = np.nan
    returns[19:, 2] = np.nan  # fewer than 20 days
    ours = correlation(returns, method)  # type: ignore[arg-type]
    assert np.array_equal(ours[:3], np.eye(12)[:3])
    assert np.isfinite(ours).all()


def test_nearest_neighbours_are_those_of_the_own_cluster() -> None:
    graph = nearest_graph(correlation(clustered()), 3)
    assert not graph.directed
    assert all(first % 3 == second % 3 for first, second in graph.edges)
    degree = graph.adjacency().sum(axis=0)
    assert (degree >= 3).all()  # chosen ones may have more
    assert len(nearest_graph(correlation(clustered(stocks=4)), 10).edges) == 6  # never more than all others


def test_the_threshold_graph_links_by_absolute_correlation() -> None:
    matrix = np.array([[1, 0.6, -0.7], [0.6, 1, 0.2], [-0.7, 0.2, 1]])
    assert threshold_graph(matrix, 0.5).edges.tolist() == [[0, 1], [0, 2]]
    assert threshold_graph(matrix, 0.65).edges.tolist() == [[0, 2]]


@pytest.mark.parametrize("build", [lambda c: nearest_graph(c, 2), lambda c: threshold_graph(c, 0.3)])
def test_permuting_the_stocks_permutes_the_graph(build: object) -> None:
    returns = gapped(3)
    order = np.random.default_rng(1).permutation(12)
    before = build(correlation(returns)).adjacency().toarray()  # type: ignore[operator]
    after = build(correlation(returns[:, order])).adjacency().toarray()  # type: ignore[operator]
    assert np.array_equal(after, before[np.ix_(order, order)])
    assert before.any()


def test_the_official_graph_knows_the_order_of_the_columns_only() -> None:
    graph = order_graph(5)
    assert graph.directed
    assert graph.adjacency().sum(axis=1).tolist() == [4, 3, 2, 1, 0]


def test_spectral_vectors_reproduce_the_correlations_and_follow_a_permutation() -> None:
    returns = clustered(seed=2)
    matrix = correlation(returns)
    full = spectral_vectors(matrix, 20)
    np.testing.assert_allclose(full @ full.T, matrix, atol=1e-5)
    assert (full[:, 12:] == 0).all()
    assert (np.take_along_axis(full[:, :12], np.abs(full[:, :12]).argmax(axis=0)[None], axis=0) > 0).all()
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(
        spectral_vectors(correlation(returns[:, order]), 4), spectral_vectors(matrix, 4)[order], atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: correlation(np.zeros(3)), "returns"),
        (lambda: correlation(np.zeros((3, 2)), "kendall"), "method"),  # type: ignore[arg-type]
        (lambda: correlation(np.zeros((3, 2)), missing="drop"), "missing"),  # type: ignore[arg-type]
        (lambda: nearest_graph(np.eye(3), 0), "neighbours"),
        (lambda: threshold_graph(np.eye(3), 1.0), "threshold"),
        (lambda: Graph(3, np.array([[0, 3]])), "edges"),
        (lambda: Graph(3, np.zeros(4, dtype=int)), "edges"),
    ],
)
def test_wrong_arguments_are_named(call: object, names: str) -> None:
    with pytest.raises(InputError, match=names):
        call()  # type: ignore[operator]
