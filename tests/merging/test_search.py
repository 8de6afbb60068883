"""Searching alpha and lambda on a validation score."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.merging.masks import tall_mask
from manyhead.merging.search import search_alpha, search_lambdas
from manyhead.merging.vectors import State


def test_alpha_is_the_grid_value_with_the_best_normalised_score() -> None:
    base, vector = {"w": torch.zeros(2)}, torch.ones(2)

    def score(state: State, task: int) -> float:
        # task 0 wants 0.3 and task 1, whose scale is ten times larger, wants 0.9
        wanted = (0.3, 0.9)[task]
        return (1, 10)[task] * (1 - abs(float(state["w"][0]) - wanted) ** 2)

    alpha, normalised = search_alpha(base, vector, score, tuned=[1.0, 10.0])
    assert alpha == 0.6  # normalised, both tasks weigh the same
    assert normalised == pytest.approx(1 - 0.3**2)
    with pytest.raises(InputError, match="above zero"):
        search_alpha(base, vector, score, tuned=[0.0, 1.0])


def test_each_task_gets_the_lambda_that_rebuilds_it_best_and_the_sparsest_among_equals() -> None:
    vectors = torch.tensor([[1.0, 0.45, 0.0], [0.0, 1.0, 1.0]])
    merged, base = vectors.sum(0), {"w": torch.zeros(3)}

    def score(state: State, task: int) -> float:
        return -float((state["w"] - vectors[task]).abs().sum())

    # task 0: the second weight costs 1.0 inside the mask (0.45 > lambda) and 0.45 outside it
    assert search_lambdas(base, vectors, merged, score) == [0.6, 0.6]
    assert tall_mask(vectors[0], merged, 0.6).tolist() == [True, False, False]
    assert search_lambdas(base, vectors, merged, score, lambdas=(0.2, 0.4)) == [0.4, 0.4]
