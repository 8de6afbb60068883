"""Every mixer of the catalogue, tried in all four uses: support, causality to the bit, order, streams."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_CROSS, CAUSAL_SELF, NONCAUSAL_CROSS, NONCAUSAL_SELF, USES, Mixer
from manyhead.mixers.catalogue import NAMES, build, uses_of
from manyhead.mixers.heads import use_of

FLAGS = {use_of(causal, cross): (causal, cross) for causal in (False, True) for cross in (False, True)}
SERVED = [(name, use) for name in NAMES for use in USES if use in uses_of(name)]
# reordered tokens give reordered outputs: these know no positions
SETS = {"vanilla", "abc", "performer", "linear", "moh", "none"}
TOKENS = 64  # a multiple of every block and chunk


def made(name: str, use: str) -> Mixer:
    torch.manual_seed(0)
    causal, cross = FLAGS[use]
    mixer = build(name, 16, 4, causal=causal, cross=cross).eval()
    with torch.no_grad():  # biases that start at zero hide mistakes
        for weight in mixer.parameters():
            if (weight == 0).all():
                weight.normal_(std=0.1)
    return mixer


@pytest.mark.parametrize("name", NAMES)
def test_a_mixer_is_built_for_the_uses_it_declares_and_no_other(name: str) -> None:
    assert uses_of(name)
    x, context = torch.randn(2, TOKENS, 16), torch.randn(2, 33, 16)
    for use, (causal, cross) in FLAGS.items():
        if use not in uses_of(name):
            with pytest.raises(InputError, match=use):
                build(name, 16, 4, causal=causal, cross=cross)
            continue
        mixer = made(name, use)
        assert use in mixer.supports
        y = mixer(x, context) if cross else mixer(x)
        assert y.shape == x.shape
        assert torch.isfinite(y).all()
        if cross and name != "none":
            assert not torch.allclose(mixer(x, context.flip(0)), y)
        elif not cross and not mixer.supports & {NONCAUSAL_CROSS, CAUSAL_CROSS}:
            with pytest.raises(InputError, match="context"):
                mixer(x, context)


@pytest.mark.parametrize(("name", "use"), SERVED)
def test_causal_means_that_the_future_changes_no_bit(name: str, use: str) -> None:
    mixer = made(name, use)
    causal, cross = FLAGS[use]
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(2, TOKENS, 16, generator=generator) for _ in range(2))
    context_of = (context,) if cross else ()
    with torch.no_grad():
        y = mixer(x, *context_of)
        for cut in (1, 17, 40, TOKENS - 1):
            later = x.clone()
            later[:, cut:] = torch.randn(2, TOKENS - cut, 16, generator=generator)
            changed = mixer(later, *context_of)
            if causal:
                assert torch.equal(changed[:, :cut], y[:, :cut])
            if name != "none":
                assert not torch.allclose(changed[:, cut:], y[:, cut:])
            if use == NONCAUSAL_SELF and name != "none" and cut > 1:
                assert not torch.allclose(changed[:, :cut], y[:, :cut])  # it does see what comes


@pytest.mark.parametrize(("name", "use"), [pair for pair in SERVED if pair[1] != CAUSAL_SELF])
def test_order_matters_to_those_that_know_positions_and_to_no_other(name: str, use: str) -> None:
    mixer = made(name, use)
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(2, TOKENS, 16, generator=generator) for _ in range(2))
    order = torch.randperm(TOKENS, generator=generator)
    with torch.no_grad():
        if use == NONCAUSAL_SELF:
            same = torch.allclose(mixer(x[:, order]), mixer(x)[:, order], atol=1e-5)
        else:
            same = torch.allclose(mixer(x, context[:, order]), mixer(x, context), atol=1e-5)
    assert same == (name in SETS)


@pytest.mark.parametrize("name", [name for name in NAMES if CAUSAL_SELF in uses_of(name)])
def test_step_equals_parallel_over_512_steps(name: str) -> None:
    mixer = made(name, CAUSAL_SELF)
    assert mixer.recurrent  # every causal self-attention of the catalogue streams
    x = torch.randn(1, 512, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = mixer(x)
        state = mixer.initial_state(1, capacity=512)
        for t in range(512):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if CAUSAL_SELF in uses_of(name) and hasattr(made(name, CAUSAL_SELF), "extend")],
)
def test_pieces_of_any_length_equal_the_parallel_form(name: str) -> None:
    mixer = made(name, CAUSAL_SELF)
    x = torch.randn(2, 80, 16, generator=torch.Generator().manual_seed(1))
    state, parts = mixer.initial_state(2, capacity=80), []
    with torch.no_grad():
        for piece in x.split([7, 1, 40, 32], 1):
            y, state = mixer.extend(piece, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), mixer(x), rtol=1e-4, atol=1e-4)
