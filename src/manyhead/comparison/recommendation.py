"""What a comparison says to do, each sentence with its price and its uncertainty."""

import math
from collections.abc import Sequence

from manyhead.comparison.interference import Conflict, first_conflict
from manyhead.comparison.result import Comparison
from manyhead.comparison.summary import Estimate, Line, line, summary

WIDE = 0.05  # chance of one false alarm among all balancers


def stands(gain: Estimate, tried: int) -> bool:
    """Whether a gain lies above zero after Bonferroni's correction for so many balancers tried."""
    count = len(gain.values)
    if count < 2 or math.isnan(gain.half):
        return False
    from scipy.stats import t  # scipy.stats is slow to import

    wider = float(t.ppf(1 - WIDE / (2 * tried), count - 1) / t.ppf(0.975, count - 1))
    return gain.mean - wider * gain.half > 0


def recommendation(comparison: Comparison, conflicts: Sequence[Conflict] | None = None) -> list[str]:
    """Sentences on sharing, on where to branch, and on the balancer."""
    lines = summary(comparison)
    single, equal, others = lines[0], lines[1], lines[2:]
    found = [_sharing(equal, single)]
    if conflicts is not None:
        found.append(_branching(comparison, conflicts))
    if others:
        found.append(_balancer(others))
    return found


def _price(line: Line) -> str:
    return f"{line.cost:.1f}x the processor time of equal weights"


def _sharing(equal: Line, single: Line) -> str:
    change, price = (
        equal.mean_change,
        f"networks of their own cost {single.cost:.1f}x the processor time and ",
    )
    price += f"{single.parameters / equal.parameters:.1f}x the weights"
    if change.above:
        return f"Share: equal weights gain {change.text()} % over single-task models, and {price}."
    if change.below:
        return f"Do not share all: equal weights stand {change.text()} % against single-task models; {price}."
    return f"Sharing is not seen to help or hurt ({change.text()} % against single-task models); {price}."


def _branching(comparison: Comparison, conflicts: Sequence[Conflict]) -> str:
    conflict = first_conflict(conflicts)
    depth = max((row.layer for row in conflicts), default=0)
    if conflict is None:
        return (
            f"Share all {depth} layers: in none of them does the interval of the mean cosine of the tasks' "
            "gradients lie below zero."
        )
    where = (
        f"Gradients conflict from layer {conflict.layer} ({conflict.name}) on: mean cosine "
        f"{conflict.cosine.text()}, negative in {100 * conflict.against:.0f} % of looks. "
    )
    if conflict.layer == 1:
        return where + "That is the first layer: the alternative to sharing is a network for each task."
    if comparison.forked is None:
        return where + "Branching there was not measured: the network is no nn.Sequential."
    branch = line(comparison, comparison.forked.label, [comparison.forked])
    equal = line(comparison, comparison.equal.label, [comparison.equal])
    weights = branch.parameters / equal.parameters
    price = f"costs {_price(branch)} and {weights:.1f}x the weights, and gains {branch.gain.text()} points"
    if branch.gain.above:
        return where + f"Share up to layer {conflict.layer - 1}: branching there {price}."
    verdict = "which hurts" if branch.gain.below else "which is within noise"
    return where + f"Yet sharing up to layer {conflict.layer - 1} only {price}, {verdict}: share all layers."


def _balancer(others: Sequence[Line]) -> str:
    held = [other for other in others if not math.isnan(other.gain.mean)]
    if not held:
        return "No balancer ended a run; keep equal weights."
    sure = [other for other in held if stands(other.gain, len(held))]
    if sure:
        best = max(sure, key=lambda other: other.gain.mean)
        return f"Balance with {best.label}: it costs {_price(best)} and gains {best.gain.text()} points."
    best = max(held, key=lambda other: other.gain.mean)
    doubt = (
        f"whose own interval lies above zero, but not after correcting for {len(held)} balancers tried"
        if best.gain.above
        else "which is within noise"
    )
    return (
        f"Keep equal weights: the best balancer, {best.label}, costs {_price(best)} and gains "
        f"{best.gain.text()} points, {doubt}."
    )
