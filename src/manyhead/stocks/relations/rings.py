"""Degree rings: what a node sees at each number of hops (struc2vec, section 3.1)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from manyhead.stocks.relations.graph import Graph

Indices = NDArray[np.int64]
Matrix = NDArray[np.float64]

DENSE = 0.05  # share of possible edges above which dense products are faster than sparse ones


@dataclass(frozen=True)
class Layer:
    """Rings of all nodes at one number of hops.

    Args:
        of: (nodes,) index into `rings`; -1 where a node has none.
        rings: distinct rings, each (length, 2): degree and how many nodes have it, by rising degree.
    """

    of: Indices
    rings: list[Matrix]


def degree_rings(graph: Graph, *, compressed: bool = True, layers: int | None = None) -> list[Layer]:
    """Return the degree rings of every node, nearest first.

    The ring of a node at k hops holds the out-degrees of the nodes whose shortest path from it has k
    edges; at 0 hops that is the node itself.

    Args:
        graph: the graph.
        compressed: struc2vec's first optimisation: a ring lists each degree once, with its count.
            Without it a degree stands as often as it occurs, with count 1.
        layers: largest number of hops; None goes on until no node sees anything new.
    """
    adjacency = graph.adjacency()
    degree = np.diff(adjacency.indptr)
    values, column = np.unique(degree, return_inverse=True)
    kind = sparse.csr_array(
        (np.ones(graph.nodes, np.float32), (np.arange(graph.nodes), column)), (graph.nodes, len(values))
    )
    dense = adjacency.nnz > DENSE * graph.nodes**2
    step = adjacency.toarray() if dense else adjacency
    reached = np.eye(graph.nodes, dtype=bool)
    frontier = reached.copy()
    found: list[Layer] = []
    while frontier.any() and (layers is None or len(found) <= layers):
        flat = frontier.astype(np.float32)
        sparse_flat = sparse.csr_array(flat)
        found.append(_layer((sparse_flat @ kind).toarray(), values, compressed))
        seen = flat @ step if dense else (sparse_flat @ step).toarray()
        frontier = (seen > 0) & ~reached
        reached |= frontier
    return found


def _layer(counts: NDArray[np.float32], degrees: Indices, compressed: bool) -> Layer:
    """Turn (nodes, distinct degrees) counts into rings, equal ones stored once."""
    rows, of = np.unique(counts, axis=0, return_inverse=True)
    rings = []
    for row in rows:
        there = np.flatnonzero(row)
        ring = np.stack([degrees[there], row[there]], axis=1).astype(np.float64)
        if not compressed:
            ring = np.repeat(ring, ring[:, 1].astype(np.int64), axis=0)
            ring[:, 1] = 1.0
        rings.append(ring)
    of = of.reshape(-1).astype(np.int64)
    return Layer(np.where(counts.any(axis=1), of, -1), rings)
