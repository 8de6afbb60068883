"""The rows of the DSF table: one recurrence, three ways to compute it, and the paper's statements."""

import math

import pytest
import torch

from manyhead.data.recall import associative_recall
from manyhead.errors import InputError
from manyhead.mixers.dynamical import (
    exponential_features,
    reversed_sigmoid,
    separable,
    truncated_softmax,
)
from manyhead.mixers.gated_rnn import LRU, QLSTM, RGLRU
from manyhead.mixers.linear_attention import LinearAttention, NormalizedAttention, causal_products
from manyhead.mixers.selective import S6, SSD, step_bias

FAMILIES = {
    "linear": lambda: LinearAttention(16, 4, causal=True),
    "normalized": lambda: NormalizedAttention(16, 2),
    "s6": lambda: S6(16, 8),
    "s6 zero": lambda: S6(16, 4, start="zero", rank=3),
    "ssd": lambda: SSD(16, 8),
    "lru": lambda: LRU(16, 12),
    "rglru": lambda: RGLRU(16),
    "qlstm": lambda: QLSTM(16),
    "qlstm reversed": lambda: QLSTM(16, 1, 3, reversed_gate=True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_recurrent_equals_stepwise_equals_attention_form(name):
    torch.manual_seed(0)
    x = torch.randn(2, 29, 16)
    system = FAMILIES[name]().dynamics(x)
    steps = system.stepwise()
    for other in (system.recurrent(), system.apply()):
        torch.testing.assert_close(other, steps, rtol=1e-4, atol=1e-5)
    assert (system.attention().triu(1) == 0).all()
    if name not in ("lru",):
        eta = torch.rand(2, 29, system.v.shape[2]) + 0.5
        torch.testing.assert_close(system.rescaled(eta).recurrent(), steps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LinearAttention, NormalizedAttention])
def test_attention_is_its_dynamics_and_its_matrix(kind):
    torch.manual_seed(0)
    layer = kind(16, 4, causal=True) if kind is LinearAttention else kind(16, 4)
    x = torch.randn(2, 130, 16)  # more than two chunks
    v = layer.project(x)[2]
    weighted = layer.mixing_matrix(x) @ v
    torch.testing.assert_close(layer.merge(weighted), layer(x), rtol=1e-3, atol=1e-5)
    by_dynamics = layer.dynamics(x).recurrent().transpose(1, 2)
    torch.testing.assert_close(layer.merge(by_dynamics), layer(x), rtol=1e-3, atol=1e-4)
    assert layer.dynamics(x).state_size == 4 * 4 * 4  # n d, whatever the length


def test_any_positive_normaliser_gives_the_same_separable_attention():
    """The output only knows eta_i, whatever came before it."""
    torch.manual_seed(0)
    q, k, v = (torch.rand(2, 3, 20, 4) for _ in range(3))
    eta = torch.rand(2, 3, 20) + 0.1
    expected = (causal_products(q, k, v)[0] / eta[..., None]).transpose(1, 2)
    torch.testing.assert_close(separable(q, k, v, eta).recurrent(), expected, rtol=1e-4, atol=1e-5)


def test_chunked_products_continue_from_a_state():
    q, k, v = (torch.randn(1, 2, 200, 4, dtype=torch.float64) for _ in range(3))
    whole, last = causal_products(q, k, v)
    torch.testing.assert_close(whole, (q @ k.mT).tril() @ v)
    first, state = causal_products(q[:, :, :77], k[:, :, :77], v[:, :, :77])
    second, state = causal_products(q[:, :, 77:], k[:, :, 77:], v[:, :, 77:], state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    torch.testing.assert_close(state, last)


def test_scalar_state_space_is_masked_attention_with_gates_as_normaliser():
    torch.manual_seed(1)
    layer, x = SSD(16, 8), torch.randn(2, 40, 16)
    system = layer.dynamics(x)
    weights = layer.mixing_weights(x)
    torch.testing.assert_close(
        (weights @ x.mT[..., None])[..., 0].mT + layer.D * x,
        system.recurrent()[..., 0, :],
        rtol=1e-4,
        atol=1e-5,
    )


def test_reversed_sigmoid_is_the_state_spaces_transition():
    z, a = torch.linspace(-30, 30, 101, dtype=torch.float64), 1.7
    torch.testing.assert_close(reversed_sigmoid(z, a), torch.sigmoid(-z) ** a)


def test_open_gates_make_a_cumulative_sum():
    layer = QLSTM(4, 1, 1)
    with torch.no_grad():
        layer.gates.weight.zero_()
        layer.gates.bias.fill_(40.0)
        layer.conv.weight.fill_(1.0)
        layer.conv.bias.zero_()
    x = torch.randn(1, 12, 4)
    entering = layer.input(x).chunk(2, -1)[1]
    torch.testing.assert_close(layer.dynamics(x).recurrent()[:, :, 0], entering.cumsum(1))


def test_truncated_softmax_falls_to_softmax_with_even_orders():
    """The card's medians: 0.68, 0.21, 0.036 of relative error at orders 0, 2, 4 (m = 8, score std 1)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(20, 1, 64, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    logits = (q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(64, 64, dtype=torch.bool).triu(1), -torch.inf)
    exact = (logits.softmax(-1) @ v).transpose(1, 2)
    medians = []
    for order, size in {0: 1, 2: 45, 4: 495}.items():
        assert exponential_features(q[:1], order).shape[-1] == size == math.comb(8 + order, order)
        # the scores alone, without states: the same sum by `attention`'s definition
        system = truncated_softmax(q[:2], k[:2], v[:2], order)
        scores = exponential_features(q, order) @ exponential_features(k, order).mT
        weights = scores.tril() / scores.tril().sum(-1, keepdim=True)
        found = (weights @ v).transpose(1, 2)
        torch.testing.assert_close(system.recurrent(), found[:2])
        medians.append(((found - exact).norm(dim=-1) / exact.norm(dim=-1)).median().item())
    mean = v.cumsum(2) / torch.arange(1, 65)[:, None]
    torch.testing.assert_close(truncated_softmax(q, k, v, 0).recurrent(), mean.transpose(1, 2))
    assert medians == pytest.approx([0.68, 0.21, 0.036], rel=0.25)


def test_truncation_error_is_within_the_taylor_bound():
    q, k = (torch.randn(1, 1, 30, 3, dtype=torch.float64) for _ in range(2))
    s = q @ k.mT / math.sqrt(3)
    for order in range(5):
        sums = exponential_features(q, order) @ exponential_features(k, order).mT
        bound = s.abs() ** (order + 1) * s.abs().exp() / math.factorial(order + 1)
        assert ((sums - s.exp()).abs() <= bound + 1e-12).all()


def test_recall_asks_for_what_it_told():
    inputs, labels = associative_recall(50, 64, 8, 256, seed=3)
    for row, answers in zip(inputs, labels, strict=True):
        told = dict(zip(row[0:16:2], row[1:16:2], strict=True))
        asked = answers != -100
        assert len(told) == 8 == asked.sum()
        assert all(told[key] == value for key, value in zip(row[asked], answers[asked], strict=True))
    with pytest.raises(InputError, match="length of at least 32"):
        associative_recall(1, 30, 8, 256)


def test_starting_step_sizes_and_bad_arguments():
    delta = torch.nn.functional.softplus(step_bias(1000))
    assert 0.001 <= delta.min() < 0.0015
    assert 0.08 < delta.max() <= 0.1001
    assert S6(8, start="zero").dt_proj.bias.eq(0).all()
    for build in (
        lambda: NormalizedAttention(8, 2, normalizer="tanh"),
        lambda: S6(8, 0),
        lambda: LRU(8, 4, (0.9, 0.5)),
        lambda: LinearAttention(9, 2),
    ):
        with pytest.raises(InputError):
            build()
