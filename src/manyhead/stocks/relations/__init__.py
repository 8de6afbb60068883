"""Relations between stocks: correlation graphs, and one vector per stock from training rows."""

from manyhead.stocks.relations.correlation import correlation
from manyhead.stocks.relations.embedding import node_embedding
from manyhead.stocks.relations.graph import Graph, nearest_graph, order_graph, threshold_graph
from manyhead.stocks.relations.spectral import spectral_vectors
from manyhead.stocks.relations.struc2vec import ContextLayer, struc2vec_layers
from manyhead.stocks.relations.walks import biased_walks, walk_vectors

__all__ = [
    "ContextLayer",
    "Graph",
    "biased_walks",
    "correlation",
    "nearest_graph",
    "node_embedding",
    "order_graph",
    "spectral_vectors",
    "struc2vec_layers",
    "threshold_graph",
    "walk_vectors",
]
