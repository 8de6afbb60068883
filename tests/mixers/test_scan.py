"""The linear scan equals a loop, in value and gradient."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.layers.scan import linear_scan


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 33), broadcast=st.booleans(), complex_=st.booleans(), start=st.booleans())
def test_equals_a_loop(length, broadcast, complex_, start):
    dtype = torch.complex128 if complex_ else torch.float64
    torch.manual_seed(length)
    a = torch.rand(2, length, 1 if broadcast else 3).to(dtype).requires_grad_()
    b = torch.randn(2, length, 3, dtype=dtype, requires_grad=True)
    h0 = torch.randn(2, 3, dtype=dtype, requires_grad=True) if start else None
    inputs = [a, b] if h0 is None else [a, b, h0]
    g = torch.randn(2, length, 3, dtype=dtype)

    def loop():
        h, found = torch.zeros(2, 3, dtype=dtype) if h0 is None else h0, []
        for i in range(length):
            h = a[:, i] * h + b[:, i]
            found.append(h)
        return torch.stack(found, 1)

    ours, theirs = linear_scan(a, b, h0), loop()
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad((h * g).real.sum(), inputs) for h in (ours, theirs)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)


def test_zero_factors_forget():
    b = torch.ones(1, 9, 1)
    a = torch.ones(1, 9, 1)
    a[:, 4] = 0.0
    assert linear_scan(a, b)[0, :, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 5]
