"""The modular model: pruning keeps a task's outputs, extension keeps every old task's bits."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.networks.modular import ModularVision, task_routers

SMALL = {"image": 8, "patch": 4, "channels": 12, "depth": 2, "head_dim": 4, "heads": 2, "head_experts": 5}


def make() -> tuple[ModularVision, torch.Tensor]:
    torch.manual_seed(0)
    model = ModularVision({"digit": 10, "shape": 3}, experts=6, active=2, **SMALL)  # type: ignore[arg-type]
    for layer in model.expert_layers():
        for linear in layer.router.linears:
            torch.nn.init.normal_(linear.weight)  # type: ignore[arg-type]
    return model, torch.randn(6, 1, 8, 8)


def test_experts_that_a_task_never_uses_can_go_without_a_trace() -> None:
    model, image = make()
    before, routings = model(image, "shape")  # in training mode: usage is counted
    small = model.prune("shape", threshold=0.0)
    after, _ = small(image, "shape")
    torch.testing.assert_close(before, after)
    for layer, routing in zip(small.expert_layers(), routings, strict=True):
        assert len(layer.inner.weight) == len(routing.experts.unique())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_half_of_the_experts_are_the_most_used_ones() -> None:
    model, image = make()
    model(image, "digit")
    small = model.prune("digit", keep=0.5)
    for old, new in zip(model.expert_layers(), small.expert_layers(), strict=True):
        assert len(new.inner.weight) == max(round(0.5 * len(old.inner.weight)), old.router.active)
        assert new.router.usage.sum() == pytest.approx(
            float(old.router.usage[0].topk(len(new.inner.weight)).values.sum())
        )


def test_an_extended_model_keeps_old_tasks_to_the_bit_while_the_new_one_learns() -> None:
    model, image = make()
    model(image, "digit")
    old = model.eval()(image, "digit")[0]
    new = model.extend("letter", 4, experts=2)
    assert all(len(layer.inner.weight) == len(layer.router.usage[0]) for layer in model.expert_layers())
    optimizer = torch.optim.Adam(new, lr=0.05)
    target = torch.arange(6) % 4
    model.train()
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(image, "letter")[0], target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(model.eval()(image, "digit")[0], old)
    pruned = model.prune("digit", keep=1.0)  # only the experts that its routers know
    torch.testing.assert_close(pruned(image, "digit")[0], old)


def test_one_task_moves_no_head_or_router_of_another() -> None:
    model, image = make()
    model(image, "digit")[0].square().sum().backward()
    assert all(p.grad is None for p in task_routers(model, "shape"))
    assert all(p.grad is not None for p in task_routers(model, "digit"))


def test_wrong_input_is_named() -> None:
    model, _ = make()
    with pytest.raises(InputError, match="no task 'car'; there are digit, shape"):
        model.prune("car")
    with pytest.raises(InputError, match="'shape' has never been routed"):
        model.prune("shape")
    with pytest.raises(InputError, match="already a task 'digit'"):
        model.extend("digit", 2, 1)
    with pytest.raises(InputError, match="at least one task"):
        ModularVision({})
    with pytest.raises(InputError, match="do not tile"):
        ModularVision({"a": 1}, image=10, patch=4)
