"""CAB's attentions: the support matrix by trying, causality to the bit, streams, and exact limits."""

import numpy as np
import pytest
import torch

from manyhead.errors import InputError
from manyhead.insight.composite import composite_index, efficiency_length, rank_score
from manyhead.mixers.base import USES
from manyhead.mixers.bounded_memory import BoundedMemoryAttention
from manyhead.mixers.catalogue import CAB, build
from manyhead.mixers.causal_longshort import CausalLongShortAttention
from manyhead.mixers.gated_rnn import LRU, QLSTM, RGLRU
from manyhead.mixers.heads import use_of
from manyhead.mixers.linear_attention import LinearAttention, NormalizedAttention
from manyhead.mixers.local import LocalAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.nystrom import NystromAttention, pseudo_inverse
from manyhead.mixers.performer import Performer
from manyhead.mixers.probsparse import ProbSparseAttention
from manyhead.mixers.s4d import S4D
from manyhead.mixers.selective import S6, SSD
from manyhead.testing.mixers import check_mixer

# rows as CAB's authors print them: noncausal self, causal self, noncausal cross, causal cross
MATRIX = {
    "vanilla": "yyyy",
    "local": "yy--",
    "abc": "yyyy",
    "nystrom": "y---",
    "performer": "y-yy",
    "lara": "y---",
    "cosformer": "y-y-",
    "probsparse": "y---",
    "longshort": "yy--",
    "s4d": "yy--",
}
PATTERNS = [(False, False), (True, False), (False, True), (True, True)]

CAUSAL = {
    "softmax": lambda: MultiHeadAttention(16, 4, causal=True),
    "softmax rotary": lambda: MultiHeadAttention(16, 2, causal=True, rotary=0.5),
    "softmax relative": lambda: MultiHeadAttention(16, 2, causal=True, relative=5),
    "linear": lambda: LinearAttention(16, 4, causal=True),
    "normalized": lambda: NormalizedAttention(16, 4),
    "local": lambda: LocalAttention(16, 4, causal=True, width=9),
    "abc": lambda: BoundedMemoryAttention(16, 4, causal=True, slots=5),
    "longshort": lambda: CausalLongShortAttention(16, 4, chunk=8, width=20, rank=2),
    "longshort released": lambda: CausalLongShortAttention(
        16, 2, chunk=8, width=20, memory=16, released=True
    ),
    "s4d": lambda: S4D(16, 2),
    "s6": lambda: S6(16, 8),
    "ssd": lambda: SSD(16, 8),
    "lru": lambda: LRU(16, 8),
    "rglru": lambda: RGLRU(16),
    "qlstm": lambda: QLSTM(16),
    "qlstm reversed": lambda: QLSTM(16, reversed_gate=True),
}


def made(build_mixer, seed=0):
    torch.manual_seed(seed)
    mixer = build_mixer().eval()
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name.endswith(("distance_bias", "content_bias", "position_bias")):
                parameter.normal_()
    return mixer


@pytest.mark.parametrize("name", MATRIX)
def test_support_matrix_by_trying_all_four_patterns(name):
    found = ""
    for causal, cross in PATTERNS:
        try:
            mixer = build(name, 16, 2, causal=causal, cross=cross).eval()
        except InputError as error:
            found += "-" if use_of(causal, cross) in str(error) else "unnamed"
            continue
        x, context = torch.randn(2, 40, 16), torch.randn(2, 33, 16)
        y = mixer(x, context) if cross else mixer(x)
        assert y.shape == x.shape
        found += "y"
        if causal:
            changed = torch.cat([x[:, :25], torch.randn(2, 15, 16)], 1)
            later = mixer(changed, context) if cross else mixer(changed)
            assert torch.equal(later[:, :25], y[:, :25])
    assert found == MATRIX[name]
    assert [use in CAB[name] for use in USES] == [mark == "y" for mark in MATRIX[name]]


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_to_the_bit_and_step_equals_parallel_over_512_steps(name):
    mixer = made(CAUSAL[name])
    x = torch.randn(2, 512, 16)
    with torch.no_grad():
        whole = mixer(x)
        changed = torch.cat([x[:, :301], torch.randn(2, 211, 16)], 1)
        assert torch.equal(mixer(changed)[:, :301], whole[:, :301])
        state = mixer.initial_state(2, capacity=512)
        for t in range(512):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_contract_of_causal_mixers(name):
    if name.startswith("longshort"):  # its second chunk average has no gradient in a short sequence
        check_mixer(made(CAUSAL[name]), (2, 24, 16))
    elif name == "qlstm":  # alpha is the reversed gate's
        mixer = made(CAUSAL[name])
        mixer.alpha.requires_grad_(False)
        check_mixer(mixer, (2, 11, 16))
    else:
        check_mixer(made(CAUSAL[name]), (2, 11, 16))


@pytest.mark.parametrize(
    "name", ["vanilla", "local", "nystrom", "performer", "lara", "cosformer", "longshort", "s4d", "abc"]
)
def test_contract_of_noncausal_mixers(name):
    torch.manual_seed(0)
    mixer = build(name, 16, 2)
    if name == "nystrom":
        mixer.landmarks = 24  # its pseudo-inverse's start is a maximum over the batch: exact only
    check_mixer(mixer, (2, 22, 16))


def twins(first, second):
    """Give two mixers the same projections."""
    torch.manual_seed(0)
    a, b = first(), second()
    b.load_state_dict(a.state_dict(), strict=False)
    return a.eval(), b.eval()


@pytest.mark.parametrize(
    "other",
    [
        lambda: LocalAttention(16, 2, width=30),
        lambda: NystromAttention(16, 2, landmarks=30),
        lambda: ProbSparseAttention(16, 2, factor=8),
    ],
)
def test_exact_limits_equal_softmax_attention(other):
    softmax, limit = twins(lambda: MultiHeadAttention(16, 2), other)
    x = torch.randn(2, 30, 16)
    torch.testing.assert_close(limit(x), softmax(x), rtol=1e-4, atol=1e-5)


def test_wide_causal_window_is_causal_softmax_and_its_matrix_says_so():
    softmax, local = twins(
        lambda: MultiHeadAttention(16, 2, causal=True), lambda: LocalAttention(16, 2, causal=True, width=30)
    )
    x = torch.randn(2, 30, 16)
    torch.testing.assert_close(local(x), softmax(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(local.mixing_matrix(x), softmax.mixing_matrix(x), rtol=1e-4, atol=1e-5)


def test_causal_slots_are_the_noncausal_slots_of_the_prefix():
    whole, causal = twins(
        lambda: BoundedMemoryAttention(16, 2, slots=3),
        lambda: BoundedMemoryAttention(16, 2, slots=3, causal=True),
    )
    x = torch.randn(2, 20, 16)
    for t in (0, 7, 19):
        torch.testing.assert_close(causal(x)[:, t], whole(x[:, : t + 1])[:, t], rtol=1e-4, atol=1e-5)


def test_performer_nears_softmax_as_features_grow_and_saves_them():
    torch.manual_seed(0)
    softmax = MultiHeadAttention(16, 2).eval()
    x = torch.randn(2, 30, 16)
    errors = []
    for count in (16, 4096):
        performer = Performer(16, 2, features=count).eval()
        performer.floor = 0.0  # what keeps features positive in float32 is a bias
        performer.load_state_dict(softmax.state_dict(), strict=False)
        errors.append((performer(x) - softmax(x)).abs().mean().item())
        other = Performer(16, 2, features=count).eval()
        other.floor = 0.0
        other.load_state_dict(performer.state_dict())
        assert torch.equal(other(x), performer(x))
    assert errors[1] < 0.25 * errors[0]


def test_pseudo_inverse_of_well_conditioned_matrices():
    torch.manual_seed(0)
    matrix = (torch.eye(6) * 4 + torch.rand(3, 6, 6)).softmax(-1).double()
    torch.testing.assert_close(
        pseudo_inverse(matrix, 12) @ matrix, torch.eye(6, dtype=torch.float64).expand(3, 6, 6)
    )


def test_padding_of_local_keys_is_absence_at_the_end():
    torch.manual_seed(0)
    x, padding = torch.randn(2, 20, 16), torch.arange(20) >= 13
    for mixer in (
        MultiHeadAttention(16, 2),
        BoundedMemoryAttention(16, 2, slots=3),
        LocalAttention(16, 2, width=4),
    ):
        y = mixer(x, padding=padding.expand(2, -1))[:, :13]
        torch.testing.assert_close(y, mixer(x[:, :13]), rtol=1e-4, atol=1e-5)


def test_s4d_convolution_equals_its_kernel():
    torch.manual_seed(0)
    mixer, u = S4D(3, 2, causal=False), torch.randn(1, 150, 3)
    exponent, c = mixer.modes()
    later = 2 * torch.einsum("khn,hnl->khl", c[2:], (exponent[..., None] * torch.arange(150)).exp()).real
    past, kernel = mixer.kernel(150)[:2], torch.zeros(2, 3, 150, 150)
    for t in range(150):
        for s in range(150):
            kernel[..., t, s] = past[..., t - s] if s <= t else later[..., s - t - 1]
    expected = mixer._out(torch.einsum("khts,bhs->bkht", kernel, u.mT), u.mT)
    torch.testing.assert_close(mixer(u), expected, rtol=1e-3, atol=1e-4)


def test_composite_index_and_efficiency_length_in_closed_form():
    mean, deviation = [3.0, 10.0, 0.5], [1.0, 2.0, 0.1]
    assert composite_index(mean, mean, deviation, [1, -1, 1], (2, 1))[1] == 0
    by_task, total = composite_index([4, 8, 0.5], mean, deviation, [1, -1, 1], (2, 1))
    assert by_task.tolist() == [1.0, 0.0]
    assert total == 0.5
    lengths = 2.0 ** np.arange(8, 14)
    found = efficiency_length(lengths, 1e-5 * lengths**2, 0.01 * lengths)
    assert found.length == pytest.approx(1000)
    assert found.r2 == pytest.approx((1, 1))
    assert rank_score([[3, 1], [2, 1], [1, 1]], [1, 1]).tolist() == [0.75, 0.5, 0.25]
    with pytest.raises(InputError):
        efficiency_length([1, 2], [1, 2], [1, 2])
    with pytest.raises(InputError):
        composite_index([1], [1, 2], [1], [1], (1,))


def test_bad_arguments_name_what_is_accepted():
    for wrong in (
        lambda: build("vanila", 16, 2),
        lambda: build("nowhere.Mixer", 16, 2),
        lambda: LocalAttention(16, 2, width=0),
        lambda: MultiHeadAttention(16, 3),
        lambda: S4D(16, state=3),
        lambda: S4D(16, cross=True),
        lambda: CausalLongShortAttention(16, 2, chunk=8, memory=3),
        lambda: MultiHeadAttention(16, 2, cross=True)(torch.zeros(1, 2, 16)),
        lambda: MultiHeadAttention(16, 2)(torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)),
        lambda: MultiHeadAttention(16, 2).initial_state(1),
    ):
        with pytest.raises(InputError):
            wrong()


def test_own_mixer_takes_part_by_dotted_name():
    mixer = build("manyhead.mixers.linear_attention.LinearAttention", 16, 2, causal=True)
    assert isinstance(mixer, LinearAttention)
