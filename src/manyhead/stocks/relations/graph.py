"""Graphs over stocks: from correlations, or in the order of the ticker list as the released code has it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from manyhead.errors import InputError

Integers = NDArray[np.integer]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Graph:
    """An unweighted graph.

    Args:
        nodes: number of nodes, named 0..nodes-1.
        edges: (count, 2) integers; in an undirected graph each edge stands once, in either direction.
        directed: whether an edge leads from its first node to its second only.

    Raises:
        InputError: if an edge names a node that is not there.
    """

    nodes: int
    edges: Integers
    directed: bool = False

    def __post_init__(self) -> None:
        if self.edges.ndim != 2 or self.edges.shape[1] != 2:
            raise InputError(f"edges must be (count, 2), got shape {self.edges.shape}")
        if self.edges.size and not 0 <= self.edges.min() <= self.edges.max() < self.nodes:
            raise InputError(f"edges must name nodes 0..{self.nodes - 1}, got up to {self.edges.max()}")

    def adjacency(self) -> sparse.csr_array:
        """Return the (nodes, nodes) matrix with 1 where an edge leads from row to column."""
        first, second = self.edges.T
        if not self.directed:
            first, second = np.concatenate([first, second]), np.concatenate([second, first])
        shape = (self.nodes, self.nodes)
        matrix = sparse.coo_array((np.ones(len(first), np.float32), (first, second)), shape).tocsr()
        matrix.data[:] = 1.0  # an edge named twice is one edge
        return matrix


def from_matrix(linked: NDArray[np.bool_]) -> Graph:
    """Return the undirected graph of a Boolean matrix, linked where either entry is True."""
    either = np.triu(linked | linked.T, k=1)
    return Graph(len(linked), np.argwhere(either))


def nearest_graph(correlation: Matrix, neighbours: int = 10) -> Graph:
    """Link every stock with those that it is most correlated with, and with those that chose it.

    Args:
        correlation: (stocks, stocks).
        neighbours: stocks that each one chooses; at most all others.

    Returns:
        undirected; permuting the stocks permutes the graph, as long as no two correlations tie.

    Raises:
        InputError: if `neighbours` is below 1.
    """
    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1, got {neighbours}")
    stocks = len(correlation)
    others = correlation.copy()
    np.fill_diagonal(others, -np.inf)
    chosen = np.argsort(-others, axis=1, kind="stable")[:, : min(neighbours, stocks - 1)]
    linked = np.zeros((stocks, stocks), dtype=bool)
    np.put_along_axis(linked, chosen, True, axis=1)
    return from_matrix(linked)


def threshold_graph(correlation: Matrix, threshold: float = 0.5) -> Graph:
    """Link the stocks whose absolute correlation is above a threshold.

    Raises:
        InputError: if the threshold does not lie in [0, 1).
    """
    if not 0 <= threshold < 1:
        raise InputError(f"threshold must lie in [0, 1), got {threshold}")
    linked = np.abs(correlation) > threshold
    np.fill_diagonal(linked, False)
    return from_matrix(linked)


def order_graph(stocks: int) -> Graph:
    """Return the graph that the released code really builds: an edge i -> j for every i < j.

    It reads the list of all pairs as directed edges and never looks at the correlations, so that the
    out-degree of stock i is stocks-1-i: the embedding says where a ticker stands in the list.
    """
    return Graph(stocks, np.argwhere(np.triu(np.ones((stocks, stocks), dtype=bool), k=1)), directed=True)
