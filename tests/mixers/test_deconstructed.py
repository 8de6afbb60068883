"""The mixers of 'Deconstructing Attention': weights, causality, streams of the stated size, exact limits."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from manyhead.errors import InputError
from manyhead.insight.indicators import indicators, over_layers, row_entropy
from manyhead.layers.rotary import rotate
from manyhead.mixers.foreign_maps import FixedMaps, ForeignMapAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.self_scored import SelfScoredAttention
from manyhead.mixers.taylor import SeparateTaylorAttention, TaylorAttention, features
from manyhead.mixers.tokenwise import TokenwiseMixer
from manyhead.testing.mixers import check_mixer

MIXERS = {
    "approximate": lambda c, h: TaylorAttention(c, h, rotary=1.0, out_bias=False),
    "approximate separate": lambda c, h: SeparateTaylorAttention(c, h, rotary=1.0, out_bias=False),
    "nonapprox": lambda c, h: SelfScoredAttention(c, h, out_bias=False),
    "maps": lambda c, h: ForeignMapAttention(c, h, rotary=1.0, out_bias=False),
    "mlp": lambda c, h: TokenwiseMixer(c),
}


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name, channels=16, heads=4):
    torch.manual_seed(0)
    return MIXERS[name](channels, heads).eval()


@pytest.mark.parametrize("name", MIXERS)
def test_contract_and_number_of_weights(name):
    if name == "approximate separate":
        positive = made(name)  # products above zero, as the first average's divisor may vanish otherwise
        with torch.no_grad():
            positive.rotary = 0.0
            for projection in (positive.q_proj, positive.k_proj):
                projection.bias.fill_(3.0)
        assert "recurrent form" in check_mixer(positive, (2, 40, 16))
    else:
        done = check_mixer(made(name), (2, 40, 16))
        assert "recurrent form" in done
        assert name == "mlp" or "causal" in done
    standard = MultiHeadAttention(512, 8, out_bias=False)
    ours = MIXERS[name](512, 8)
    count, other = (sum(w.numel() for w in m.parameters()) for m in (ours, standard))
    assert abs(count / other - 1) < 1e-3


@pytest.mark.parametrize("name", MIXERS)
def test_no_gradient_reaches_the_future(name):
    x = tokens(1, 12, 16).requires_grad_()
    made(name)(x)[0, 5].square().sum().backward()
    assert (x.grad[0, 6:] == 0).all()
    if name == "mlp":
        assert (x.grad[0, :5] == 0).all()


@pytest.mark.parametrize(("name", "numbers"), [("approximate separate", (3, 2, 0, 0)),
                                               ("nonapprox", (1, 0, 2, 0)), ("mlp", (0, 0, 0, 0)),
                                               ("maps", (0, 0, 0, 2))])  # fmt: skip
def test_streams_hold_what_the_papers_table_says(name, numbers):
    """Numbers a sample in multiples of d, d^2 / h, h and L d: bytes in half precision are twice as many."""
    channels, heads, length = 24, 3, 50
    state = made(name, channels, heads).initial_state(1, capacity=length)
    parts = [state.keys, state.values] if name == "maps" else [p for p in state if torch.is_tensor(p)]
    d, square, head, cached = numbers
    expected = d * channels + square * channels**2 // heads + head * heads + cached * length * channels
    assert sum(part.numel() for part in parts) == expected


def test_fixed_maps_store_values_of_each_sample_and_keys_once():
    mixer, batch, length = made("maps"), 5, 30
    maps = FixedMaps(*(part[0] for part in mixer.map_parts(tokens(1, length, 16))))
    state = mixer.fixed_state(batch, length, maps)
    assert state.values.numel() + maps.keys.numel() == (batch + 1) * length * 16
    assert state.values.shape == (batch, 4, length, 4)


def test_the_polynomial_is_its_feature_map_and_near_softmax_for_small_logits():
    mixer, x = made("approximate"), tokens(2, 30, 16)
    q, k, _ = mixer.parts(x)
    a = q @ k.mT / 2
    torch.testing.assert_close(features(q) @ features(k).mT, 1 + a + a * a / 2)
    weights = mixer.mixing_matrix(x)
    assert (weights >= 0).all()
    assert (weights[..., -1, :] > 0).all()
    small = 0.1 * a / a.abs().max()
    later = torch.ones(30, 30, dtype=torch.bool).triu(1)
    w = (1 + small + small**2 / 2).tril()
    exact = small.masked_fill(later, -torch.inf).softmax(-1)
    assert (w / w.sum(-1, keepdim=True) - exact).abs().max() < 2e-4


def test_long_sequences_by_the_recurrence_equal_the_matrix():
    mixer, x = made("approximate"), tokens(2, 100, 16)  # 100 tokens > 2 * 4^2
    _, _, v = mixer.parts(x)
    torch.testing.assert_close(mixer(x), mixer.merge(mixer.mixing_matrix(x) @ v), atol=1e-4, rtol=1e-4)


def test_the_three_averages_are_those_of_the_formula():
    mixer, x = made("approximate separate"), tokens(1, 10, 16)
    q, k, v = (part[0, 1].double() for part in mixer.parts(x))
    out = torch.zeros(10, 4, dtype=torch.float64)
    for i in range(10):
        for w in (
            torch.ones(i + 1),
            torch.stack([q[i] @ k[j] for j in range(i + 1)]),
            torch.stack([(q[i] ** 2 / 2**0.5) @ (k[j] ** 2 / 2**0.5) for j in range(i + 1)]),
        ):
            out[i] += (w[:, None] * v[: i + 1]).sum(0) / w.sum()
    matrix = mixer.mixing_matrix(x)[0, 1].double()
    torch.testing.assert_close(matrix @ v, out, atol=2e-3, rtol=2e-3)
    whole = mixer.merge(mixer.mixing_matrix(x) @ mixer.parts(x)[2])
    torch.testing.assert_close(mixer(x), whole, atol=2e-3, rtol=2e-3)


def test_a_token_that_scores_itself_has_one_weight_whoever_asks():
    mixer, x = made("nonapprox"), tokens(2, 12, 16)
    weights = mixer.mixing_matrix(x)
    ratio = weights[..., 8:, 3] / weights[..., 8:, 7]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    with torch.no_grad():
        q = nn.functional.silu(mixer.q_proj(x)).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = mixer.keys_values(x)
        at = torch.arange(12)
        turned = (rotate(q, at) * rotate(k, at)).sum(-1) / 2
        torch.testing.assert_close(turned, mixer.scores(x)[0], atol=1e-5, rtol=1e-5)
        mixer.k_proj.weight.zero_()
        mixer.k_proj.bias.zero_()
        mean = v.cumsum(2) / torch.arange(1, 13)[:, None]
        torch.testing.assert_close(mixer(x), mixer.merge(mean), atol=1e-6, rtol=1e-5)


def test_maps_of_its_own_tokens_are_ordinary_attention():
    mixer, x = made("maps"), tokens(2, 12, 16)
    standard = MultiHeadAttention(16, 4, causal=True, rotary=1.0, out_bias=False)
    standard.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x), standard(x))
    other = tokens(1, 12, 16, seed=1)
    both = torch.cat([x, other])
    torch.testing.assert_close(mixer(both, guide=-1)[:2], mixer(x, maps=other.expand(2, -1, -1)))
    torch.testing.assert_close(
        mixer(x, weights=mixer.map_of(other)[0]), mixer(x, maps=other.expand(2, -1, -1))
    )


@pytest.mark.parametrize(("name", "most"), [("nonapprox", 1.2), ("mlp", 1.2), ("maps", 2.0)])
def test_work_grows_as_stated(name, most):
    """Multiplications counted, not timed, from 512 to 4,096 tokens: exponent above the projections' share."""
    mixer, counts = made(name, 16, 1), []
    for length in (512, 4096):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            # with a guide the products are plain ones, which the counter sees
            mixer(torch.zeros(1, length, 16), **({"guide": 0} if name == "maps" else {}))
        counts.append(counter.get_total_flops())
    exponent = math.log(counts[1] / counts[0]) / math.log(8)
    assert exponent <= most
    assert name != "maps" or exponent > 1.7


def test_indicators_of_known_maps():
    even = torch.ones(9, 9).tril() / torch.arange(1, 10)[:, None]
    torch.testing.assert_close(row_entropy(even), torch.arange(1.0, 10).log())
    found = indicators(even.expand(2, 3, -1, -1))
    torch.testing.assert_close(found.sink, (1 / torch.arange(1.0, 10)).mean().expand(3))
    assert found.head_diversity == 0
    same = indicators(torch.eye(16).expand(4, -1, -1))
    torch.testing.assert_close(same.concentration, torch.full((4,), 4.0))
    assert same.local_focus[0].tolist() == [1, 0, 0, 0]
    two = indicators(torch.stack([even, torch.eye(9)]))
    by_hand = torch.stack([even, torch.eye(9)]).std(0, correction=0).tril().sum() / 45
    assert two.head_diversity == pytest.approx(float(by_hand))
    assert over_layers(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    with pytest.raises(InputError):
        indicators(torch.ones(3, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TaylorAttention(16, 4, causal=False),
        lambda: SelfScoredAttention(16, 4, rotary=1.0),
        lambda: ForeignMapAttention(16, 4, source="elsewhere"),
    ],
)
def test_what_has_no_meaning_is_refused(wrong):
    with pytest.raises(InputError):
        wrong()
