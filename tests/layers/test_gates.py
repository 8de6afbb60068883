"""Routers, sparse dispatch and the mutual-information loss."""

import math

import pytest
import torch
from torch.nn.functional import gelu

from manyhead.errors import InputError
from manyhead.layers.gates import (
    Dispatch,
    Routing,
    RoutingMemory,
    TaskRouter,
    load_balance,
    mutual_information,
    routing_table,
)
from manyhead.networks.modular import ExpertAttention, ExpertFeedForward


def routing(probability: torch.Tensor, active: int = 1) -> Routing:
    gates, experts = probability.topk(active, -1)
    return Routing(gates, experts, probability)


def test_sparse_dispatch_equals_a_loop_over_experts() -> None:
    torch.manual_seed(0)
    layer = ExpertFeedForward(6, experts=5, active=2, tasks=2, ratio=4)
    torch.nn.init.normal_(layer.router.linears[1].weight)  # type: ignore[arg-type]
    x = torch.randn(3, 7, 6)
    y, found = layer(x, 1)
    expected = torch.zeros_like(x)
    for expert in range(5):
        out = gelu(x @ layer.inner.weight[expert] + layer.inner.bias[expert])  # type: ignore[index]
        out = out @ layer.outer.weight[expert] + layer.outer.bias[expert]  # type: ignore[index]
        gate = (found.gates * (found.experts == expert)).sum(-1, keepdim=True)
        expected += gate * out
    torch.testing.assert_close(y, expected)


def test_all_experts_under_an_even_router_are_their_sum_at_one_over_their_number() -> None:
    layer = ExpertFeedForward(4, experts=3, active=3, tasks=1)
    torch.nn.init.zeros_(layer.router.linears[0].weight)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 4)
    y, found = layer(x, 0)
    torch.testing.assert_close(found.gates, torch.full((2, 5, 3), 1 / 3 + 1e-4))
    inner = gelu(torch.einsum("bnc,ech->bneh", x, layer.inner.weight) + layer.inner.bias)
    whole = torch.einsum("bneh,ehc->bnec", inner, layer.outer.weight) + layer.outer.bias
    torch.testing.assert_close(y, (1 / 3 + 1e-4) * whole.sum(2))


def test_attention_over_as_many_experts_as_heads_is_multi_query_attention() -> None:
    layer = ExpertAttention(6, heads=3, head_dim=4, experts=3, tasks=1)
    torch.nn.init.zeros_(layer.router.linears[0].weight)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 6)
    y, _ = layer(x, 0)
    key, value = layer.key_value(x).chunk(2, -1)
    expected = torch.zeros_like(x)
    for head in range(3):
        query = x @ layer.inner.weight[head]
        attention = (query @ key.transpose(1, 2) / 2).softmax(-1)
        expected += attention @ value @ layer.outer.weight[head]
    torch.testing.assert_close(y, (1 / 3 + 1e-4) * expected)


def test_dispatch_brings_every_row_back_to_its_slot() -> None:
    found = routing(torch.rand(11, 4), 3)
    send, x = Dispatch(found), torch.randn(11, 5)
    slots = send.slots(send.send(x))
    torch.testing.assert_close(slots, x[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(send.rows(slots), send.send(x))


def test_equal_routing_of_all_tasks_has_no_mutual_information() -> None:
    row = torch.rand(50, 6).softmax(-1)
    table = routing_table([routing(row)] * 3)
    assert float(mutual_information(table, [50] * 3, epsilon=1e-12)) == pytest.approx(0, abs=1e-6)


def test_a_task_for_each_expert_reaches_the_lower_bound() -> None:
    table = torch.eye(4) * 10
    assert float(mutual_information(table, [10] * 4)) == pytest.approx(-math.log(4), abs=2e-3)
    for seed in range(5):
        random = torch.rand(4, 7, generator=torch.Generator().manual_seed(seed))
        table = random / random.sum(1, keepdim=True)
        assert float(mutual_information(table, [1] * 4)) >= -math.log(4)


def test_given_shares_undo_the_accident_of_token_counts() -> None:
    one, two = torch.rand(10, 5).softmax(-1), torch.rand(90, 5).softmax(-1)
    table = routing_table([routing(one), routing(two)])
    more = routing_table([routing(one.repeat(9, 1)), routing(two)])
    even = [mutual_information(t, [len_, 90], [0.5, 0.5]) for t, len_ in ((table, 10), (more, 90))]
    torch.testing.assert_close(even[0], even[1])
    assert mutual_information(table, [10, 90]) != pytest.approx(float(even[0]), rel=1e-3)
    with pytest.raises(InputError, match="has 2 tasks"):
        mutual_information(table, [10])


def test_the_loss_moves_routers_and_what_is_before_them_alone() -> None:
    layer = ExpertFeedForward(6, experts=5, active=2, tasks=2)
    x = torch.randn(3, 7, 6, requires_grad=True)
    found = [layer(x, task)[1] for task in range(2)]
    mutual_information(routing_table(found), [21, 21]).backward()
    assert all(p.grad is None for part in (layer.inner, layer.outer) for p in part.parameters())
    assert all(p.grad is not None and p.grad.any() for p in layer.router.parameters())
    assert x.grad is not None


def test_a_perfect_balance_costs_one() -> None:
    even = routing(torch.eye(4).repeat(3, 1) * 0.4 + 0.15)
    assert float(load_balance(even)) == pytest.approx(1.0)
    crowded = routing(torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(12, 1))
    assert float(load_balance(crowded)) == pytest.approx(4 * 0.7)


def test_usage_is_counted_in_training_and_noise_is_off_in_evaluation() -> None:
    router = TaskRouter(6, 5, 2, 2, noisy=True)
    x = torch.randn(4, 3, 6)
    first = router(x, 1)
    torch.testing.assert_close(router.usage[1], 0.05 * first.counts().float())
    assert not router.usage[0].any()
    assert not torch.equal(router(x, 1).probability, first.probability)
    router.eval()
    usage = router.usage.clone()
    torch.testing.assert_close(router(x, 1).probability, router(x, 1).probability)
    assert torch.equal(router.usage, usage)
    with pytest.raises(InputError, match="uses 1 to 5 experts, got 6"):
        TaskRouter(6, 5, 6, 1)


def test_rows_of_absent_tasks_are_remembered_without_gradient() -> None:
    memory = RoutingMemory(0.5)
    one, two = (torch.rand(8, 3).softmax(-1).requires_grad_() for _ in range(2))
    memory.table({0: routing(one)})
    table, tokens = memory.table({1: routing(two)})
    assert tokens == [1, 1]
    torch.testing.assert_close(table[0], one.mean(0))
    mutual_information(table, tokens, [0.5, 0.5]).backward()
    assert one.grad is None
    assert two.grad is not None
    again, _ = memory.table({0: routing(two.detach())})
    torch.testing.assert_close(again[0], two.mean(0))
    torch.testing.assert_close(memory.rows[0], (one.mean(0) + two.mean(0)) / 2)
