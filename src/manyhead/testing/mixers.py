"""Checks that every mixer must pass, whatever its mechanism."""

from collections.abc import Sequence

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_CROSS, CAUSAL_SELF, NONCAUSAL_CROSS, NONCAUSAL_SELF, USES, Mixer


def check_mixer(
    mixer: Mixer,
    shape: Sequence[int],
    *,
    context_shape: Sequence[int] | None = None,
    tolerance: float = 1e-4,
) -> list[str]:
    """Check a mixer's contract on random input.

    Args:
        mixer: the mixer, in evaluation mode or not.
        shape: shape of an input, `(batch, *grid, channels)`.
        context_shape: shape of a context, for cross-attention; that of the input if left out.
        tolerance: largest difference between two forms of one result.

    Returns:
        What was checked, in words.

    Raises:
        AssertionError: if the mixer breaks its contract, with what differs.
    """
    mixer.eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    done = []
    assert mixer.supports <= set(USES), f"supports names unknown uses {set(mixer.supports) - set(USES)}"
    assert mixer.supports, "a mixer supports at least one use"
    with torch.no_grad():
        y = mixer(x) if mixer.supports & {NONCAUSAL_SELF, CAUSAL_SELF} else None
    if y is not None:
        assert y.shape == x.shape, f"output {tuple(y.shape)} for input {tuple(x.shape)}"
        assert torch.isfinite(y).all(), "the output is not finite"
        with torch.no_grad():
            assert torch.allclose(mixer(x), y), "two calls in evaluation mode differ"
            alone = torch.cat([mixer(sample[None]) for sample in x])
        assert _near(alone, y, tolerance), "samples of a batch influence each other"
        done += ["shape", "finite", "repeatable", "samples independent"]
        done += _check_gradients(mixer, x)
    cross = mixer.supports & {NONCAUSAL_CROSS, CAUSAL_CROSS}
    context = torch.randn(*(context_shape or shape), generator=generator)
    if cross:
        with torch.no_grad():
            assert mixer(x, context).shape == x.shape, "cross-attention changes the shape"
        done.append("cross-attention")
    else:
        try:
            mixer(x, context)
        except InputError:
            done.append("context refused")
        else:
            raise AssertionError("a context is taken although no cross-attention is supported")
    if mixer.supports == {CAUSAL_SELF} and y is not None:
        with torch.no_grad():
            changed = x.clone()
            changed[:, -1] += 1.0
            assert _near(mixer(changed)[:, :-1], y[:, :-1], tolerance), (
                "a later token changes earlier outputs"
            )
        done.append("causal")
    if mixer.weighted:
        done += _check_matrix(mixer, x)
    if mixer.recurrent and y is not None:
        with torch.no_grad():
            state, steps = mixer.initial_state(x.shape[0]), []
            for token in x.unbind(1):
                out, state = mixer.step(token, state)
                steps.append(out)
        assert _near(torch.stack(steps, 1), y, tolerance), "step by step differs from all at once"
        done.append("recurrent form")
    return done


def _near(left: Tensor, right: Tensor, tolerance: float) -> bool:
    return bool((left - right).abs().max() <= tolerance * (1.0 + right.abs().max()))


def _check_gradients(mixer: Mixer, x: Tensor) -> list[str]:
    x = x.clone().requires_grad_()
    mixer.zero_grad()
    mixer(x).square().sum().backward()
    assert x.grad is not None, "no gradient reaches the input"
    assert torch.isfinite(x.grad).all(), "the input's gradient is not finite"
    for name, parameter in mixer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
    mixer.zero_grad()
    return ["gradients"]


def _check_matrix(mixer: Mixer, x: Tensor) -> list[str]:
    with torch.no_grad():
        matrix = mixer.mixing_matrix(x)
    assert matrix.ndim == 4, f"mixing_matrix is (batch, heads, queries, keys), got {tuple(matrix.shape)}"
    assert torch.isfinite(matrix).all(), "mixing_matrix is not finite"
    done = ["mixing matrix"]
    if mixer.traits is not None and mixer.traits.rows_sum_to_one:
        assert torch.allclose(matrix.sum(-1), torch.ones(matrix.shape[:-1]), atol=1e-4), (
            "rows do not sum to one"
        )
        done.append("rows sum to one")
    if mixer.supports == {CAUSAL_SELF} and x.ndim == 3:
        assert matrix.triu(1).abs().max() == 0, "mixing_matrix looks ahead"
        done.append("matrix causal")
    return done
