"""The permuted tiles give the same result and visit exactly what the simulator counts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.attention import attend
from manyhead.kernels.permuted import permuted_attention
from manyhead.pattern import Window
from manyhead.pattern.simulator import simulate


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_same_result_and_tiles_as_simulated(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))
    size = tuple(data.draw(st.integers(2, 4)) for _ in range(axes))
    dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(axes))
    stride = tuple(data.draw(st.integers(1, k)) for k in size)
    causal = tuple(data.draw(st.booleans()) for _ in range(axes))
    grid = tuple(k * d + data.draw(st.integers(0, 5)) for k, d in zip(size, dilation, strict=True))
    query, key = (tuple(data.draw(st.integers(1, 4)) for _ in range(axes)) for _ in range(2))
    window = Window(size, stride, dilation, causal)
    q, k, v = (torch.randn(2, *grid, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    out, visited = permuted_attention(q, k, v, window, query, key)
    expected = attend(q, k, v, window, kernel="reference")
    assert (out - expected).abs().max() < 1e-10
    assert visited == simulate(grid, window, query, key).visited
    upstream = torch.randn_like(out)
    pairs = zip(
        torch.autograd.grad(out, (q, k, v), upstream),
        torch.autograd.grad(expected, (q, k, v), upstream),
        strict=True,
    )
    for a, b in pairs:
        assert (a - b).abs().max() < 1e-10
