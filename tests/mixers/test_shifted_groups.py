"""Shifted groups with sinks: limits, causality, the released code's leak, and where the weight goes."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.shifted_groups import ShiftedGroupAttention
from manyhead.testing.mixers import check_mixer


def tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def layer(group=8, causal=True, **options):
    torch.manual_seed(0)
    full = MultiHeadAttention(16, 4, causal=causal, rotary=1.0).eval()
    return ShiftedGroupAttention(full, group, **options).eval()


SETTINGS = [
    {},
    {"shift_frac": 0.5, "sinks": 0},
    {"shift_frac": 0.0},
    {"shift_frac": 1.0, "sinks": 7},
    {"shift_frac": 0.5, "sinks": 12},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_contract(options):
    done = check_mixer(layer(**options), (2, 32, 16))
    assert {"causal", "matrix causal", "rows sum to one"} <= set(done)


@pytest.mark.parametrize("options", SETTINGS)
def test_the_matrix_says_what_the_layer_does(options):
    mixer, x = layer(**options), tokens(2, 32, 16)
    _, _, v = mixer.attention.parts(x)
    torch.testing.assert_close(
        mixer.attention.merge(mixer.mixing_matrix(x) @ v), mixer(x), atol=1e-5, rtol=1e-5
    )


def test_one_group_of_all_is_full_attention_and_no_shift_is_block_diagonal():
    mixer, x = layer(group=32, shift_frac=0.0, sinks=0), tokens(2, 32, 16)
    torch.testing.assert_close(mixer(x), mixer.attention(x), atol=1e-6, rtol=1e-5)
    blocks = layer(shift_frac=0.0, sinks=0).mixing_matrix(x) > 0
    at = torch.arange(32)
    expected = (at[:, None] // 8 == at // 8) & (at[:, None] >= at)
    assert (blocks == expected).all()


def test_heads_come_back_in_order():
    """Where all tokens are the same, every head returns its own value."""
    mixer = layer(group=2, shift_frac=0.5, sinks=0)
    x = tokens(1, 1, 16).expand(1, 8, 16)
    _, _, v = mixer.attention.parts(x)
    torch.testing.assert_close(mixer(x), mixer.attention.merge(v), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", SETTINGS)
def test_no_gradient_reaches_the_future(options):
    for t in (0, 3, 9, 20):
        x = tokens(1, 32, 16).requires_grad_()
        layer(**options)(x)[0, t].square().sum().backward()
        assert (x.grad[0, t + 1 :] == 0).all()


def test_the_released_wrap_leaks_the_end_into_the_start():
    x = tokens(1, 32, 16).requires_grad_()
    layer(shift_frac=0.5, sinks=0, mask_wrap=False)(x)[0, 2].square().sum().backward()
    assert (x.grad[0, -4:] != 0).any()
    assert (x.grad[0, 4:-4] == 0).all()


def test_weight_goes_to_sinks_and_group_only_each_sink_once():
    mixer, x = layer(group=8, shift_frac=0.25, sinks=4), tokens(1, 32, 16)
    weights = mixer.mixing_matrix(x)[0]
    at = torch.arange(32)
    same = at[:, None] // 8 == at // 8
    shifted = (at[:, None] + 4) // 8 == (at + 4) // 8
    for head in range(4):
        inside = (shifted if head == 3 else same) | (at < 4)
        assert (weights[head][~inside] == 0).all()
        torch.testing.assert_close(weights[head].sum(-1), torch.ones(32))
        assert (weights[head][8:, :4] > 0).all()
    # all logits equal: query i of the first group sees i + 1 keys, those of later groups four more
    with torch.no_grad():
        mixer.attention.q_proj.weight.zero_()
        mixer.attention.q_proj.bias.zero_()
    even = mixer.mixing_matrix(x)[0, 0]
    torch.testing.assert_close(1 / even[5, 0], torch.tensor(6.0))
    torch.testing.assert_close(1 / even[17, 0], torch.tensor(6.0))  # 16 and 17 of its group, four sinks


def test_rows_of_sinks_see_all_where_attention_goes_both_ways():
    mixer = layer(causal=False, sink_rows=True, sinks=3)
    x = tokens(1, 32, 16)
    weights = mixer.mixing_matrix(x)[0]
    assert (weights[:, :3] > 0).all()
    assert (weights[:, :, :3] > 0).all()
    torch.testing.assert_close(mixer(x)[:, :3], mixer.attention(x)[:, :3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: layer(sink_rows=True),
        lambda: layer(shift_frac=1.5),
        lambda: layer(sinks=-1),
        lambda: layer(group=7)(tokens(1, 32, 16)),
        lambda: layer(group=5, shift_frac=0.5)(tokens(1, 30, 16)),
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError):
        wrong()
