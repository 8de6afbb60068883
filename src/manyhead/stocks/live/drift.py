"""Has the world moved away from what the models learnt? Two alarms, each with its threshold's reason.

*Inputs*: the population stability index of each input, sum over ten bins of (p - q) ln(p / q), between the
training days (bins are their deciles) and the last 60 days. 0.25 is the customary mark of a population that
has shifted (Siddiqi, 'Credit Risk Scorecards', 2006), but it is meant for independent cases, and the days of
a market are not: an input is allowed twice the largest index that 60 days of the training span had against
the rest of it, and 0.25 at least.

*Skill*: the mean daily IC of the last 60 decided days since the run's end against the interval that holds 95
% of the means of as many test days, drawn in blocks that keep their autocorrelation (Politis and Romano,
1994). Below its lower end the ranking has become worse than in the test.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyhead.files import atomic
from manyhead.stocks.intervals import block_length, resampled_days
from manyhead.stocks.labels import SELL
from manyhead.stocks.prepare import Prepared

DRIFT_DAYS = 60
BINS = 10
FLOOR = 0.25
FEWEST_DAYS = 20  # decided days before skill is judged
FILE = "inputs.npz"
PIECE = 16  # days of factors looked at together
SAMPLE = 65_536  # cells an input from which deciles are taken

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """The inputs of the training days.

    Attributes:
        names: one an input: the factors, and the newest return known.
        edges: (inputs, BINS - 1) deciles.
        counts: (inputs, BINS) cells of the training days.
        usual: (inputs,) largest index of 60 training days against the others, 0 with fewer than 120 days.
    """

    names: tuple[str, ...]
    edges: Floats
    counts: Floats
    usual: Floats

    @property
    def threshold(self) -> Floats:
        """(inputs,) index above which an input counts as drifted."""
        return np.maximum(FLOOR, 2 * self.usual)

    def save(self, folder: Path) -> None:
        """Write the reference beside a model."""
        with atomic(folder / FILE) as stream:
            np.savez(
                stream, names=np.array(self.names), edges=self.edges, counts=self.counts, usual=self.usual
            )


def load_reference(folder: Path) -> Reference | None:
    """Read what `Reference.save` wrote, None if it is not there."""
    file = folder / FILE
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as stored:
        names = tuple(str(name) for name in stored["names"])
        return Reference(names, stored["edges"], stored["counts"], stored["usual"])


def observed(prepared: Prepared, rows: range) -> Floats:
    """Return the inputs of some days, (days, symbols, inputs): factors as the models see them, newest return.

    NaN where a symbol has no price; of the return also where it is not known.
    """
    factors = prepared.windows.factors.rows(rows.start, rows.stop).astype(np.float64)
    known = np.full((len(rows), factors.shape[1], 1), np.nan)
    earned = np.arange(rows.start, rows.stop) - SELL  # whose return is known on each day
    known[earned >= 0, :, 0] = prepared.windows.flow[earned[earned >= 0]]
    values = np.concatenate([factors, known], axis=-1)
    values[~prepared.tradable[rows.start : rows.stop]] = np.nan
    return values


def reference(prepared: Prepared) -> Reference:
    """Describe the inputs of a split's training days."""
    train = prepared.split.train
    names = (*prepared.windows.factors.names, "newest return")
    step = max(1, len(train) * len(prepared.panel.symbols) // SAMPLE)
    sampled = np.concatenate([observed(prepared, range(row, row + 1)) for row in train[::step]])
    cells = sampled.reshape(-1, len(names))
    known = np.isfinite(cells).any(axis=0)
    edges = np.zeros((len(names), BINS - 1))
    marks = np.linspace(0, 1, BINS + 1)[1:-1]
    edges[known] = np.stack([np.nanquantile(column, marks) for column in cells[:, known].T])
    blocks = max(1, len(train) // DRIFT_DAYS)
    first = train.stop - blocks * DRIFT_DAYS if blocks > 1 else train.start
    counts = [
        count(prepared, range(row, min(row + DRIFT_DAYS, train.stop)), edges)
        for row in range(first, train.stop, DRIFT_DAYS)
    ]
    total = np.sum(counts, axis=0)
    if first > train.start:
        total = total + count(prepared, range(train.start, first), edges)
    usual = np.zeros(len(names))
    if blocks > 1:
        usual = np.max([stability(total - block, block) for block in counts], axis=0)
    return Reference(names, edges, total, usual)


def count(prepared: Prepared, rows: range, edges: Floats) -> Floats:
    """Count the cells of some days by bin, (inputs, BINS)."""
    counts = np.zeros((len(edges), BINS))
    for start in range(rows.start, rows.stop, PIECE):
        values = observed(prepared, range(start, min(start + PIECE, rows.stop))).reshape(-1, len(edges))
        for place, (column, marks) in enumerate(zip(values.T, edges, strict=True)):
            known = column[np.isfinite(column)]
            counts[place] += np.bincount(np.searchsorted(marks, known, side="right"), minlength=BINS)
    return counts


def stability(expected: Floats, seen: Floats) -> Floats:
    """Return the population stability index of each input; half a cell is added to every bin.

    Args:
        expected: (inputs, bins) cells.
        seen: likewise.
    """
    p = (seen + 0.5) / (seen + 0.5).sum(axis=-1, keepdims=True)
    q = (expected + 0.5) / (expected + 0.5).sum(axis=-1, keepdims=True)
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def input_drift(known: Reference, prepared: Prepared, rows: range) -> dict[str, Any]:
    """Compare the inputs of some days with those of the training days.

    Args:
        known: of the training days.
        prepared: what the models see.
        rows: of `prepared`; the last `DRIFT_DAYS` of them count.

    Returns:
        days, first and last day, how many inputs were compared, and those that drifted, worst first, with
        index and threshold; the largest share of a threshold that an input reached.
    """
    span = range(max(rows.start, rows.stop - DRIFT_DAYS), rows.stop)
    index = stability(known.counts, count(prepared, span, known.edges))
    share = index / known.threshold
    order = np.argsort(-share, kind="stable")
    drifted = [
        {
            "input": known.names[place],
            "index": round(float(index[place]), 6),
            "threshold": round(float(known.threshold[place]), 6),
        }
        for place in order
        if share[place] > 1
    ]
    return {
        "days": len(span),
        "first": str(prepared.panel.dates[span.start]),
        "last": str(prepared.panel.dates[span.stop - 1]),
        "inputs": len(known.names),
        "drifted": drifted,
        "nearest": {
            "input": known.names[int(order[0])],
            "share of its threshold": round(float(share[order[0]]), 6),
        },
    }


def skill_drift(test: Floats, since: Floats, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare the daily IC of the last decided days with what as many test days gave.

    Args:
        test: (days,) daily IC of the test.
        since: (days,) daily IC of the decided days since; the last `DRIFT_DAYS` known ones count.

    Returns:
        days, mean, low and high (None without enough days), and whether the mean lies below.
    """
    before, after = test[np.isfinite(test)], since[np.isfinite(since)][-DRIFT_DAYS:]
    found: dict[str, Any] = {"days": len(after), "mean": None, "low": None, "high": None, "below": False}
    if len(after):
        found["mean"] = float(after.mean())
    if len(after) < FEWEST_DAYS or len(before) < FEWEST_DAYS:
        return found
    length = max(len(before), len(after))
    drawn = resampled_days(
        len(before), resamples, block_length(before), "stationary", np.random.default_rng(seed)
    )
    while drawn.shape[1] < length:  # a test shorter than the days since: its blocks are drawn again
        more = resampled_days(
            len(before), resamples, block_length(before), "stationary", np.random.default_rng(seed + 1)
        )
        drawn = np.concatenate([drawn, more], axis=1)
    means = before[drawn[:, : len(after)]].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return found | {"low": float(low), "high": float(high), "below": bool(after.mean() < low)}


def alarms(inputs: dict[str, Any] | None, skill: dict[str, Any]) -> list[str]:
    """Say what has drifted, in sentences; an empty list if nothing has."""
    said = []
    if inputs is not None and inputs["drifted"]:
        worst = inputs["drifted"][0]
        more = len(inputs["drifted"])
        said.append(
            f"inputs have drifted: {more} of {inputs['inputs']} differ from the training days over "
            f"{inputs['first']} to {inputs['last']}, most of all {worst['input']} (stability index "
            f"{worst['index']:.2f}, alarm above {worst['threshold']:.2f}). The models have not seen such "
            "days: check the prices, and train anew"
        )
    if skill["below"]:
        said.append(
            f"skill has fallen: mean daily IC {skill['mean']:+.4f} over the last {skill['days']} decided "
            f"days, below {skill['low']:+.4f}, which 97.5 % of stretches of the test exceed. Do not trade "
            "on these scores before the cause is known"
        )
    return said
