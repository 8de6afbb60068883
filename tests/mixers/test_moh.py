"""Mixture of heads: gates count what they should, sparse equals dense, and multi-head attention continues."""

import pytest
import torch
from torch import nn

from manyhead.errors import InputError
from manyhead.layers.head_gates import HeadGates, QueryNormRouter, TwoStageRouter
from manyhead.mixers.moh import MixtureOfHeads, balance_loss, continue_as_mixture
from manyhead.mixers.multihead import MultiHeadAttention

COUNTS = [(2, 3), (0, 4), (1, 2), (8, 0), (3, 5)]  # shared and active of eight heads


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shared", "active"), COUNTS)
def test_gates_count_the_heads_at_work_and_sum_to_two_weighted_groups(shared: int, active: int) -> None:
    router = TwoStageRouter(16, 8, shared, active)
    x = tokens(2, 7, 16)
    found = router(x)
    assert found.gates.shape == (2, 7, 8)
    assert ((found.gates[..., shared:] > 0).sum(-1) == active).all()
    a = torch.full((2, 7, 2), 0.5) if router.to_groups is None else router.to_groups(x).softmax(-1)
    expected = 2 * (a[..., 0] * shared + a[..., 1] * active)
    torch.testing.assert_close(found.gates.sum(-1), expected)


def test_paper_scale_is_the_bare_product() -> None:
    router = TwoStageRouter(16, 6, 2, 2, gate_scale="paper")
    gates = router(tokens(1, 5, 16)).gates
    a = router.to_groups(tokens(1, 5, 16)).softmax(-1)
    torch.testing.assert_close(gates[..., :2].sum(-1), a[..., 0])
    assert (gates[..., 2:].sum(-1) < a[..., 1]).all()  # selected probabilities, not renormalised


@pytest.mark.parametrize(("shared", "active"), [(2, 6), (0, 8), (8, 0)])
def test_a_zero_router_with_all_heads_is_multi_head_attention(shared: int, active: int) -> None:
    attention = MultiHeadAttention(32, 8, causal=True, rotary=1.0)
    layer = MixtureOfHeads(attention, shared, active)
    for weight in layer.router.parameters():
        nn.init.zeros_(weight)
    x = tokens(2, 9, 32)
    torch.testing.assert_close(layer(x), attention(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("shared", "active"), COUNTS)
def test_sparse_execution_equals_dense_with_gradients(shared: int, active: int, causal: bool) -> None:
    attention = MultiHeadAttention(
        32,
        8,
        kv_heads=4,
        causal=causal,
        bias=active != 2,
        qk_norm=True,
        rotary=1.0,
        rotary_factor=2.0,
    )
    layer = MixtureOfHeads(attention, shared, active)
    x, g = tokens(2, 300, 32).requires_grad_(), tokens(2, 300, 32).flip(0)  # more queries than one block
    found = []
    for layer.sparse in (False, True):
        layer.zero_grad()
        x.grad = None
        out = layer(x)
        out.backward(g)
        found.append([out, x.grad, *(weight.grad for weight in layer.parameters())])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("router", ["two_stage", "query_norm"])
def test_the_future_changes_no_bit_of_the_past(router: str, sparse: bool) -> None:
    layer = MixtureOfHeads(MultiHeadAttention(32, 8, causal=True), 2, 3, router=router, sparse=sparse).eval()
    x = tokens(1, 12, 32)
    y = x.clone()
    y[:, 7:] += 1
    if sparse:  # other blocks of queries may round otherwise
        torch.testing.assert_close(layer(x)[:, :7], layer(y)[:, :7], atol=1e-6, rtol=0)
    else:
        assert torch.equal(layer(x)[:, :7], layer(y)[:, :7])
    assert not torch.allclose(layer(x)[:, 7:], layer(y)[:, 7:])


def test_permuted_tokens_give_permuted_outputs_and_a_context_is_seen() -> None:
    layer = MixtureOfHeads(MultiHeadAttention(32, 8), 2, 3)
    x, order = tokens(2, 10, 32), torch.randperm(10)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], atol=1e-6, rtol=1e-5)
    context = tokens(2, 5, 32)
    layer = MixtureOfHeads(MultiHeadAttention(32, 8, cross=True), 2, 3)
    assert layer(x, context).shape == x.shape
    assert not torch.allclose(layer(x, context), layer(x, context * 2))


@pytest.mark.parametrize("router", ["two_stage", "query_norm"])
def test_steps_equal_the_parallel_form(router: str) -> None:
    attention = MultiHeadAttention(32, 8, kv_heads=2, causal=True, rotary=1.0)
    layer = MixtureOfHeads(attention, 2, 3, router=router).eval()
    x = tokens(2, 512, 32)
    with torch.no_grad():
        state, outs = layer.initial_state(2, capacity=512), []
        for x_t in x.unbind(1):
            y_t, state = layer.step(x_t, state)
            outs.append(y_t)
        torch.testing.assert_close(torch.stack(outs, 1), layer(x), atol=1e-4, rtol=1e-4)
        with pytest.raises(InputError, match="room for 512"):
            layer.step(x[:, 0], state)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_head_that_nobody_selects_gets_no_gradient(causal: bool, sparse: bool) -> None:
    layer = MixtureOfHeads(MultiHeadAttention(32, 8, causal=causal), 2, 2, sparse=sparse)
    with torch.no_grad():  # positive tokens: routed head 5 always loses, as its score is the lowest
        layer.router.to_routed.weight[5] = -10
    out = layer(tokens(2, 6, 32).abs())
    out.square().sum().backward()
    dead = slice(7 * 4, 8 * 4)
    assert (layer.attention.out_proj.weight.grad[:, dead] == 0).all()
    assert (layer.attention.q_proj.weight.grad[dead] == 0).all()
    assert (layer.attention.q_proj.weight.grad[: 2 * 4] != 0).any()


def test_balance_loss_is_the_active_heads_at_balance_and_teaches_the_router_only() -> None:
    even = torch.full((1, 4, 4), 0.25)
    turns = torch.tensor([[[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]]).bool()
    assert HeadGates(even, turns, even).balance_loss().item() == pytest.approx(2)
    assert HeadGates(even, turns, even).balance_loss("paper").item() == pytest.approx(0.5)
    skewed = torch.tensor([0.5, 0.5, 0, 0]).expand(1, 4, 4)  # P = f / K
    assert HeadGates(skewed, skewed > 0, skewed).balance_loss().item() == pytest.approx(4)
    layers = nn.Sequential(*(MixtureOfHeads(MultiHeadAttention(32, 8), *n) for n in ((2, 3), (8, 0))))
    with pytest.raises(InputError, match="training mode"):
        balance_loss(layers)
    layers(tokens(2, 6, 32))
    balance_loss(layers).backward()
    taught = {name for name, weight in layers.named_parameters() if weight.grad is not None}
    assert taught == {"0.router.to_routed.weight"}


def test_query_norms_route_without_parameters_and_straight_through() -> None:
    router = QueryNormRouter(8, 3, 2)
    q = tokens(2, 8, 5, 4).requires_grad_()
    found = router(q, q)
    assert not list(router.parameters())
    assert set(found.gates.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(router(q, 7.5 * q).selected, found.selected)
    g = tokens(2, 5, 5)
    (of_gates,) = torch.autograd.grad(found.gates[..., 3:], q, g, retain_graph=True)
    (of_probability,) = torch.autograd.grad(found.probability, q, g)
    assert torch.equal(of_gates, of_probability)


def test_a_trained_network_continues_as_a_mixture_of_its_heads() -> None:
    network = nn.Sequential(MultiHeadAttention(32, 8), nn.Linear(32, 32), MultiHeadAttention(32, 4))
    x = tokens(2, 6, 32)
    before = network(x)
    names = {name for name, _ in network.named_parameters()}
    assert continue_as_mixture(network, 1, 3, router="query_norm") == 2
    assert {name.replace("attention.", "") for name, _ in network.named_parameters()} == names
    # four heads of four are at work in the second layer, four of eight in the first
    assert not torch.allclose(network(x), before)
    whole = nn.Sequential(MultiHeadAttention(32, 8))
    before = whole(x)
    continue_as_mixture(whole, 3, 5, router="two_stage")
    torch.testing.assert_close(whole(x), before, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="no MultiHeadAttention"):
        continue_as_mixture(nn.Linear(2, 2), 1, 1)


@pytest.mark.parametrize("numbers", [(8, 9, 0), (8, 2, 7), (8, 0, 0), (8, 4, 0), (8, -1, 2)])
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError):
        TwoStageRouter(16, *numbers)
