"""The deterministic part of struc2vec: distances, context weights, their averages, and gamma."""

from typing import Any

import numpy as np

from manyhead.stocks.relations.graph import Graph
from manyhead.stocks.relations.struc2vec import context_graph, structural_distances
from tests.parity.compare import Golden

LIMITS = {"": 1e-9}


def run(arrays: Golden) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    pairs_by_name: dict[str, tuple[Any, Any]] = {}
    for tag in sorted({name.split("/")[0] for name in arrays if "/" in name}):
        golden = arrays.group(f"{tag}/")
        graph = Graph(int(golden["n"]), golden["edges"].astype(np.int64), bool(golden["directed"]))
        pairs, distance = structural_distances(
            graph, opt1=config["opt1"], opt2=config["opt2"], layers=config["opt3"]
        )
        layers = context_graph(graph.nodes, pairs, distance)

        pair, layer = np.nonzero(~np.isnan(distance))
        rows = np.column_stack([pairs[pair], layer, distance[pair, layer]])
        rows = rows[np.lexsort(rows[:, 2::-1].T)]
        official = golden["distances"][np.lexsort(golden["distances"][:, 2::-1].T)]
        pairs_by_name[f"{tag}/distances"] = (rows[:, 3], official[:, 3])
        pairs_by_name[f"{tag}/distances/pairs"] = (rows[:, :3].astype(int), official[:, :3].astype(int))

        weights = np.concatenate(
            [
                np.column_stack(
                    [
                        np.full(len(context.neighbour), index),
                        np.repeat(np.arange(graph.nodes), np.diff(context.start)),
                        context.neighbour,
                        context.weight,
                    ]
                )
                for index, context in enumerate(layers)
            ]
        )
        official = golden["weights"][np.lexsort(golden["weights"][:, 1::-1].T)]  # lists keep their order
        pairs_by_name[f"{tag}/weights"] = (weights[:, 3], official[:, 3])
        pairs_by_name[f"{tag}/weights/lists"] = (weights[:, :3].astype(int), official[:, :3].astype(int))

        average = np.array([context.average for context in layers])
        pairs_by_name[f"{tag}/avg_weight"] = (average, golden["avg_weight"])
        gamma = np.array(
            [
                (index, node, context.gamma[node])
                for index, context in enumerate(layers)
                for node in np.flatnonzero(context.there)
            ]
        )
        official = golden["gamma"][np.lexsort(golden["gamma"][:, 1::-1].T)].astype(int)
        pairs_by_name[f"{tag}/gamma"] = (gamma, official)
    return pairs_by_name
