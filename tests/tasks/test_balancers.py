"""Balancers against their contract, their papers' equations and closed forms of two tasks."""

import math

import pytest
import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks import (
    Balancer,
    FixedWeights,
    HomoscedasticUncertainty,
    Losses,
    Sum,
    TorchJD,
    TorchJDScalarizer,
    balancer_by_name,
    balancer_names,
)
from manyhead.testing import check_balancer

RANDOM_ORDER = {"invariant_to_task_order": "the tasks are visited, or weighed, at random"}
FIXED_TASKS = {
    "a_task_may_be_absent_from_a_batch": "Nash-MTL's solver is built for a fixed number of tasks",
    "a_single_task_keeps_its_direction": "there is no bargain with a single task",
    "survives_gradients_of_zero": "the bargain is over the logarithms of gains, which must not be zero",
    "keeps_direction_when_all_losses_scale": "its linearised solver starts from weights of one",
    "many_tasks_work": "twelve tasks take its solver many seconds; two and three are checked",
}
COUNTS = "it has one weight for each task, by position"
COUPLED = {"heads_ignore_other_tasks": "the weight of a task depends on the losses of all"}
ABSENT = {"a_task_may_be_absent_from_a_batch": COUNTS}
LOGARITHM = {"survives_gradients_of_zero": "the geometric mean has no gradient at a loss of zero"}
CONTRACTS = {
    "sum": (lambda names: Sum(), {}),
    "fixed": (lambda names: FixedWeights(dict.fromkeys(names, 0.5)), {}),
    "uncertainty": (lambda names: HomoscedasticUncertainty(names), {}),
    "upgrad": (lambda names: TorchJD("UPGrad"), {}),
    "mgda": (lambda names: TorchJD("mgda"), {}),
    "imtl-g": (lambda names: TorchJD("IMTL-G"), {}),
    "cagrad": (lambda names: TorchJD("cagrad", c=0.4), {}),
    "pcgrad": (lambda names: TorchJD("pcgrad"), RANDOM_ORDER),
    "gradvac": (lambda names: TorchJD("gradvac"), RANDOM_ORDER),
    "gls": (lambda names: balancer_by_name("gls"), COUPLED | LOGARITHM),
    "rlw": (lambda names: balancer_by_name("rlw"), RANDOM_ORDER),
    "dwa": (lambda names: balancer_by_name("dwa"), ABSENT),
    "famo": (lambda names: balancer_by_name("famo", shape=len(names)), COUPLED | ABSENT),
    "uw": (lambda names: balancer_by_name("uw", shape=len(names)), ABSENT),
    "nash-mtl": (
        lambda names: TorchJD("nash_mtl", n_tasks=len(names), optim_niter=3, update_weights_every=4),
        FIXED_TASKS,
    ),
}
AT_REPRESENTATION = {
    "finds_the_shared_parameters_itself": "it works at the representation, which it must be told",
    "takes_a_representation": "over the parameters it computes something else",
}


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("name", CONTRACTS)
def test_the_contract_is_kept(name: str) -> None:
    build, excuses = CONTRACTS[name]
    check_balancer(build, excuses=excuses)


def test_the_contract_is_kept_at_the_representation() -> None:
    check_balancer(
        lambda names: TorchJD("upgrad", at="representation"),
        told=("shared", "representation"),
        excuses=AT_REPRESENTATION,
    )


# -- the checks find what they are for: each broken balancer fails the check named beside it ---------


class Overwrites(Sum):
    def backward(self, losses, **options):
        parameters = options["shared"]
        for parameter in parameters:
            parameter.grad = None
        super().backward(losses, **options)


class KeepsGraph(Sum):
    def backward(self, losses, **options):
        self.combine(losses).backward(retain_graph=True)


class Leaks(Sum):
    def combine(self, losses):
        self.__dict__.setdefault("kept", []).append(super().combine(losses))
        return self.kept[-1]


class Favours(Sum):
    def combine(self, losses):
        return torch.stack([loss * (index + 1) for index, loss in enumerate(losses.values())]).sum()


class Climbs(Sum):
    def combine(self, losses):
        return -super().combine(losses)


class Couples(Sum):
    def combine(self, losses):
        return torch.stack(list(losses.values())).prod()


class Forgets(Balancer):
    scalarises = True

    def __init__(self):
        super().__init__()
        self.steps = 0  # a memory that no checkpoint sees

    def backward(self, losses, *, backward=torch.autograd.backward, **options):
        self.steps += 1
        backward(torch.stack(list(losses.values())).sum() / self.steps)


class Moves(Sum):
    def backward(self, losses, **options):
        super().backward(losses, **options)
        with torch.no_grad():
            options["shared"][0].add_(1e-3)


class Divides(Sum):
    def combine(self, losses):
        return torch.stack([loss / loss.detach() for loss in losses.values()]).sum()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Overwrites, "adds_to_gradients_that_are_there"),
        (KeepsGraph, "frees_the_graph"),
        (Leaks, "keeps_memory_flat"),
        (Favours, "invariant_to_task_order"),
        (Climbs, "follows_the_sum_where_tasks_agree"),
        (Climbs, "lowers_the_losses"),
        (Couples, "heads_ignore_other_tasks"),
        (Forgets, "resumes_bit_for_bit"),
        (Forgets, "its_state_fits_a_new_one"),
        (Moves, "changes_no_weight_or_buffer"),
        (Divides, "survives_gradients_of_zero"),
    ],
)
def test_a_broken_balancer_is_found(broken: type[Balancer], check: str) -> None:
    with pytest.raises(AssertionError, match=check):
        check_balancer(lambda names: broken())


def test_an_excuse_needs_a_reason_and_a_check() -> None:
    with pytest.raises(AssertionError, match="without a reason"):
        check_balancer(lambda names: Sum(), excuses={"lowers_the_losses": " "})
    with pytest.raises(AssertionError, match="there is no check 'x'"):
        check_balancer(lambda names: Sum(), excuses={"x": "because"})


# -- equations ----------------------------------------------------------------------------------------


def pair(first: list[float], second: list[float]) -> tuple[nn.Parameter, dict[str, Tensor]]:
    """A parameter and two losses with these gradients."""
    parameter = nn.Parameter(torch.zeros(len(first), dtype=torch.float64))
    rows = torch.tensor([first, second], dtype=torch.float64)
    return parameter, {"a": rows[0] @ parameter, "b": rows[1] @ parameter}


def update(balancer: Balancer, first: list[float], second: list[float]) -> list[float]:
    parameter, losses = pair(first, second)
    balancer.backward(losses, shared=[parameter])
    assert parameter.grad is not None
    return parameter.grad.tolist()


def test_sum_and_fixed_weights_are_what_they_say() -> None:
    assert update(Sum(), [1.0, 2.0], [-3.0, 5.0]) == [-2.0, 7.0]
    assert update(FixedWeights({"a": 2.0, "b": 0.5}), [1.0, 2.0], [-3.0, 5.0]) == [0.5, 6.5]


@pytest.mark.parametrize(
    ("first", "second"), [([1.0, 0.0], [0.0, 2.0]), ([3.0, 1.0], [-1.0, 2.0]), ([1.0, 0.0], [4.0, 0.5])]
)
def test_mgda_finds_the_shortest_convex_combination_of_two_gradients(first, second) -> None:
    # closed form for two tasks: weight of the first = clip(((b - a) . b) / |a - b|^2, 0, 1)
    a, b = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    weight = (((b - a) @ b) / ((a - b) @ (a - b))).clamp(0, 1)
    expected = weight * a + (1 - weight) * b
    found = update(TorchJD("mgda", epsilon=1e-9, max_iters=2000), first, second)
    assert found == pytest.approx(expected.tolist(), abs=2e-3)


def test_pcgrad_projects_conflicting_gradients_on_each_others_normal_plane() -> None:
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([-1.0, 1.0]).double()
    expected = (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)
    assert update(TorchJD("pcgrad"), a.tolist(), b.tolist()) == pytest.approx(expected.tolist())
    assert update(TorchJD("pcgrad"), [1.0, 0.5], [0.5, 1.0]) == pytest.approx([1.5, 1.5])


def test_upgrad_conflicts_with_no_task_and_is_the_mean_without_conflict() -> None:
    conflicting = update(TorchJD("upgrad"), [1.0, 0.2], [-1.0, 0.3])
    assert conflicting[0] * 1.0 + conflicting[1] * 0.2 >= -1e-4
    assert -conflicting[0] + conflicting[1] * 0.3 >= -1e-4
    assert update(TorchJD("upgrad"), [1.0, 0.5], [0.5, 1.0]) == pytest.approx([0.75, 0.75], abs=1e-3)


def test_uncertainty_learns_the_variance_that_its_equation_implies() -> None:
    # at the optimum of exp(-s) L / 2 + s / 2 the variance exp(s) is L; of exp(-s) L + s / 2 it is 2 L
    balancer = HomoscedasticUncertainty(["a", "b"], {"b": "classification"}, initial=0.5).double()
    values = {"a": 0.3, "b": 1.7}
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        balancer.backward(
            {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) * 1 for k, v in values.items()}
        )
        optimizer.step()
    assert balancer.log_variance.exp().tolist() == pytest.approx([0.3, 3.4], rel=1e-3)
    total = balancer.combine({k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()})
    assert float(total.detach()) == pytest.approx(
        0.5 * (1 + math.log(0.3)) + 0.5 * (1 + math.log(3.4)), rel=1e-4
    )


def test_aggregating_at_the_representation_equals_over_parameters_for_a_linear_network() -> None:
    # with an identity network in front, gradients at the representation are those of the parameter
    for name in ("mgda", "upgrad", "imtlg"):
        parameter, _ = pair([1.0, 2.0], [0.0, 0.0])
        feature = parameter * 1.0
        losses = {
            "a": (feature * torch.tensor([3.0, 1.0])).sum(),
            "b": (feature * torch.tensor([-1.0, 2.0])).sum(),
        }
        TorchJD(name, at="representation").backward(losses, representation=feature)
        expected = update(TorchJD(name), [3.0, 1.0], [-1.0, 2.0])
        assert parameter.grad is not None
        assert parameter.grad.tolist() == pytest.approx(expected, abs=1e-9)


def test_the_geometric_mean_and_dwa_follow_their_equations() -> None:
    x = torch.tensor([0.5, 8.0], dtype=torch.float64, requires_grad=True)
    losses = {"a": x[0] * 1, "b": x[1] * 1}
    assert float(balancer_by_name("gls").combine(losses).detach()) == pytest.approx(
        2.0
    )  # (0.5 * 8) ** (1 / 2)
    dwa = balancer_by_name("dwa", temperature=2.0)
    for epoch in ([1.0, 4.0], [0.5, 4.0]):
        dwa.combine({"a": torch.tensor(epoch[0]), "b": torch.tensor(epoch[1])})
        dwa.after_epoch()
    shares = [math.exp(0.5 / 2), math.exp(1.0 / 2)]  # the rates of descent are 1/2 and 1
    expected = 2 * (shares[0] * 3.0 + shares[1] * 1.0) / sum(shares)
    assert float(dwa.combine({"a": torch.tensor(3.0), "b": torch.tensor(1.0)})) == pytest.approx(expected)


def test_famo_moves_weight_to_the_task_that_falls_more_slowly() -> None:
    famo = balancer_by_name("famo", shape=2, weight_decay=0.0)
    for _ in range(20):
        famo.combine({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
        famo.after_step(lambda: {"a": torch.tensor(0.5), "b": torch.tensor(0.99)})
    slow = torch.tensor(1.0, requires_grad=True)
    fast = torch.tensor(1.0, requires_grad=True)
    famo.backward({"a": fast * 1, "b": slow * 1})
    assert slow.grad > 1.5 * fast.grad


# -- names and arguments ------------------------------------------------------------------------------


def test_every_listed_name_builds_its_balancer() -> None:
    needs = {
        "fixed": {"weights": {"a": 1.0}},
        "uncertainty": {"tasks": ["a"]},
        "cagrad": {"c": 0.4},
        "constant": {"weights": torch.ones(2)},
        "fairgrad": {"alpha": 1.0},
        "krum": {"n_byzantine": 1},
        "nashmtl": {"n_tasks": 2},
        "trimmedmean": {"trim_number": 1},
        "famo": {"shape": 2},
        "uw": {"shape": 2},
        "imtll": {"shape": 2},
        "stch": {"mu": 1.0},
        "cosmos": {"lambda_": 1.0, "weights": torch.ones(2)},
        "pbi": {"theta": 1.0, "weights": torch.ones(2)},
    }
    names = balancer_names()
    assert {"sum", "fixed", "uncertainty", "upgrad", "mgda", "pcgrad", "cagrad"} <= set(names)
    for name in names:
        assert isinstance(balancer_by_name(name, **needs.get(name, {})), Balancer)
    assert isinstance(balancer_by_name("Nash-MTL", n_tasks=2), TorchJD)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: balancer_by_name("best"),
            "balancer must be one of sum, fixed, uncertainty.*upgrad.*got 'best'",
        ),
        (lambda: balancer_by_name("sum", weights=1), "'sum' does not take"),
        (lambda: balancer_by_name("cagrad"), "CAGrad cannot be built"),
        (lambda: balancer_by_name("cagrad", c=-1.0), "CAGrad cannot be built"),
        (lambda: TorchJD("nothing"), "aggregator must be one of"),
        (lambda: TorchJDScalarizer("nothing"), "scalarizer must be one of .*'famo'.*got 'nothing'"),
        (lambda: balancer_by_name("famo"), "FAMO cannot be built"),
        (lambda: TorchJD("mgda", at="middle"), "at must be 'parameters' or 'representation', got 'middle'"),
        (lambda: FixedWeights({"a": -1.0}), r"weights\['a'\] must be finite and not negative, got -1.0"),
        (lambda: FixedWeights({"a": float("nan")}), "must be finite"),
        (lambda: HomoscedasticUncertainty([]), "tasks must be distinct names"),
        (lambda: HomoscedasticUncertainty(["a", "a"]), "tasks must be distinct names"),
        (lambda: HomoscedasticUncertainty(["a"], {"b": "regression"}), "names the task 'b'"),
        (lambda: HomoscedasticUncertainty(["a"], {"a": "ranking"}), "'regression' or 'classification'"),
    ],
)
def test_bad_arguments_are_named(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_a_task_that_a_balancer_does_not_know_is_named() -> None:
    _, losses = pair([1.0], [1.0])
    with pytest.raises(InputError, match="no entry for task 'b'"):
        FixedWeights({"a": 1.0}).backward(losses)
    with pytest.raises(InputError, match=r"built for the tasks \['a'\], got 'b'"):
        HomoscedasticUncertainty(["a"]).backward(losses)
    with pytest.raises(InputError, match="needs losses that carry their representation"):
        TorchJD("mgda", at="representation").backward(losses)


def test_losses_carry_where_they_came_from() -> None:
    parameter, losses = pair([1.0], [2.0])
    told = Losses(losses, representation=parameter, shared=iter([parameter]))
    assert dict(told) == losses
    assert told.shared == [parameter]
    assert Losses(losses).shared is None
