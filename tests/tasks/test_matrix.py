"""Every balancer over a matrix of networks and losses: structure that must hold whatever is trained.

`check_balancer` tries one small network deeply; here every name that `balancer_by_name` knows, and flat
regions and Rep-MTL in several settings, meet three networks with three mixes of losses each.
"""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.networks.vision_transformer import Block
from manyhead.tasks import (
    FixedWeights,
    FlatRegions,
    LinearHead,
    Losses,
    MultiTask,
    PooledHead,
    RepMTL,
    Task,
    balancer_by_name,
    balancer_names,
)
from manyhead.tasks.balancers.statistics import frozen_statistics
from manyhead.testing.balancers import resumes_bit_for_bit
from manyhead.testing.bench import Bench

NAMES = ("a", "b", "c")
ONES = torch.ones(3, dtype=torch.float64)
PARAMETERS: dict[str, dict] = {
    "fixed": {"weights": dict.fromkeys(NAMES, 0.7)},
    "uncertainty": {"tasks": list(NAMES)},
    "flat": {"rho": 0.1, "adaptive": False},
    "cagrad": {"c": 0.4},
    "constant": {"weights": ONES},
    "cosmos": {"lambda_": 0.1, "weights": ONES},
    "fairgrad": {"alpha": 1.0},
    "famo": {"shape": 3},
    "imtll": {"shape": 3},
    "krum": {"n_byzantine": 0},
    "nashmtl": {"n_tasks": 3, "optim_niter": 3, "update_weights_every": 50},
    "pbi": {"theta": 0.1, "weights": ONES},
    "stch": {"mu": 1.0},
    "trimmedmean": {"trim_number": 0},
    "uw": {"shape": 3},
}
BUILD: dict[str, Callable] = {
    name: (lambda name=name: balancer_by_name(name, **PARAMETERS.get(name, {}))) for name in balancer_names()
}
BUILD |= {
    "flat imtl-g": lambda: FlatRegions("imtlg", rho=0.1),
    "flat direct": lambda: FlatRegions("pcgrad", rho=0.05, adaptive=False, mode="direct"),
    "rep_mtl raw": lambda: RepMTL(saliency_of="raw", reduce_tasks="logsum", include_positive=True),
}

# the whole contract of these is checked in test_balancers.py, test_flat.py and test_rep.py
CONTRACT = {"sum", "fixed", "uncertainty", "upgrad", "mgda", "imtlg", "cagrad", "pcgrad", "gradvac", "gls"}
CONTRACT |= {"rlw", "dwa", "famo", "uw", "nashmtl", "flat", "log_sum", "rep_mtl"}

# the order of the tasks counts: they are visited or weighed at random; of the nearest two of three gradients
# Krum takes the first; PCD's first task is the primary one
IN_ORDER = {"gradvac", "graddrop", "pcgrad", "random", "rlw", "flat direct", "krum", "pcd"}
# what these make of the losses depends on their size, by their equations
SEES_SIZE = {"cosmos", "excessmtl", "pbi", "stch", "nashmtl", "rep_mtl raw"}
# positions count, or samples are contrasted, so that alike tasks are no sum
NO_SUM = {"rep_mtl", "rep_mtl raw"}
# the gradient of a head is that of its task elsewhere, or holds the regularisers
OWN_HEADS = {"flat", "flat imtl-g", "flat direct", "rep_mtl", "rep_mtl raw"}


class Perceptron(nn.Sequential):
    """Three layers with batch normalisation."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh())

    inputs = (8, 6)


class Convolutional(nn.Module):
    """Two convolutions, channels last at the end."""

    inputs = (8, 2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1), nn.GELU(), nn.Conv2d(6, 8, 3, 1, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).movedim(1, -1)


class Attention(nn.Module):
    """A transformer block over five tokens."""

    inputs = (8, 5, 6)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(6, 8), Block(8, 2, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        # not fused: second derivatives of the fused kernel are not to be had on every device
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            return self.block(self.embed(x))


def binary(prediction: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(prediction, (target > 0).to(prediction.dtype))


NETWORKS = {"perceptron": Perceptron, "convolutional": Convolutional, "attention": Attention}
# (loss, outputs) of each task; None is one number
MIXES = {
    "squares": [(F.mse_loss, None)] * 3,
    "kinds": [(F.mse_loss, None), (F.cross_entropy, 4), (binary, None)],
    "robust": [(F.huber_loss, None), (F.l1_loss, None), (F.cross_entropy, 2)],
}


# the mix with which a network's heads and tasks alike are looked at too
FULLY = dict(zip(NETWORKS, MIXES, strict=True))


class Case:
    """One network with three tasks and a batch."""

    def __init__(self, network: str, mix: str, alike: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(len(network) + len(mix))
        body = NETWORKS[network]()
        kinds = MIXES[mix] if not alike else [MIXES[mix][1]] * 3
        pooled = network != "perceptron"
        heads = []
        for _, outputs in kinds:
            head = LinearHead(8, outputs)
            heads.append(PooledHead(head) if pooled else head)
        tasks = [Task(n, head, kind[0]) for n, head, kind in zip(NAMES, heads, kinds, strict=True)]
        self.model = MultiTask(body, tasks).double()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.3 * self.random(parameter.shape))
        if alike:
            for head in heads[1:]:
                head.load_state_dict(heads[0].state_dict())
        self.batch = {"inputs": self.random(body.inputs), "targets": {}}
        for name, (_, outputs) in zip(NAMES, kinds, strict=True):
            if outputs is None:
                target = self.random((8,))
            else:
                target = torch.randint(outputs, (8,), generator=self.generator)
            self.batch["targets"][name] = self.batch["targets"]["a"] if alike and name != "a" else target

    def random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def losses(self, scale: float = 1.0, order: tuple[str, ...] = NAMES) -> Losses:
        found = self.model.losses(self.batch)
        return Losses(
            {name: scale * found[name] for name in order},
            representation=found.representation,
            shared=found.shared,
        )

    def gradients(self, balancer, **options) -> dict[str, Tensor]:
        """What a balancer leaves, from one random state; running statistics are put back."""
        torch.manual_seed(0)
        self.model.zero_grad()
        with frozen_statistics(self.model):
            losses = self.losses(**options)
            given = {"representation": losses.representation} if isinstance(balancer, RepMTL) else {}
            balancer.double().backward(
                losses, shared=losses.shared, recompute=lambda: self.losses(**options), **given
            )
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}


def shared(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for name, g in gradients.items() if name.startswith("network")])


def cosine(first: Tensor, second: Tensor) -> float:
    return float(F.cosine_similarity(first.flatten(), second.flatten(), dim=0))


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", list(BUILD))
@pytest.mark.parametrize("network", list(NETWORKS))
def test_structure_holds_over_losses(network: str, name: str) -> None:
    build = BUILD[name]
    for mix in MIXES:
        case = Case(network, mix)
        plain = case.gradients(build())
        # every parameter is reached, by a finite gradient
        for parameter, gradient in plain.items():
            assert gradient is not None, (mix, parameter)
            assert torch.isfinite(gradient).all(), (mix, parameter)
        assert shared(plain).abs().max() > 0, mix
        # a common factor changes no direction
        if name not in SEES_SIZE:
            assert cosine(shared(case.gradients(build(), scale=3.0)), shared(plain)) > 0.9999, mix
        # nor does the order of the tasks
        if name not in IN_ORDER:
            turned = case.gradients(build(), order=("c", "a", "b"))
            for parameter, gradient in plain.items():
                torch.testing.assert_close(turned[parameter], gradient, rtol=1e-4, atol=1e-5)
        if mix != FULLY[network]:
            continue
        # a head follows its own task alone
        if name not in OWN_HEADS:
            for task in NAMES:
                case.model.zero_grad()
                with frozen_statistics(case.model):
                    case.losses()[task].backward()
                for parameter, value in case.model.named_parameters():
                    if parameter.startswith(f"tasks.{task}.") and value.grad.abs().max() > 1e-9:
                        assert abs(cosine(value.grad, plain[parameter])) > 0.9999, (mix, parameter)
        # tasks that agree are followed as their sum is
        if name not in NO_SUM:
            same = Case(network, mix, alike=True)
            agreed = shared(same.gradients(build()))
            single = shared(same.gradients(balancer_by_name("sum")))
            least = 0.9 if name.startswith("flat") else 0.9999  # it looks a step uphill
            assert cosine(agreed, single) > least, mix


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", list(BUILD))
def test_nothing_is_held_after_200_steps(name: str) -> None:
    # as little network as can be: a matrix under three vectors
    generator, balancer = torch.Generator().manual_seed(0), BUILD[name]().double()
    body, *heads = (
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((3, 4), *((4,),) * 3)
    )
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD([body, *heads, *balancer.parameters()], lr=1e-4)

    def losses() -> Losses:
        feature = x @ body
        found = {n: (feature @ head - 1).square().mean() for n, head in zip(NAMES, heads, strict=True)}
        return Losses(found, representation=feature, shared=[body])

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    def run(steps: int) -> int:
        for _ in range(steps):
            optimizer.zero_grad()
            found = losses()
            given = {"representation": found.representation} if isinstance(balancer, RepMTL) else {}
            balancer.backward(found, shared=[body], recompute=losses, **given)
            optimizer.step()
            balancer.after_step(losses)
        del found
        return alive()

    gc.freeze()  # look only at what is made from here on
    try:
        before = run(5)
        assert run(200) - before <= 2, "tensors were kept"
    finally:
        gc.unfreeze()
    assert torch.isfinite(body).all()


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", [name for name in BUILD if name not in CONTRACT])
def test_an_interrupted_run_goes_on_bit_for_bit(name: str, monkeypatch) -> None:
    for key, given in PARAMETERS.items():  # weights have the type of the losses, here of ordinary training
        if "weights" in given and key != "fixed":
            monkeypatch.setitem(given, "weights", ONES.float())
    told = ("shared", "representation") if name.startswith("rep_mtl") else ("shared",)
    resumes_bit_for_bit(Bench(lambda names: BUILD[name](), NAMES, told))


def test_weights_that_are_given_are_the_ones_used() -> None:
    case = Case("perceptron", "kinds")
    weights = {"a": 2.0, "b": 0.5, "c": 0.0}
    found = shared(case.gradients(FixedWeights(weights)))
    parts = [shared(case.gradients(FixedWeights(dict.fromkeys(NAMES, 0.0) | {n: 1.0}))) for n in NAMES]
    torch.testing.assert_close(found, 2.0 * parts[0] + 0.5 * parts[1])
