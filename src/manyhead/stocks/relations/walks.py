"""Biased random walks over struc2vec's context graph, and the vectors learned from them.

Ribeiro, Saverese and Figueiredo, 2017, arXiv 1704.03165, sections 3.3 and 3.4. All walks advance together.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError, optional
from manyhead.stocks.relations.struc2vec import ContextLayer

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]


def biased_walks(
    layers: Sequence[ContextLayer],
    *,
    walks: int = 80,
    length: int = 10,
    stay: float = 0.3,
    seed: int = 0,
) -> Indices:
    """Walk from every node, a number of times, recording the nodes that are visited.

    A walk begins in the lowest layer. With probability `stay` it steps to a neighbour in its layer, by
    weight, and records it. Otherwise it changes the layer: up with probability x / (x + 1), where
    x = ln(gamma + e), if the node exists there, else down, if there is a lower one.

    Args:
        layers: the context graph.
        walks: rounds; in each, every node begins one walk, in random order.
        length: nodes recorded by a walk, its beginning included.
        stay: probability of a step within the layer, above 0.
        seed: of all random choices.

    Returns:
        (walks * nodes, length).

    Raises:
        InputError: if an argument is out of range.
    """
    for name, count in {"walks": walks, "length": length}.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")
    if not 0 < stay <= 1:
        raise InputError(f"stay must lie in (0, 1], got {stay}")
    random = np.random.default_rng(seed)
    nodes = len(layers[0].gamma)
    # the lists of all layers behind each other; state = layer * nodes + node
    size = np.concatenate([np.diff(layer.start) for layer in layers])
    end = np.cumsum(size)
    neighbour = np.concatenate([layer.neighbour for layer in layers])
    reach = np.cumsum(np.concatenate([layer.weight for layer in layers]))
    before = np.concatenate([[0.0], reach])
    base, top = before[end - size], before[end]
    x = np.log(np.concatenate([layer.gamma for layer in layers]) + np.e)
    rise = x / (x + 1)
    there = np.concatenate([layer.there for layer in layers] + [np.zeros(nodes, dtype=bool)])

    begin = np.concatenate([random.permutation(nodes) for _ in range(walks)])
    path = np.empty((len(begin), length), dtype=np.int64)
    path[:, 0] = begin
    walker = np.arange(len(begin)) if length > 1 else np.arange(0)
    state, recorded = begin[walker], np.ones(len(walker), dtype=np.int64)
    while len(walker):
        chance, turn = random.random((2, len(walker)))
        steps = chance < stay
        climbs = ~steps & (turn <= rise[state]) & there[state + nodes]
        falls = ~steps & (turn > rise[state]) & (state >= nodes)
        moved = state + nodes * climbs - nodes * falls
        at = state[steps]
        mark = base[at] + turn[steps] * (top[at] - base[at])
        entry = np.searchsorted(reach, mark, side="right")
        entry = np.clip(entry, end[at] - size[at], end[at] - 1)
        moved[steps] = at - at % nodes + neighbour[entry]
        path[walker[steps], recorded[steps]] = neighbour[entry]
        recorded = recorded + steps
        on = recorded < length
        walker, state, recorded = walker[on], moved[on], recorded[on]
    return path


def walk_vectors(
    paths: Indices, nodes: int, dimension: int, *, window: int = 5, epochs: int = 5, seed: int = 0
) -> Vectors:
    """Learn node vectors from walks by skip-gram with hierarchical softmax and 5 negative samples.

    The training runs in one thread, so that the seed decides the result.

    Args:
        paths: (walks, length) node indices; every node must occur.
        nodes: number of nodes.
        dimension: size of a vector.
        window: largest distance of two nodes of a walk that are paired.
        epochs: passes over the walks.
        seed: of the initial vectors and all random choices.

    Returns:
        (nodes, dimension) float32.

    Raises:
        InputError: if gensim is absent.
    """
    gensim = optional("gensim.models", "stocks")
    names = [str(node) for node in range(nodes)]
    sentences = [[names[node] for node in path] for path in paths.tolist()]
    model = gensim.Word2Vec(
        sentences,
        vector_size=dimension,
        window=window,
        min_count=0,
        sg=1,
        hs=1,
        negative=5,
        epochs=epochs,
        workers=1,
        seed=seed,
        hashfxn=lambda word: crc32(str(word).encode()),
    )
    return np.asarray(model.wv[names], dtype=np.float32)
