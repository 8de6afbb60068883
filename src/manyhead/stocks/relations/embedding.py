"""Node vectors of stocks from their training returns: the fixed spatial input of Stockformer."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.relations.correlation import correlation
from manyhead.stocks.relations.graph import Graph, nearest_graph, order_graph, threshold_graph
from manyhead.stocks.relations.spectral import spectral_vectors
from manyhead.stocks.relations.struc2vec import struc2vec_layers
from manyhead.stocks.relations.walks import biased_walks, walk_vectors

Floats = NDArray[np.floating]
KINDS = ("struc2vec", "spectral", "official_order")


def node_embedding(
    returns: Floats,
    dimension: int = 128,
    kind: Literal["struc2vec", "spectral", "official_order"] = "struc2vec",
    *,
    graph: Literal["knn", "threshold"] | Graph = "knn",
    neighbours: int = 10,
    threshold: float = 0.5,
    method: Literal["pearson", "spearman"] = "pearson",
    walks: int = 80,
    length: int = 10,
    stay: float = 0.3,
    epochs: int = 5,
    opt1: bool = True,
    opt2: bool = True,
    exact: bool = False,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Return one vector per stock.

    Args:
        returns: (days, stocks) of the training rows, NaN where missing. Nothing else is looked at, so
            what comes after those rows cannot matter.
        dimension: size of a vector.
        kind: 'struc2vec' on a graph of correlations; 'spectral', the top eigenvectors of the correlation
            matrix; 'official_order', what the released code computes: struc2vec on a graph that knows
            the order of the ticker list and nothing else.
        graph: for 'struc2vec': 'knn' links each stock to its most correlated ones, 'threshold' to all
            above a correlation; or a graph of your own.
        neighbours: of 'knn'.
        threshold: of 'threshold', on the absolute correlation.
        method: 'pearson' or 'spearman'.
        walks, length, stay, epochs: see `biased_walks` and `walk_vectors`.
        opt1, opt2, exact: see `structural_distances`. With `opt2` nodes of equal degree are compared in
            the order of their columns; without it the context graph does not depend on that order.
        seed: decides the walks and the learned vectors.

    Returns:
        (stocks, dimension) float32. A single stock has no relations: its vector is 0.

    Raises:
        InputError: if an argument is out of range, or gensim is absent and needed.
    """
    if np.ndim(returns) != 2:
        raise InputError(f"returns must be (days, stocks), got shape {np.shape(returns)}")
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if dimension < 1:
        raise InputError(f"dimension must be at least 1, got {dimension}")
    stocks = returns.shape[1]
    if stocks < 2:
        return np.zeros((stocks, dimension), dtype=np.float32)
    if kind == "spectral":
        return spectral_vectors(correlation(returns, method), dimension)
    if kind == "official_order":
        relations = order_graph(stocks)
    elif isinstance(graph, Graph):
        relations = graph
        if relations.nodes != stocks:
            raise InputError(f"the graph has {relations.nodes} nodes, the returns {stocks} stocks")
    elif graph == "knn":
        relations = nearest_graph(correlation(returns, method), neighbours)
    elif graph == "threshold":
        relations = threshold_graph(correlation(returns, method), threshold)
    else:
        raise InputError(f"graph must be 'knn', 'threshold' or a Graph, got {graph!r}")
    layers = struc2vec_layers(relations, opt1=opt1, opt2=opt2, exact=exact)
    paths = biased_walks(layers, walks=walks, length=length, stay=stay, seed=seed)
    return walk_vectors(paths, stocks, dimension, epochs=epochs, seed=seed)
