"""Sum up what the pieces measured: quality over seeds, composite index, rank, cost, efficiency length."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manyhead.cab.pieces import Piece, read_piece
from manyhead.cab.tasks import TASKS
from manyhead.errors import InputError
from manyhead.insight.composite import composite_index, efficiency_length, rank_score

REFERENCE = "vanilla"


def summary(
    folder: Path, tasks: Sequence[str], judged: Sequence[Piece], costs: Sequence[Piece]
) -> dict[str, Any]:
    """Read all pieces of a complete run and sum them up.

    Args:
        folder: of the run.
        tasks: names, in order.
        judged, costs: pieces of quality and of cost.

    Returns:
        For each task its rows by mixer, best composite index first.
    """
    by_use: dict[str, dict[str, Any]] = {}
    for piece in costs:
        by_use.setdefault(piece.subject, {})[piece.mixer] = read_piece(folder, piece)
    elapsed = sum(found["elapsed"] for uses in by_use.values() for found in uses.values())
    result: dict[str, Any] = {"tasks": {}}
    for name in tasks:
        task = TASKS[name]
        runs: dict[str, list[dict[str, Any]]] = {}
        for piece in judged:
            if piece.subject == name:
                runs.setdefault(piece.mixer, []).append(read_piece(folder, piece))
        elapsed += sum(run["elapsed"] for found in runs.values() for run in found)
        rows = {mixer: _row(found) for mixer, found in runs.items()}
        _compare(rows, task.metrics)
        for mixer, row in rows.items():
            row["cost"] = _cost(by_use[task.use][mixer], by_use[task.use].get(REFERENCE))
            if REFERENCE in rows:
                vanilla = rows[REFERENCE]
                row["step time over vanilla"] = row["seconds a step"] / vanilla["seconds a step"]
                row["parameters over vanilla"] = row["parameters"] / vanilla["parameters"]
        order = sorted(rows, key=lambda mixer: -(rows[mixer]["composite index"] or 0.0))
        result["tasks"][name] = {
            "use": task.use,
            "metrics": task.metrics,
            "mixers": {mixer: rows[mixer] for mixer in order},
        }
    return result | {"core seconds": elapsed}


def _row(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    metrics = {}
    for name in runs[0]["metrics"]:
        values = [run["metrics"][name] for run in runs]
        metrics[name] = {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "values": values,
        }
    return {
        "metrics": metrics,
        "seconds a step": statistics.median(run["seconds a step"] for run in runs),
        "parameters": runs[0]["parameters"],
    }


def _compare(rows: dict[str, dict[str, Any]], metrics: dict[str, int]) -> None:
    """Add each mixer's composite index and rank score among those that ran; None for one alone."""
    scores = np.array([[row["metrics"][name]["mean"] for name in metrics] for row in rows.values()])
    sign = np.array(list(metrics.values()))
    mean, deviation = scores.mean(0), scores.std(0, ddof=1) if len(scores) > 1 else np.ones(len(sign))
    deviation = np.where(deviation > 0, deviation, 1.0)  # all alike: nobody stands out
    ranks = rank_score(scores, sign) if len(scores) > 1 else None
    for n, row in enumerate(rows.values()):
        _, index = composite_index(scores[n], mean, deviation, sign, [len(sign)])
        row["composite index"] = index if len(scores) > 1 else None
        row["rank score"] = None if ranks is None else float(ranks[n])


def _cost(own: dict[str, Any], vanilla: dict[str, Any] | None) -> dict[str, Any]:
    """A mixer's costs, and from which length it beats softmax attention in time and in memory."""
    found: dict[str, Any] = {key: own[key] for key in ("seconds", "bytes", "refused")}
    if vanilla is None:
        return found
    for what, kind in (("time", "seconds"), ("memory", "bytes")):
        both = [length for length in own[kind] if length in vanilla[kind]]
        if both:
            longest = both[-1]
            found[f"{what} over vanilla"] = own[kind][longest] / vanilla[kind][longest]
            found["longest"] = int(longest)
        if own is vanilla:
            continue
        try:
            met = efficiency_length(
                [int(length) for length in both],
                [vanilla[kind][length] for length in both],
                [own[kind][length] for length in both],
                drop_first=kind == "seconds",
            )
        except InputError:  # too few lengths for a fit
            continue
        found[f"efficiency length, {what}"] = {
            "length": met.length if np.isfinite(met.length) and met.length > 0 else None,
            "r2": met.r2,
        }
    return found
