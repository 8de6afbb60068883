"""Choosing alpha and lambda on validation data, as the papers do.

Wang et al., 2024, arXiv 2405.07813, section 5 and appendix: alpha by the mean accuracy normalised by
each task's own fine-tuned model, lambda of a task by the accuracy of the model that its mask rebuilds.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor

from manyhead.errors import InputError
from manyhead.merging.masks import tall_mask
from manyhead.merging.vectors import State, apply

ALPHAS = tuple(step / 10 for step in range(1, 11))
LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
Score = Callable[[State, int], float]  # validation accuracy of a state dict on a task


def search_alpha(
    base: State,
    vector: Tensor,
    score: Score,
    tuned: Sequence[float],
    alphas: Sequence[float] = ALPHAS,
    exclude: Sequence[str] = (),
) -> tuple[float, float]:
    """Find the scaling with the best normalised accuracy.

    Args:
        base: state dict of the pre-trained model.
        vector: (P,) merged task vector.
        score: validation accuracy of a state dict on a task.
        tuned: validation accuracy of each task's own fine-tuned model.
        alphas: the grid.
        exclude: the patterns that the vector was made with.

    Returns:
        Best alpha, the smaller one among equals, and its normalised accuracy.

    Raises:
        InputError: if a fine-tuned accuracy is not above zero, or the grid is empty.
    """
    if not alphas or min(tuned, default=0) <= 0:
        raise InputError("alpha is searched on a grid, and against fine-tuned accuracies above zero")

    def normalised(alpha: float) -> float:
        state = apply(base, vector, alpha, exclude)
        return fmean(score(state, task) / own for task, own in enumerate(tuned))

    found = {alpha: normalised(alpha) for alpha in alphas}
    best = max(found, key=lambda alpha: found[alpha])
    return best, found[best]


def search_lambdas(
    base: State,
    vectors: Tensor,
    merged: Tensor,
    score: Score,
    lambdas: Sequence[float] = LAMBDAS,
    exclude: Sequence[str] = (),
) -> list[float]:
    """Find for each task the threshold whose mask rebuilds the best model; the larger among equals.

    Args:
        base: state dict of the pre-trained model.
        vectors: task vectors (tasks, P).
        merged: (P,) their sum, or their TIES sum.
        score: validation accuracy of a state dict on a task.
        lambdas: the grid.
        exclude: the patterns that the vectors were made with.
    """
    chosen = []
    for task, vector in enumerate(vectors):
        found = {
            lam: score(apply(base, tall_mask(vector, merged, lam) * merged, 1.0, exclude), task)
            for lam in sorted(lambdas, reverse=True)
        }
        chosen.append(max(found, key=lambda lam: found[lam]))
    return chosen
