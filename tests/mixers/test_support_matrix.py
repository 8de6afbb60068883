"""What mixers that the catalogue does not name say of themselves is true: uses, causality, order, streams.

Uses are found by trying all four; causality by changing the future and comparing bits; streams in 512 steps.
"""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_CROSS, CAUSAL_SELF, NONCAUSAL_CROSS, NONCAUSAL_SELF
from manyhead.mixers.evicting import HeavyHitterAttention, SinkWindowAttention
from manyhead.mixers.foreign_maps import ForeignMapAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.routing import RoutingAttention
from manyhead.mixers.self_scored import SelfScoredAttention
from manyhead.mixers.shifted_groups import ShiftedGroupAttention
from manyhead.mixers.subsampled import SubsampledAttention
from manyhead.mixers.taylor import SeparateTaylorAttention, TaylorAttention
from manyhead.mixers.tokenwise import TokenwiseMixer

WIDTH = 16


def heads(causal, cross=False, **options):
    return MultiHeadAttention(WIDTH, 4, causal=causal, cross=cross, **options)


# name -> how to build it, its uses (noncausal self, causal self, noncausal cross, causal cross)
ROWS = {
    "grouped": (lambda causal, cross: heads(causal, cross, kv_heads=2, qk_norm=True), "yyyy"),
    "routing": (lambda causal, cross: RoutingAttention(WIDTH, 4, 2, 4, 10, block=8, causal=causal), "yy--"),
    "routing all": (
        lambda causal, cross: RoutingAttention(WIDTH, 4, 4, 4, 10, causal=causal, share_qk=False), "yyy-"),
    "shifted groups": (lambda causal, cross: ShiftedGroupAttention(heads(causal, cross), 10), "yy--"),
    "subsampled": (lambda causal, cross: SubsampledAttention(heads(causal, cross)), "yyyy"),
    "sinks and window": (lambda causal, cross: SinkWindowAttention(heads(causal, cross), 9), "-y--"),
    "heavy hitters": (lambda causal, cross: HeavyHitterAttention(heads(causal, cross), 300, 300), "-y--"),
    "taylor": (lambda causal, cross: TaylorAttention(WIDTH, 4, causal=causal, rotary=1.0), "-y--"),
    "taylor separate": (lambda causal, cross: SeparateTaylorAttention(WIDTH, 4, causal=causal), "-y--"),
    "self-scored": (lambda causal, cross: SelfScoredAttention(WIDTH, 4, causal=causal), "-y--"),
    "foreign maps": (lambda causal, cross: ForeignMapAttention(WIDTH, 4, causal=causal, rotary=1.0), "-y--"),
    "tokenwise": (lambda causal, cross: TokenwiseMixer(WIDTH), "yy--"),
}  # fmt: skip
PATTERNS = {NONCAUSAL_SELF: (False, False), CAUSAL_SELF: (True, False), NONCAUSAL_CROSS: (False, True),
            CAUSAL_CROSS: (True, True)}  # fmt: skip
# which of those with a noncausal form treat a sequence as a set
SETS = {"grouped": True, "routing all": True, "subsampled": True, "tokenwise": True, "routing": False,
        "shifted groups": False}  # fmt: skip
# which clusters' members a causal query sees depends on the future, though no value of it does
KNOWS_THE_FUTURE = ("routing", "routing all")


def made(name, causal, cross=False):
    torch.manual_seed(0)
    mixer = ROWS[name][0](causal, cross).eval()
    if name == "taylor separate":  # its first divisor may vanish where products have both signs
        with torch.no_grad():
            for projection in (mixer.q_proj, mixer.k_proj):
                projection.bias.fill_(3.0)
    return mixer


def tokens(length, seed=0):
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_uses_by_trying_all_four(name):
    found = ""
    for use, (causal, cross) in PATTERNS.items():
        try:
            mixer = made(name, causal, cross)
        except InputError:
            found += "-"
            continue
        try:
            y = mixer(tokens(40), tokens(30, 1)) if cross else mixer(tokens(40))
        except InputError:
            found += "-"
            assert use not in mixer.supports
            continue
        found += "y"
        assert use in mixer.supports
        assert y.shape == (2, 40, WIDTH)
        assert torch.isfinite(y).all()
    assert found == ROWS[name][1]


CAUSAL = [name for name, (_, uses) in ROWS.items() if uses[1] == "y"]


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_the_future_changes_no_bit_of_the_past(name):
    mixer, x = made(name, True), tokens(60)
    changed = torch.cat([x[:, :37], tokens(23, 1)], 1)
    options = {"membership": mixer.membership(x)} if name in KNOWS_THE_FUTURE else {}
    assert torch.equal(mixer(changed, **options)[:, :37], mixer(x, **options)[:, :37])
    if name in KNOWS_THE_FUTURE:
        assert not torch.equal(mixer(changed)[:, :37], mixer(x)[:, :37])


@pytest.mark.parametrize("name", SETS)
@torch.no_grad()
def test_permuted_tokens_give_permuted_outputs_where_a_sequence_is_a_set(name):
    mixer, x = made(name, False), tokens(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    difference = float((mixer(x[:, order]) - mixer(x)[:, order]).abs().max())
    assert (difference < 1e-5) == SETS[name]


@pytest.mark.parametrize("name", [name for name in CAUSAL if made(name, True).recurrent])
@torch.no_grad()
def test_steps_equal_the_parallel_form_over_512_tokens(name):
    mixer, x = made(name, True), tokens(512)
    whole = mixer(x)
    state, steps = mixer.initial_state(2, capacity=512), []
    for t in range(512):
        y, state = mixer.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CAUSAL if hasattr(made(name, True), "extend")])
@torch.no_grad()
def test_pieces_of_any_length_equal_the_parallel_form(name):
    mixer, x = made(name, True), tokens(80)
    state, parts = mixer.initial_state(2, capacity=80), []
    for piece in x.split([7, 1, 40, 32], 1):
        y, state = mixer.extend(piece, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), mixer(x), rtol=1e-4, atol=1e-4)


def test_every_row_that_streams_is_known():
    """A mixer that loses its recurrent form would otherwise leave the test above in silence."""
    still = {"routing", "routing all", "shifted groups"}
    assert {name for name in CAUSAL if not made(name, True).recurrent} == still
