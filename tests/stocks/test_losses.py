"""The losses: what is masked, what is counted, and that masked cells get no gradient."""

import numpy as np
import pytest
import torch

from manyhead.stocks.losses import (
    masked_cross_entropy,
    masked_mae,
    official_cross_entropy,
    official_masked_mae,
)


def test_the_official_error_does_not_see_predictions_where_the_target_is_zero() -> None:
    target = torch.tensor([0.5, 0.0, -1.0, 0.0])
    first = official_masked_mae(torch.tensor([0.0, 9.0, 0.0, -9.0]), target)
    second = official_masked_mae(torch.tensor([0.0, 0.0, 0.0, 0.0]), target)
    assert first == second == 0.75  # the mean over the two cells that count
    assert official_masked_mae(torch.ones(3), torch.zeros(3)) == 0


def test_ours_counts_a_true_zero_return_and_drops_what_is_missing() -> None:
    target = torch.tensor([0.5, 0.0, float("nan"), -1.0])
    available = torch.tensor([True, True, False, True])
    prediction = torch.tensor([0.0, 3.0, 100.0, 0.0], requires_grad=True)
    loss = masked_mae(prediction, target, available)
    assert loss.item() == pytest.approx((0.5 + 3 + 1) / 3)
    loss.backward()
    torch.testing.assert_close(prediction.grad, torch.tensor([-1.0, 1.0, 0.0, 1.0]) / 3)


def test_the_official_error_of_missing_targets_has_a_finite_gradient() -> None:
    prediction = torch.zeros(3, requires_grad=True)
    official_masked_mae(prediction, torch.tensor([1.0, float("nan"), 0.0])).backward()
    torch.testing.assert_close(prediction.grad, torch.tensor([-0.5, 0.0, 0.0]))


def test_entropies_agree_where_all_is_available_and_differ_by_the_suspended_cells() -> None:
    logits, trend = torch.randn(2, 3, 4, 2), torch.randint(2, (2, 3, 4))
    everything = torch.ones_like(trend, dtype=torch.bool)
    torch.testing.assert_close(
        masked_cross_entropy(logits, trend, everything), official_cross_entropy(logits, trend)
    )
    available = everything.clone()
    available[1] = False
    torch.testing.assert_close(
        masked_cross_entropy(logits, trend, available), official_cross_entropy(logits[0], trend[0])
    )


def test_nothing_available_gives_zero_loss_and_zero_gradient() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    prediction = torch.randn(3, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.bool)
    loss = masked_cross_entropy(logits, torch.zeros(3, dtype=torch.long), nothing) + masked_mae(
        prediction, torch.full((3,), float("nan")), nothing
    )
    loss.backward()
    assert loss == 0
    assert np.array_equal(logits.grad, np.zeros((3, 2)))
    assert np.array_equal(prediction.grad, np.zeros(3))
