"""Flat regions: the contract of balancers, closed forms on quadratic losses, and what a step may touch."""

import pytest
import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks import (
    FlatRegions,
    LinearHead,
    MultiTask,
    Task,
    TorchJD,
    balancer_by_name,
    frozen_statistics,
)
from manyhead.tasks.balancers.flat import split_parameters
from manyhead.testing import check_balancer
from manyhead.training import fit

UPHILL = {
    "follows_the_sum_where_tasks_agree": "the gradient is that of the perturbed point",
    "gives_heads_their_own_gradient": "heads get their gradient at the perturbed point",
    "a_single_task_keeps_its_direction": "the gradient is that of the perturbed point",
}


@pytest.mark.parametrize(
    ("build", "excuses"),
    [
        (lambda names: FlatRegions("mean", rho=1e-4, adaptive=False), {}),
        (lambda names: FlatRegions("upgrad", rho=0.05, adaptive=False), UPHILL),
        (lambda names: FlatRegions("imtlg", rho=0.2, norm_scope="joint", mode="direct"), UPHILL),
    ],
)
def test_keeps_the_contract_of_balancers(build, excuses: dict[str, str]) -> None:
    check_balancer(build, excuses=excuses)


# -- quadratic losses L_i = theta' H_i theta / 2 have gradients H_i theta at every point ------------------


class Quadratics(nn.Module):
    """Losses over shared weights, and a head that multiplies one of them."""

    def __init__(self, tasks: int = 2, size: int = 4, heads: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(tasks)
        roots = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
        self.hessians = roots @ roots.mT
        self.theta = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
        self.phi = nn.ParameterList(
            [
                nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
                for _ in range(tasks if heads else 0)
            ]
        )

    def losses(self) -> dict[str, Tensor]:
        found = {f"{i}": 0.5 * self.theta @ h @ self.theta for i, h in enumerate(self.hessians)}
        for i, phi in enumerate(self.phi):
            found[str(i)] = found[str(i)] * phi.square().sum() + phi.sum() ** 2
        return found

    def step(self, balancer: FlatRegions | TorchJD) -> Tensor:
        self.zero_grad()
        balancer.backward(self.losses(), shared=[self.theta], recompute=self.losses)
        assert self.theta.grad is not None
        return self.theta.grad


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_the_flat_part_is_the_hessian_times_the_step_uphill(adaptive: bool, tasks: int) -> None:
    # of a quadratic: g^flat = H eps, with eps = rho H theta / |H theta|
    model, rho = Quadratics(tasks), 0.3
    theta = model.theta.detach()
    rows = model.hessians @ theta
    weight = theta.abs() if adaptive else torch.ones_like(theta)
    eps = rho * weight**2 * rows / (weight * rows).norm(dim=1, keepdim=True)
    flat = torch.einsum("tij,tj->ti", model.hessians, eps)
    found = model.step(FlatRegions("sum", rho=rho, adaptive=adaptive))
    assert torch.allclose(found, rows.sum(0) + flat.sum(0), rtol=1e-9)
    upgrad = TorchJD("upgrad")
    split = model.step(FlatRegions("upgrad", rho=rho, adaptive=adaptive))
    assert torch.allclose(split, upgrad.combine(rows) + upgrad.combine(flat), rtol=1e-6)
    direct = model.step(FlatRegions("upgrad", rho=rho, adaptive=adaptive, mode="direct"))
    assert torch.allclose(direct, upgrad.combine(rows + flat), rtol=1e-6)
    second = model.step(FlatRegions("upgrad", rho=rho, adaptive=adaptive, mode="second"))
    pair = torch.stack([upgrad.combine(rows), upgrad.combine(flat)])
    assert torch.allclose(second, upgrad.combine(pair), rtol=1e-6)
    each = model.step(FlatRegions("upgrad", rho=rho, adaptive=adaptive, mode="each"))
    pairs = [upgrad.combine(torch.stack([row, part])) for row, part in zip(rows, flat, strict=True)]
    assert torch.allclose(each, upgrad.combine(torch.stack(pairs)), rtol=1e-6)


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "imtlg", "upgrad", "mean"])
def test_a_radius_of_zero_is_the_aggregator_alone(name: str) -> None:
    model = Quadratics(2, heads=True)
    plain = model.step(TorchJD(name))
    heads = [phi.grad for phi in model.phi]
    for balancer in (FlatRegions(name, rho=0.0), FlatRegions(name, rho=1.0, mode="erm")):
        assert torch.allclose(model.step(balancer), plain, rtol=1e-12)
        assert all(torch.equal(phi.grad, head) for phi, head in zip(model.phi, heads, strict=True))


def test_linear_aggregators_do_not_see_the_split() -> None:
    model = Quadratics(3, heads=True)
    for name in ("mean", "sum"):
        direct = model.step(FlatRegions(name, rho=0.7, mode="direct"))
        assert torch.allclose(model.step(FlatRegions(name, rho=0.7)), direct, rtol=1e-10)


@pytest.mark.parametrize("adaptive", [False, True])
def test_perturbations_have_the_radius_asked_for(adaptive: bool) -> None:
    model = Quadratics(2, heads=True)
    losses = model.losses()
    theta, phi = split_parameters(losses, None)
    assert theta == [model.theta]
    assert phi == {"0": [model.phi[0]], "1": [model.phi[1]]}
    found = torch.autograd.grad(losses["1"], [model.theta, model.phi[1]])
    weights = [model.theta.detach(), model.phi[1].detach()]

    def steps(**options) -> list[Tensor]:
        balancer = FlatRegions("mean", adaptive=adaptive, **options)
        made = balancer.perturbation(found[0], theta, [found[1]], phi["1"])
        return [step / weight.abs() if adaptive else step for step, weight in zip(made, weights, strict=True)]

    separate = steps(rho=0.5, rho_heads=2.0)
    assert [float(step.norm()) for step in separate] == pytest.approx([0.5, 2.0])
    joint = torch.cat(steps(rho=0.5, norm_scope="joint"))
    assert float(joint.norm()) == pytest.approx(0.5)


def test_a_head_knows_nothing_of_other_tasks() -> None:
    model = Quadratics(3, heads=True)
    model.step(FlatRegions("mgda", rho=0.5))
    alone = model.phi[0].grad.clone()
    with torch.no_grad():
        model.hessians[1:] *= 7
    model.step(FlatRegions("mgda", rho=0.5))
    assert torch.equal(model.phi[0].grad, alone)


def test_two_conflicting_tasks_are_both_lowered_by_mgda_and_imtlg_is_impartial() -> None:
    rows = torch.tensor([[1.0, 0.2], [-0.9, 0.3]], dtype=torch.float64)
    shortest = FlatRegions("mgda").of_loss.combine(rows)
    assert bool((rows @ shortest >= shortest @ shortest - 1e-9).all())
    equal = rows @ FlatRegions("imtlg").of_loss.combine(rows) / rows.norm(dim=1)
    assert float(equal[0]) == pytest.approx(float(equal[1]))
    assert bool((rows @ FlatRegions("pcgrad").of_loss.combine(rows) >= -1e-12).all())


# -- what a step may touch -------------------------------------------------------------------------------


def network() -> MultiTask:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh())
    loss = nn.functional.mse_loss
    return MultiTask(encoder, [Task("a", LinearHead(5), loss), Task("b", LinearHead(5), loss)])


class Data:
    """Twelve samples."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.x, self.y = torch.randn(12, 3), torch.randn(2, 12)

    def __len__(self) -> int:
        return 12

    def batch(self, indices: Tensor) -> dict[str, object]:
        return {
            "inputs": self.x[indices],
            "targets": {"a": self.y[0, indices], "b": self.y[1, indices]},
        }


def test_weights_come_back_bit_for_bit_even_if_the_second_pass_fails() -> None:
    model, batch = network(), Data().batch(torch.arange(12))
    before = {name: value.clone() for name, value in model.named_parameters()}

    def fail() -> dict[str, Tensor]:
        assert not torch.equal(model.network[0].weight, before["network.0.weight"])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        FlatRegions("mean").backward(model.losses(batch), recompute=fail)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("balancer", [FlatRegions("mean", rho=1.0), balancer_by_name("famo", shape=2)])
def test_running_statistics_count_a_batch_once_in_training(balancer) -> None:
    # the first batch normalisation sees inputs that depend on the weights, so one step is compared
    model, data = network(), Data()
    expected = network()
    expected.losses(data.batch(torch.arange(12)))
    fit(
        model,
        data,
        losses=lambda model, batch: model.losses(batch),
        batch_size=12,
        epochs=1,
        balancer=balancer,
    )
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        found, once = getattr(model.network[1], name), getattr(expected.network[1], name)
        assert torch.allclose(found, once, atol=1e-6), name


def test_frozen_statistics_use_the_batch_but_remember_nothing() -> None:
    for momentum in (0.1, None):
        layer = nn.BatchNorm1d(2, momentum=momentum)
        x = torch.randn(8, 2) + 3
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        with frozen_statistics(layer):
            found = layer(x)
        assert torch.equal(found, nn.BatchNorm1d(2)(x))
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        layer(x)
        assert layer.num_batches_tracked == 1
        assert layer.momentum == momentum


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlatRegions("best"), "aggregator must be one of"),
        (lambda: FlatRegions("cagrad"), "CAGrad cannot be built"),
        (lambda: FlatRegions(rho=-1.0), "rho must be finite and not negative, got -1.0"),
        (lambda: FlatRegions(rho_heads=float("nan")), "rho_heads must be finite"),
        (lambda: FlatRegions(norm_scope="both"), "norm_scope must be 'separate' or 'joint', got 'both'"),
        (lambda: FlatRegions(norm_scope="joint", rho_heads=0.1), "rho_heads is for norm_scope 'separate'"),
        (lambda: FlatRegions(mode="twice"), "mode must be one of decomposed.*got 'twice'"),
        (lambda: Quadratics().step(FlatRegions("nashmtl", n_tasks=3, optim_niter=1)), "NashMTL|tasks"),
    ],
)
def test_bad_arguments_are_named(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_the_second_pass_must_be_there_and_know_every_task() -> None:
    model = Quadratics()
    with pytest.raises(InputError, match="recompute must be given"):
        FlatRegions().backward(model.losses())
    with pytest.raises(InputError, match="no loss of task '1'; it has \\['0'\\]"):
        FlatRegions().backward(model.losses(), recompute=lambda: {"0": model.losses()["0"]})
