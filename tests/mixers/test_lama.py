"""LAMA: distributions over the words that are there, low rank in its scores, linear cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from manyhead.errors import InputError
from manyhead.mixers.lama import LowRankAttentionPooling


def words(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rank", [1, 3])
def test_padding_does_not_exist(rank: int) -> None:
    layer = LowRankAttentionPooling(12, 4, rank=rank)
    x, mask = words(2, 9, 12), torch.ones(2, 9)
    mask[1, 5:] = 0
    padded, alone = layer(x, mask), layer(x[1:, :5])
    assert (padded.weights >= 0).all()
    assert (padded.weights[1, :, 5:] == 0).all()
    torch.testing.assert_close(padded.weights.sum(-1), torch.ones(2, 4))
    torch.testing.assert_close(padded.output[1:], alone.output, atol=1e-6, rtol=0)
    nobody = layer(x, torch.zeros(2, 9))
    torch.testing.assert_close(nobody.weights, torch.full((2, 4, 9), 1 / 9))


def test_the_order_of_words_does_not_matter() -> None:
    layer, x, order = LowRankAttentionPooling(12, 4), words(2, 9, 12), torch.randperm(9)
    torch.testing.assert_close(layer(x[:, order]).matrix, layer(x).matrix, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer(x[:, order]).weights, layer(x).weights[..., order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
def test_scores_are_the_bilinear_forms_of_matrices_of_that_rank(rank: int) -> None:
    layer = LowRankAttentionPooling(12, 4, rank=rank, activation=None, l2_over=None, context="learned")
    x = words(2, 9, 12)
    full = torch.einsum("rdm,rem->mde", layer.p, layer.q)
    expected = torch.einsum("d,mde,bne->bmn", layer.context, full, x)
    torch.testing.assert_close(layer.scores(x), expected, atol=1e-5, rtol=1e-5)
    assert (torch.linalg.matrix_rank(full) == rank).all()


def test_one_head_has_two_levels_only() -> None:
    weights = LowRankAttentionPooling(12, 1)(words(1, 30, 12)).weights
    high, low = weights.max(), weights.min()
    assert ((weights - high).abs().minimum((weights - low).abs()) < 1e-6).all()
    assert (high / low).item() == pytest.approx(torch.e**2, rel=1e-4)


def test_scaling_p_changes_nothing_without_activation() -> None:
    layer, x = LowRankAttentionPooling(12, 4, activation=None), words(2, 9, 12)
    before = layer(x).weights
    with torch.no_grad():
        layer.p.mul_(3.7)
    torch.testing.assert_close(layer(x).weights, before)


def test_a_context_of_ones_leaves_independent_global_queries() -> None:
    layer = LowRankAttentionPooling(12, 4, activation=None, l2_over=None, context="learned")
    with torch.no_grad():
        layer.context.copy_(torch.eye(12)[0])
        layer.p[0, 0] = 1.0  # P^T c = 1
    x = words(2, 9, 12)
    torch.testing.assert_close(layer(x).weights, (x @ layer.q[0]).mT.softmax(-1))


def test_parameters_initial_range_projection_and_other_context() -> None:
    layer = LowRankAttentionPooling(64, 4, output_dim=7)
    assert layer.p.numel() + layer.q.numel() == 2 * 64 * 4
    assert 0.45 < layer.p.abs().max().item() <= 0.5  # heads ** -0.5
    x, other = words(2, 9, 64), words(2, 9, 64).flip(0)
    assert layer(x).output.shape == (2, 7)
    assert not torch.allclose(layer(x).weights, layer(x, context_source=other).weights)
    assert LowRankAttentionPooling(64, 4, initial="xavier").p.abs().max() <= (6 / 68) ** 0.5
    identical = LowRankAttentionPooling(8, 2)
    with torch.no_grad():
        identical.p.zero_()  # all heads uniform: A A^T = 1/n everywhere
    penalty = identical(words(1, 4, 8)).disagreement()
    assert penalty.item() == pytest.approx(2 * 0.75**2 + 2 * 0.25**2)


def test_zero_scores_have_finite_gradients() -> None:
    layer = LowRankAttentionPooling(8, 3)
    x = torch.zeros(1, 5, 8, requires_grad=True)
    layer(x).output.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_work_grows_linearly_with_words() -> None:
    layer, counts = LowRankAttentionPooling(16, 8), []
    for n in (64, 256):
        with FlopCounterMode(display=False) as counter:
            layer(words(1, n, 16))
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] < 4.01


@pytest.mark.parametrize(
    "wrong", [{"context": "sum"}, {"activation": "relu"}, {"rank": 0}, {"l2_over": "words"}]
)
def test_unknown_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LowRankAttentionPooling(8, 2, **wrong)
