"""struc2vec's context graph: which nodes play alike parts, hop by hop.

Ribeiro, Saverese and Figueiredo, 'struc2vec: Learning node representations from structural identity',
2017, arXiv 1704.03165, sections 3.1 to 3.3 with the optimisations of section 3.4, as the implementation that
Stockformer calls reads them: nodes are compared with the 2 log2(nodes) ones of nearest degree, and a pair
that chose each other counts twice.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.relations.graph import Graph
from manyhead.stocks.relations.rings import degree_rings
from manyhead.stocks.relations.warping import distances

Indices = NDArray[np.int64]
Matrix = NDArray[np.float64]


def nearest_degrees(degree: Indices) -> Indices:
    """Choose for each node those to compare it with (section 3.4, second optimisation).

    Nodes of the same degree come first, in their order, then those of the next lower or next higher
    degree, whichever is closer (a tie goes to the higher), until more than 2 log2(nodes) are chosen.

    Args:
        degree: (nodes,).

    Returns:
        (pairs, 2): the node and its choice, by node and then in the order of choice.
    """
    nodes = len(degree)
    wanted = math.floor(2 * math.log2(nodes)) + 1 if nodes > 1 else 0
    levels, level = np.unique(degree, return_inverse=True)
    order = np.argsort(level, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(level))[:-1])
    pairs: list[tuple[int, int]] = []
    for node in range(nodes):
        own = int(level[node])
        below, above, at = own - 1, own + 1, own
        chosen: list[int] = []
        while True:
            for other in members[at][: wanted + 1]:
                if other != node and len(chosen) < wanted:
                    chosen.append(int(other))
            if len(chosen) >= wanted or (below < 0 and above >= len(levels)):
                break
            lower = levels[own] - levels[below] if below >= 0 else math.inf
            higher = levels[above] - levels[own] if above < len(levels) else math.inf
            if lower < higher:
                at, below = below, below - 1
            else:
                at, above = above, above + 1
        pairs.extend((node, other) for other in chosen)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def structural_distances(
    graph: Graph, *, opt1: bool = True, opt2: bool = True, layers: int | None = None, exact: bool = False
) -> tuple[Indices, Matrix]:
    """Return how differently pairs of nodes are placed, summed up to each number of hops (equation 1).

    Args:
        graph: the graph.
        opt1: rings of (degree, count) instead of repeated degrees.
        opt2: only pairs of nearest degree instead of all pairs.
        layers: largest number of hops (the third optimisation); None is all.
        exact: exact time warping instead of fastDTW with radius 1.

    Returns:
        pairs (count, 2), and distances (count, layers): column k is the sum up to k hops, NaN from the hop on
        at which either node sees nothing.
    """
    if opt2:
        pairs = nearest_degrees(np.diff(graph.adjacency().indptr).astype(np.int64))
    else:
        pairs = np.stack(np.triu_indices(graph.nodes, k=1), axis=1).astype(np.int64)
    columns = []
    for layer in degree_rings(graph, compressed=opt1, layers=layers):
        ends = layer.of[pairs]
        there = (ends >= 0).all(axis=1)
        code = ends[there, 0] * len(layer.rings) + ends[there, 1]
        distinct, back = np.unique(code, return_inverse=True)
        unlike = np.stack(np.divmod(distinct, len(layer.rings)), axis=1)
        column = np.full(len(pairs), np.nan)
        column[there] = distances(layer.rings, unlike, exact=exact)[back]
        columns.append(column)
    total = np.cumsum(np.stack(columns, axis=1), axis=1)  # a NaN stays from its hop on
    return pairs, total[:, ~np.isnan(total).all(axis=0)]


@dataclass(frozen=True)
class ContextLayer:
    """One layer of the context graph as adjacency lists.

    Args:
        start: (nodes + 1,): the list of node u is entries start[u] to start[u + 1].
        neighbour: (entries,).
        weight: (entries,): exp(-distance), normalised to sum 1 in each list.
        average: mean weight of an entry.
        gamma: (nodes,): entries of each list that are heavier than the average.
    """

    start: Indices
    neighbour: Indices
    weight: Matrix
    average: float
    gamma: Indices

    @property
    def there(self) -> NDArray[np.bool_]:
        """Nodes that this layer has."""
        return np.diff(self.start) > 0


def context_graph(nodes: int, pairs: Indices, distance: Matrix) -> list[ContextLayer]:
    """Weigh the pairs of each layer (section 3.2).

    Args:
        nodes: number of nodes.
        pairs: (count, 2), see `structural_distances`.
        distance: (count, layers).
    """
    code = pairs[:, 0] * nodes + pairs[:, 1]
    order = np.argsort(code)
    both = np.stack([pairs, pairs[:, ::-1]], axis=1).reshape(-1, 2)  # u lists v, then v lists u
    found = np.searchsorted(code[order], both[:, 0] * nodes + both[:, 1])
    found = order[np.minimum(found, len(order) - 1)]
    own = code[found] == both[:, 0] * nodes + both[:, 1]  # the node's own choice says how far it is
    source = np.where(own, found, np.arange(len(both)) // 2)
    layers = []
    for column in distance.T:
        entry = column[source]
        listed = ~np.isnan(entry)
        by_node = np.argsort(both[listed, 0], kind="stable")
        node, neighbour = both[listed][by_node].T
        far = entry[listed][by_node]
        start = np.concatenate([[0], np.cumsum(np.bincount(node, minlength=nodes))]).astype(np.int64)
        closest = np.full(nodes, np.inf)
        np.minimum.at(closest, node, far)
        weight = np.exp(closest[node] - far)  # relative to the closest: nothing underflows
        weight /= np.bincount(node, weight, minlength=nodes)[node]
        average = float(weight.sum() / len(weight))
        heavier = weight > average * (1 + 1e-12)  # rounding must not decide between equal weights
        gamma = np.bincount(node, heavier, minlength=nodes).astype(np.int64)
        layers.append(ContextLayer(start, neighbour, weight, average, gamma))
    return layers


def struc2vec_layers(
    graph: Graph, *, opt1: bool = True, opt2: bool = True, layers: int | None = None, exact: bool = False
) -> list[ContextLayer]:
    """Return the context graph of a graph; see `structural_distances` for the options.

    Raises:
        InputError: if the graph has fewer than two nodes.
    """
    if graph.nodes < 2:
        raise InputError(f"struc2vec compares nodes: it needs at least 2, got {graph.nodes}")
    pairs, distance = structural_distances(graph, opt1=opt1, opt2=opt2, layers=layers, exact=exact)
    return context_graph(graph.nodes, pairs, distance)
