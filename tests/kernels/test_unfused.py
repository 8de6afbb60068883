"""The unfused primitives: both ways agree, and the inverse is the adjoint of the neighbourhood."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.attention import attend
from manyhead.kernels.unfused import (
    inverse_neighborhood,
    neighborhood_av,
    neighborhood_neighborhood,
    neighborhood_qk,
    slots_of,
)
from manyhead.pattern import Window


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tiles_equal_gathers_and_the_fused_kernel(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    size = tuple(data.draw(st.integers(2, 4)) for _ in range(axes))
    dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(axes))
    causal = tuple(data.draw(st.booleans()) for _ in range(axes))
    stride = tuple(data.draw(st.integers(1, k)) for k in size)
    grid = tuple(k * d + data.draw(st.integers(0, 2)) for k, d in zip(size, dilation, strict=True))
    window = Window(size, stride, dilation, causal)
    q, k, v, g = (torch.randn(2, 2, *grid, 3, dtype=torch.float64) for _ in range(4))
    results = []
    for method in ("tiles", "naive"):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        weights = neighborhood_qk(inputs[0], inputs[1], window, method=method).softmax(-1)
        out = neighborhood_av(weights, inputs[2], window, method=method)
        results.append([out, *torch.autograd.grad(out, inputs, g)])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 1e-10
    fused = attend(*(x.movedim(1, -2) for x in (q, k, v)), window, scale=1.0, kernel="windows")
    assert (fused.movedim(-2, 1) - results[0][0]).abs().max() < 1e-10


@pytest.mark.parametrize("method", ["tiles", "naive"])
def test_inverse_is_the_adjoint(method: str) -> None:
    slots = slots_of(Window((3, 4), dilation=(2, 1)), (7, 8), 3)
    weights = torch.randn(1, 2, 7, 8, 12, dtype=torch.float64)
    v, u = (torch.randn(1, 2, 7, 8, 3, dtype=torch.float64) for _ in range(2))
    left = (neighborhood_neighborhood(weights, v, slots, method) * u).sum()  # type: ignore[arg-type]
    right = (v * inverse_neighborhood(weights, u, slots, method)).sum()  # type: ignore[arg-type]
    assert abs(left - right) < 1e-10


def test_gradients_by_finite_differences() -> None:
    q, k, v = (torch.randn(1, 1, 5, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    rpb = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    window = Window((3, 2))

    def run(*x: torch.Tensor) -> torch.Tensor:
        return neighborhood_av(neighborhood_qk(x[0], x[1], window, x[3]).softmax(-1), x[2], window)

    assert torch.autograd.gradcheck(run, (q, k, v, rpb))


def test_a_zero_bias_changes_nothing_and_slots_count() -> None:
    q, k = torch.randn(2, 1, 2, 9, 4).unbind(0)
    plain = neighborhood_qk(q, k, Window(5))
    assert torch.equal(plain, neighborhood_qk(q, k, Window(5), torch.zeros(2, 9)))
    causal = neighborhood_qk(q, k, Window(3, causal=True))
    assert torch.isfinite(causal).sum(-1)[0, 0].tolist() == [1, 2, *[3] * 7]
