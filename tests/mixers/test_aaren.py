"""Aaren: the scan equals its definition, streams, and is exact where floats are extreme."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.layers import prefix_softmax as module
from manyhead.layers.prefix_softmax import PrefixState, combine, prefix_softmax, prefix_states
from manyhead.mixers.aaren import Aaren


def explicit(s, v):
    """Softmax over every prefix, written out."""
    n = s.shape[-1]
    logits = s[..., None, :].expand(*s.shape[:-1], n, n)
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -torch.inf).softmax(-1) @ v


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 40),
    block=st.sampled_from([2, 3, 8, 64]),
    size=st.sampled_from([1.0, 40.0, 300.0]),
    seed=st.integers(0, 9),
)
def test_scan_equals_explicit_softmax_in_value_and_gradient(length, block, size, seed):
    generator = torch.Generator().manual_seed(seed)
    s = (torch.randn(2, 3, length, generator=generator) * size).double()
    v, g = (torch.randn(2, 3, length, 5, generator=generator).double() for _ in range(2))
    g_lse = torch.randn(2, 3, length, generator=generator).double()
    before, module.BLOCK = module.BLOCK, block
    try:
        a, b = s.clone().requires_grad_(), v.clone().requires_grad_()
        o, lse = prefix_softmax(a, b)
        ((o * g).sum() + (lse * g_lse).sum()).backward()
    finally:
        module.BLOCK = before
    c, d = s.clone().requires_grad_(), v.clone().requires_grad_()
    expected, expected_lse = explicit(c, d), torch.logcumsumexp(c, -1)
    ((expected * g).sum() + (expected_lse * g_lse).sum()).backward()
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(a.grad, c.grad, rtol=0, atol=1e-9)
    torch.testing.assert_close(b.grad, d.grad, rtol=0, atol=1e-9)


def test_float32_is_safe_at_64k_tokens():
    """Rising, falling and huge scores, forward and backward, against float64."""
    n = 65536
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(3, n, 1, generator=generator)
    wild = torch.randn(n, generator=generator) * 100
    s = torch.stack([torch.linspace(-400, 400, n), torch.linspace(400, -400, n), wild])
    found = {}
    for dtype in (torch.float32, torch.float64):
        a, b = (t.to(dtype, copy=True).requires_grad_() for t in (s, v))
        o, _ = prefix_softmax(a, b)
        o.square().sum().backward()
        found[dtype] = (o.detach().double(), a.grad.double(), b.grad.double())
    for low, high in zip(*found.values(), strict=True):
        assert torch.isfinite(low).all()
        assert (low - high).abs().max() <= 2e-4 * high.abs().max()


def test_the_common_shortcut_is_wrong_and_ours_is_not():
    """cumsum(exp(s - cummax s)) does not rescale what came before a new maximum."""
    s, v = torch.tensor([[0.0, 5.0]]), torch.tensor([[[1.0], [2.0]]])
    weights = (s - s.cummax(1).values).exp()
    shortcut = (weights[..., None] * v).cumsum(1) / weights.cumsum(1)[..., None]
    assert (shortcut - explicit(s, v)).abs().max() > 0.1
    torch.testing.assert_close(prefix_softmax(s, v)[0], explicit(s, v))


def random_state(generator, empty=False):
    m = torch.randn(4, generator=generator) * 30
    if empty:
        return PrefixState(torch.full((4,), -torch.inf), torch.zeros(4), torch.zeros(4, 3))
    return PrefixState(m, torch.rand(4, generator=generator), torch.randn(4, 3, generator=generator))


def test_operator_is_associative_and_commutative_with_an_identity():
    generator = torch.Generator().manual_seed(1)
    a, b, c = (random_state(generator) for _ in range(3))
    nothing = random_state(generator, empty=True)
    for one, other in [
        (combine(combine(a, b), c), combine(a, combine(b, c))),
        (combine(a, b), combine(b, a)),
        (combine(a, nothing), a),
        (combine(nothing, nothing), nothing),
    ]:
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = Aaren(16, 4)
    torch.nn.init.normal_(layer.query)
    return layer


def test_streams_and_folds_in_any_blocks(layer):
    x = torch.randn(2, 512, 16)
    whole = layer(x)
    state = layer.initial_state(2)
    for t in range(512):
        y, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-5)
    blocks, parts, start = layer.initial_state(2), [], 0
    for width in (1, 100, 64, 347):
        y, blocks = layer.extend(x[:, start : start + width], blocks)
        parts.append(y)
        start += width
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    folded = layer.fold(x[:, 200:], layer.fold(x[:, :200], layer.initial_state(2)))
    for one, other, third in zip(folded, blocks, state, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one, third, rtol=1e-5, atol=1e-4)
    assert sum(part[0].numel() for part in state) == 4 * (4 + 2)  # h + 2 numbers a head, always


def test_causal_to_the_bit_and_padding_is_absence(layer):
    x = torch.randn(1, 150, 16)
    changed = torch.cat([x[:, :70], torch.randn(1, 80, 16)], 1)
    assert torch.equal(layer(x)[:, :70], layer(changed)[:, :70])
    padding = torch.rand(1, 150) < 0.4
    padding[:, :2] = True  # an empty prefix too
    kept = ~padding[0]
    torch.testing.assert_close(layer(x, padding=padding)[:, kept], layer(x[:, kept]), rtol=0, atol=1e-5)
    assert torch.isfinite(layer(x, padding=padding)).all()


def test_last_output_is_one_softmax_query_and_ignores_order(layer):
    x = torch.randn(2, 37, 16)
    s, v = layer.scores_and_values(x)
    q = layer.q_proj(layer.query).reshape(1, 4, 1, 4).expand(2, -1, -1, -1)
    k = layer.k_proj(x).unflatten(-1, (4, 4)).transpose(1, 2)
    official = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, :, 0]
    torch.testing.assert_close(prefix_softmax(s, v)[0][:, :, -1], official, rtol=0, atol=1e-5)
    order = torch.randperm(37)
    torch.testing.assert_close(layer(x[:, order])[:, -1], layer(x)[:, -1], rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.mixing_matrix(x) @ v, prefix_softmax(s, v)[0], rtol=0, atol=1e-5)


def test_closed_forms():
    v = torch.randn(1, 30, 2)
    mean, _ = prefix_softmax(torch.full((1, 30), 7.0), v)
    torch.testing.assert_close(mean, v.cumsum(1) / torch.arange(1, 31)[:, None])
    s = torch.zeros(1, 30)
    s[0, 11] = 200.0
    o, _ = prefix_softmax(s, v)
    assert torch.equal(o[:, 11:], v[:, 11:12].expand(-1, 19, -1))
    assert torch.equal(prefix_softmax(s[:, :1], v[:, :1])[0], v[:, :1])
    states = prefix_states(torch.tensor([[-torch.inf, 3.0]]), v[:, :2])
    assert states.u.tolist() == [[0.0, 1.0]]


def test_parameters_and_bad_arguments():
    """The paper's +512 parameters of a 512-wide layer are the query."""
    dense = 4 * (512 * 512 + 512)
    assert sum(p.numel() for p in Aaren(512, 8).parameters()) == dense + 512
    with pytest.raises(InputError, match="10 channels and 4 heads"):
        Aaren(10, 4)
    with pytest.raises(InputError, match="takes no context"):
        Aaren(8, 2)(torch.zeros(1, 2, 8), torch.zeros(1, 3, 8))
