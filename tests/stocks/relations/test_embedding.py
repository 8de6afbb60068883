"""Node vectors: repeatable in any process, from training rows only, and what the official graph encodes."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.relations import Graph, node_embedding, order_graph, struc2vec_layers
from tests.stocks.relations.test_correlation_and_graphs import clustered

SMALL = {"walks": 10, "epochs": 2}

PROGRAM = """
import hashlib
import numpy as np
from manyhead.stocks.relations import node_embedding
returns = np.random.default_rng(0).standard_normal((60, 15))
vectors = node_embedding(returns, 16, walks=10, epochs=2, seed=7)
print(hashlib.sha256(vectors.tobytes()).hexdigest())
"""


def test_two_processes_with_different_hash_seeds_agree_bit_for_bit() -> None:
    pytest.importorskip("gensim")
    seen = set()
    for hash_seed in ("1", "271828"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout.strip())
    returns = np.random.default_rng(0).standard_normal((60, 15))
    seen.add(hashlib.sha256(node_embedding(returns, 16, seed=7, **SMALL).tobytes()).hexdigest())
    assert len(seen) == 1
    other = node_embedding(returns, 16, seed=8, **SMALL)
    assert hashlib.sha256(other.tobytes()).hexdigest() not in seen


@pytest.mark.parametrize("kind", ["struc2vec", "spectral", "official_order"])
def test_vectors_have_the_size_asked_for_and_tell_stocks_apart(kind: str) -> None:
    pytest.importorskip("gensim")
    vectors = node_embedding(clustered(), 8, kind, **SMALL)  # type: ignore[arg-type]
    assert vectors.shape == (12, 8)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) == 12
    alone = node_embedding(clustered()[:, :1], 8, kind)  # type: ignore[arg-type]
    assert np.array_equal(alone, np.zeros((1, 8)))


def test_the_official_graph_follows_the_ticker_order_and_not_the_returns() -> None:
    pytest.importorskip("gensim")
    returns = clustered(stocks=12)
    order = np.random.default_rng(3).permutation(12)
    official = node_embedding(returns, 8, "official_order", seed=1, **SMALL)
    permuted = node_embedding(returns[:, order], 8, "official_order", seed=1, **SMALL)
    assert np.array_equal(permuted, official)  # whatever stands in a column, it gets the column's vector
    noise = np.random.default_rng(9).standard_normal(returns.shape)
    assert np.array_equal(node_embedding(noise, 8, "official_order", seed=1, **SMALL), official)
    ours = node_embedding(returns, 8, seed=1, **SMALL)
    assert not np.array_equal(node_embedding(noise, 8, seed=1, **SMALL), ours)


def test_neighbours_in_the_ticker_list_get_similar_official_vectors() -> None:
    """The layer-0 distance of the official graph rises with the distance of the columns."""
    layer = struc2vec_layers(order_graph(40))[0]
    for node in range(10, 30):
        listed = slice(layer.start[node], layer.start[node + 1])
        apart = np.abs(layer.neighbour[listed] - node)
        assert layer.weight[listed][apart == 1].min() > layer.weight[listed][apart == 5].max()


def test_spectral_vectors_of_a_cluster_are_alike() -> None:
    vectors = node_embedding(clustered(days=800), 3, "spectral")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same = np.equal.outer(np.arange(12) % 3, np.arange(12) % 3)
    alike = unit @ unit.T
    assert alike[same].min() > alike[~same].max() + 0.3


def test_a_graph_of_ones_own_is_used() -> None:
    pytest.importorskip("gensim")
    returns = clustered()
    own = Graph(12, np.array([(n, n + 1) for n in range(11)]))
    vectors = node_embedding(returns, 8, graph=own, **SMALL)
    again = node_embedding(-returns[::-1], 8, graph=own, **SMALL)
    assert np.array_equal(vectors, again)
    by_threshold = node_embedding(returns, 8, graph="threshold", threshold=0.3, **SMALL)
    assert not np.array_equal(by_threshold, vectors)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"kind": "node2vec"}, "kind"),
        ({"graph": "minimum spanning tree"}, "graph"),
        ({"graph": Graph(3, np.zeros((0, 2), dtype=int))}, "12 stocks"),
        ({"dimension": 0}, "dimension"),
        ({"method": "kendall"}, "method"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], names: str) -> None:
    with pytest.raises(InputError, match=names):
        node_embedding(clustered(), **arguments)  # type: ignore[arg-type]
