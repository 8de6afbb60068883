"""struc2vec against slow twins: rings by breadth-first search, warping cell by cell, walks by their law."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.relations.graph import Graph, order_graph
from manyhead.stocks.relations.rings import degree_rings
from manyhead.stocks.relations.struc2vec import (
    context_graph,
    nearest_degrees,
    struc2vec_layers,
    structural_distances,
)
from manyhead.stocks.relations.walks import biased_walks
from manyhead.stocks.relations.warping import distances

Cell = tuple[int, int]


def random_graph(nodes: int, share: float, seed: int, directed: bool = False) -> Graph:
    generator = np.random.default_rng(seed)
    linked = np.triu(generator.random((nodes, nodes)) < share, k=1)
    return Graph(nodes, np.argwhere(linked), directed)


def match(a: np.ndarray, b: np.ndarray) -> float:
    return ((max(a[0], b[0]) + 0.5) / (min(a[0], b[0]) + 0.5) - 1) * max(a[1], b[1])


def slow_warp(x: np.ndarray, y: np.ndarray, cells: set[Cell]) -> tuple[float, list[Cell]]:
    """The cheapest path through the given cells, cell by cell; ties: up, left, diagonal."""
    cost: dict[Cell, float] = {(-1, -1): 0.0}
    came: dict[Cell, Cell] = {}
    for i, j in sorted(cells):
        step = match(x[i], y[j])
        options = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        totals = [cost.get(option, np.inf) + step for option in options]
        cost[i, j] = min(totals)
        came[i, j] = options[totals.index(cost[i, j])]
    path, at = [], (len(x) - 1, len(y) - 1)
    while at != (-1, -1):
        path.append(at)
        at = came[at]
    return cost[len(x) - 1, len(y) - 1], path


def slow_fast(x: np.ndarray, y: np.ndarray, radius: int = 1) -> tuple[float, list[Cell]]:
    """fastDTW as its paper states it, on sets of cells."""
    every = {(i, j) for i in range(len(x)) for j in range(len(y))}
    if min(len(x), len(y)) < radius + 2:
        return slow_warp(x, y, every)
    halves = [(s[0 : len(s) // 2 * 2 : 2] + s[1 : len(s) // 2 * 2 : 2]) / 2 for s in (x, y)]
    _, path = slow_fast(halves[0], halves[1], radius)
    reach = range(-radius, radius + 1)
    coarse = {(i + a, j + b) for i, j in path for a in reach for b in reach}
    fine = {(2 * i + a, 2 * j + b) for i, j in coarse for a in (0, 1) for b in (0, 1)}
    return slow_warp(x, y, fine & every)


def random_rings(count: int, longest: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    rings = []
    for _ in range(count):
        length = int(generator.integers(1, longest + 1))
        degrees = np.sort(generator.choice(3 * longest, length, replace=False))
        rings.append(np.stack([degrees, generator.integers(1, 6, length)], axis=1).astype(float))
    return rings


@settings(max_examples=25, deadline=None)
@given(longest=st.integers(1, 40), seed=st.integers(0, 2**20))
def test_batched_warping_equals_the_cell_by_cell_twin(longest: int, seed: int) -> None:
    rings = random_rings(6, longest, seed)
    pairs = np.array([(i, j) for i in range(6) for j in range(6)])
    fast, exact = distances(rings, pairs), distances(rings, pairs, exact=True)
    for index, (i, j) in enumerate(pairs):
        assert fast[index] == pytest.approx(slow_fast(rings[i], rings[j])[0], rel=1e-12)
        every = {(a, b) for a in range(len(rings[i])) for b in range(len(rings[j]))}
        assert exact[index] == pytest.approx(slow_warp(rings[i], rings[j], every)[0], rel=1e-12)
    assert (exact <= fast * (1 + 1e-12)).all()
    assert (exact[[index for index, (i, j) in enumerate(pairs) if i == j]] == 0).all()


def test_long_rings_in_several_batches_equal_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    rings = random_rings(5, 150, 7)
    pairs = np.array([(i, j) for i in range(5) for j in range(5)])
    expected = [slow_fast(rings[i], rings[j])[0] for i, j in pairs]
    np.testing.assert_allclose(distances(rings, pairs), expected, rtol=1e-12)
    monkeypatch.setattr("manyhead.stocks.relations.warping.CELLS", 5000)
    np.testing.assert_allclose(distances(rings, pairs), expected, rtol=1e-12)


def slow_rings(graph: Graph, root: int) -> list[list[tuple[int, int]]]:
    adjacency = graph.adjacency().toarray() > 0
    seen, level, rings = {root}, [root], []
    while level:
        degrees = sorted(int(adjacency[node].sum()) for node in level)
        rings.append([(degree, degrees.count(degree)) for degree in sorted(set(degrees))])
        level = sorted({int(n) for node in level for n in np.flatnonzero(adjacency[node])} - seen)
        seen.update(level)
    return rings


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.6])  # also a graph in pieces, and one counted densely
def test_rings_are_those_of_a_breadth_first_search(share: float, directed: bool) -> None:
    graph = random_graph(25, share, 3, directed)
    layers = degree_rings(graph)
    for node in range(25):
        ours = [layer.rings[layer.of[node]].tolist() for layer in layers if layer.of[node] >= 0]
        assert ours == [[list(entry) for entry in ring] for ring in slow_rings(graph, node)]
    for plain, packed in zip(degree_rings(graph, compressed=False), layers, strict=True):
        for node in np.flatnonzero(packed.of >= 0):
            ring = packed.rings[packed.of[node]]
            spelled = plain.rings[plain.of[node]]
            assert spelled[:, 0].tolist() == np.repeat(ring[:, 0], ring[:, 1].astype(int)).tolist()
            assert (spelled[:, 1] == 1).all()
    assert len(degree_rings(graph, layers=1)) <= 2


def test_nodes_are_compared_with_those_of_nearest_degree() -> None:
    degree = np.array([1, 1, 2, 4, 7, 2, 9, 10])  # more than 2 log2(8) = 6 wanted: 7, all others
    chosen = nearest_degrees(degree)
    assert chosen[chosen[:, 0] == 2, 1].tolist() == [5, 0, 1, 3, 4, 6, 7]
    assert chosen[chosen[:, 0] == 3, 1].tolist() == [2, 5, 4, 0, 1, 6, 7]  # 1 and 7 tie: the higher first
    many = np.zeros(100, dtype=int)
    assert (np.bincount(nearest_degrees(many)[:, 0]) == 14).all()  # 13 = floor(2 log2(100)), and one more
    assert len(nearest_degrees(np.zeros(1, dtype=int))) == 0


def test_distances_grow_with_hops_and_vanish_between_alike_nodes() -> None:
    ring = Graph(8, np.array([(n, (n + 1) % 8) for n in range(8)]))
    _, distance = structural_distances(ring)
    assert np.nanmax(distance) == 0
    _, distance = structural_distances(random_graph(30, 0.12, 5), opt2=False)
    grown = np.diff(distance, axis=1)
    assert (grown[~np.isnan(grown)] >= 0).all()


def test_without_opt2_the_context_graph_follows_a_permutation_of_the_nodes() -> None:
    graph = random_graph(20, 0.2, 8)
    order = np.random.default_rng(2).permutation(20)
    place = np.argsort(order)
    moved = Graph(20, place[graph.edges])
    for before, after in zip(
        struc2vec_layers(graph, opt2=False), struc2vec_layers(moved, opt2=False), strict=True
    ):
        np.testing.assert_array_equal(after.gamma, before.gamma[order])
        assert after.average == pytest.approx(before.average)


def test_weights_are_normalised_and_do_not_underflow() -> None:
    star = Graph(400, np.array([(0, n) for n in range(1, 400)]))  # distances in the thousands
    layers = struc2vec_layers(star)
    for layer in layers:
        sums = np.add.reduceat(layer.weight, layer.start[:-1][layer.there])
        np.testing.assert_allclose(sums, 1.0)
        assert layer.average == pytest.approx(layer.there.sum() / len(layer.weight))


def test_a_pair_that_chose_each_other_counts_twice() -> None:
    pairs = np.array([(0, 1), (0, 2), (1, 0), (2, 1)])
    layer = context_graph(3, pairs, np.array([[0.0], [1.0], [0.5], [2.0]]))[0]
    assert layer.neighbour[layer.start[0] : layer.start[1]].tolist() == [1, 2, 1]
    near, far = np.exp(0.0), np.exp(-1.0)
    np.testing.assert_allclose(layer.weight[:3], np.array([near, far, near]) / (2 * near + far))
    # node 1 chose 0 at 0.5, and was chosen by 0: its own distance counts for both entries
    both = np.exp(-0.5)
    np.testing.assert_allclose(
        layer.weight[layer.start[1] : layer.start[2]],
        np.array([both, both, np.exp(-2.0)]) / (2 * both + np.exp(-2.0)),
    )


def test_walks_step_by_the_weights_and_change_layers_by_gamma() -> None:
    layers = struc2vec_layers(random_graph(12, 0.3, 4))[:1]  # one layer: every step is a draw by weight
    paths = biased_walks(layers, walks=4000, length=3, seed=1)
    assert np.array_equal(np.sort(paths[:12, 0]), np.arange(12))
    first = layers[0]
    expected = np.zeros((12, 12))
    np.add.at(expected, (np.repeat(np.arange(12), np.diff(first.start)), first.neighbour), first.weight)
    counted = np.zeros((12, 12))
    np.add.at(counted, (paths[:, 0], paths[:, 1]), 1 / 4000)
    assert np.abs(counted - expected).max() < 5 * 0.5 / np.sqrt(4000)
    assert counted[expected == 0].sum() == 0


def test_the_share_of_steps_in_a_layer_obeys_the_chain() -> None:
    layers = struc2vec_layers(random_graph(12, 0.3, 4))[:2]
    both = layers[0].there & layers[1].there
    assert both.all()
    # the second step of walks from node 0: an exact sum over the layer in which it is made
    rise = [np.log(layer.gamma + np.e) / (np.log(layer.gamma + np.e) + 1) for layer in layers]
    steps = [np.zeros((12, 12)), np.zeros((12, 12))]
    for table, layer in zip(steps, layers, strict=True):
        np.add.at(table, (np.repeat(np.arange(12), np.diff(layer.start)), layer.neighbour), layer.weight)
    stay, up, down = 0.3, 0.7 * rise[0][0], 0.7 * (1 - rise[1][0])
    # a = chance to record in layer 0 when in layer 0, b = when in layer 1
    a, b = np.linalg.solve([[1 - 0.7 + up, -up], [-down, 1 - 0.7 + down]], [stay, 0.0])
    expected = a * steps[0][0] + (1 - a) * steps[1][0]
    assert 0 < b < a < 1
    paths = biased_walks(layers, walks=6000, length=2, seed=5)
    from_first = paths[paths[:, 0] == 0, 1]
    counted = np.bincount(from_first, minlength=12) / len(from_first)
    assert np.abs(counted - expected).max() < 5 * 0.5 / np.sqrt(6000)


def test_walks_repeat_under_a_seed() -> None:
    layers = struc2vec_layers(order_graph(9))
    assert np.array_equal(biased_walks(layers, seed=3), biased_walks(layers, seed=3))
    assert not np.array_equal(biased_walks(layers, seed=3), biased_walks(layers, seed=4))
    assert biased_walks(layers, walks=2, length=1).shape == (18, 1)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: struc2vec_layers(Graph(1, np.zeros((0, 2), dtype=int))), "at least 2"),
        (lambda: biased_walks(struc2vec_layers(order_graph(4)), stay=0.0), "stay"),
        (lambda: biased_walks(struc2vec_layers(order_graph(4)), walks=0), "walks"),
        (lambda: biased_walks(struc2vec_layers(order_graph(4)), length=0), "length"),
    ],
)
def test_wrong_arguments_are_named(call: object, names: str) -> None:
    with pytest.raises(InputError, match=names):
        call()  # type: ignore[operator]
