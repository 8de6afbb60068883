"""check_balancer: what every balancer must do, whoever wrote it.

Each check is one function that takes a `Bench`, the small problems on which balancers are tried, and is
named after what it proves.
"""

import contextlib
import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.tasks import Losses
from manyhead.testing.bench import Bench, Build, Samples, close, compare, parallel
from manyhead.testing.checks import Check, run_checks
from manyhead.training import fit


def check_balancer(
    build: Build,
    *,
    tasks: int = 3,
    told: Sequence[str] = ("shared",),
    excuses: Mapping[str, str] | None = None,
) -> list[Check]:
    """Check that a balancer keeps the contract of `manyhead.tasks.Balancer`.

    Args:
        build: makes a new balancer from the names of the tasks, the same at each call.
        tasks: how many tasks the main problem has; 3 or more.
        told: which of 'shared' and 'representation' the balancer must be told to work.
        excuses: name of a check -> why it does not apply, such as
            `{"invariant_to_task_order": "PCGrad visits the tasks in random order"}`.

    Returns:
        the outcome of every check.

    Raises:
        AssertionError: naming each check that failed and how.
    """
    if tasks < 3:
        raise InputError(f"tasks must be at least 3, got {tasks}")
    bench = Bench(build, [f"task{index}" for index in range(tasks)], told)
    checks = {check.__name__: partial(check, bench) for check in CHECKS}
    return run_checks(type(build(bench.names)).__name__, checks, excuses)


# -- every check: what it proves is its name ---------------------------------------------------------


def gives_every_reached_parameter_a_finite_gradient(bench: Bench) -> None:
    for name, gradient in bench.gradients().items():
        if name != "network.unused":
            assert gradient is not None, f"{name} has no gradient"
            assert torch.isfinite(gradient).all(), f"the gradient of {name} is not finite"


def leaves_unreached_parameters_alone(bench: Bench) -> None:
    assert bench.gradients()["network.unused"] is None, "a parameter that no loss reaches got a gradient"


def moves_the_shared_parameters(bench: Bench) -> None:
    assert bench.shared(bench.gradients()).abs().max() > 0, "the shared gradient is zero"


def adds_to_gradients_that_are_there(bench: Bench) -> None:
    plain, model = bench.gradients(), bench.model()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    added = bench.gradients(model=model)
    for name, gradient in plain.items():
        expected = torch.ones_like(added[name]) if gradient is None else gradient + 1  # type: ignore[arg-type]
        close(added[name], expected, name, 1e-12)  # type: ignore[arg-type]


def repeats_bit_for_bit(bench: Bench) -> None:
    compare(bench.gradients(), bench.gradients(), "two equal passes")


def invariant_to_task_order(bench: Bench) -> None:
    compare(
        bench.gradients(), bench.gradients(order=bench.names[::-1]), "tasks in reverse order", tolerance=1e-5
    )


def keeps_direction_when_all_losses_scale(bench: Bench) -> None:
    plain = bench.shared(bench.gradients())
    for factor in (0.1, 10.0):
        scaled = bench.shared(bench.gradients(scale=dict.fromkeys(bench.names, factor)))
        parallel(scaled, plain, f"all losses times {factor}")


def follows_the_sum_where_tasks_agree(bench: Bench) -> None:
    model = bench.model(alike=True)
    agreed = bench.gradients(model=model, batch=bench.batch(alike=True))
    single = bench.model(alike=True)
    bench.losses(single, bench.batch(alike=True))[bench.names[0]].backward()
    reference = {name: parameter.grad for name, parameter in single.named_parameters()}
    parallel(bench.shared(agreed), bench.shared(reference), "tasks with one gradient")


def gives_heads_their_own_gradient(bench: Bench) -> None:
    gradients = bench.gradients()
    for task in bench.names:
        own = bench.of_task(task)
        for name, gradient in gradients.items():
            if name.startswith(f"tasks.{task}."):
                parallel(gradient, own[name], name)  # type: ignore[arg-type]


def heads_ignore_other_tasks(bench: Bench) -> None:
    plain = bench.gradients()
    first, *others = bench.names
    scaled = bench.gradients(scale=dict.fromkeys(others, 3.0))
    for name, gradient in plain.items():
        if name.startswith(f"tasks.{first}."):
            close(scaled[name], gradient, name)  # type: ignore[arg-type]


def a_single_task_keeps_its_direction(bench: Bench) -> None:
    name = bench.names[0]
    alone = Bench(bench.build, [name], bench.told)
    found = alone.gradients(balancer=alone.balancer())
    reference = alone.of_task(name)
    parallel(alone.shared(found), alone.shared(reference), "a single task")


def two_tasks_work(bench: Bench) -> None:
    pair = Bench(bench.build, bench.names[:2], bench.told)
    assert torch.isfinite(pair.shared(pair.gradients())).all()


def many_tasks_work(bench: Bench) -> None:
    crowd = Bench(bench.build, [f"task{index}" for index in range(12)], bench.told)
    assert torch.isfinite(crowd.shared(crowd.gradients())).all()


def a_task_may_be_absent_from_a_batch(bench: Bench) -> None:
    balancer = bench.balancer()
    bench.gradients(balancer=balancer)
    found = bench.gradients(balancer=balancer, order=bench.names[:-1])
    absent = [name for name in found if name.startswith(f"tasks.{bench.names[-1]}.")]
    assert all(found[name] is None for name in absent), "the absent task's head got a gradient"
    assert torch.isfinite(bench.shared(found)).all()
    bench.gradients(balancer=balancer)


def finds_the_shared_parameters_itself(bench: Bench) -> None:
    compare(bench.gradients(told=()), bench.gradients(told=("shared",)), "shared left out", tolerance=1e-6)


def takes_a_representation(bench: Bench) -> None:
    told = bench.gradients(told=("shared", "representation"))
    compare(told, bench.gradients(told=("shared",)), "with the representation", tolerance=1e-6)


def survives_gradients_of_zero(bench: Bench) -> None:
    for names in (bench.names[:1], bench.names):
        found = bench.gradients(scale=dict.fromkeys(names, 0.0))
        for name, gradient in found.items():
            assert gradient is None or torch.isfinite(gradient).all(), f"{name}: {len(names)} zero gradients"


def survives_extreme_scales(bench: Bench) -> None:
    for factor in (1e-9, 1e9):
        found = bench.gradients(scale={bench.names[0]: factor})
        for name, gradient in found.items():
            assert gradient is None or torch.isfinite(gradient).all(), f"{name}: one loss times {factor}"


def works_in_float32(bench: Bench) -> None:
    model = bench.model(dtype=torch.float32)
    balancer = bench.build(bench.names)
    found = bench.gradients(model=model, batch=bench.batch(dtype=torch.float32), balancer=balancer)
    assert all(g is None or g.dtype == torch.float32 for g in found.values()), "gradients changed their type"
    close(bench.shared(found).double(), bench.shared(bench.gradients()), "float32", 1e-3)


def changes_no_weight_or_buffer(bench: Bench) -> None:
    model = bench.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bench.gradients(model=model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed by backward()"


def leaves_requires_grad_and_mode_alone(bench: Bench) -> None:
    model = bench.model()
    bench.gradients(model=model)
    assert all(parameter.requires_grad for parameter in model.parameters()), "requires_grad was switched off"
    assert all(module.training for module in model.modules()), "a module was left in evaluation mode"


def leaves_no_jacobian_behind(bench: Bench) -> None:
    model = bench.model()
    bench.gradients(model=model)
    kept = [name for name, p in model.named_parameters() if getattr(p, "jac", None) is not None]
    assert not kept, f"a Jacobian was left on {kept}"


def frees_the_graph(bench: Bench) -> None:
    model, balancer = bench.model(), bench.balancer()
    losses = bench.losses(model, bench.batch())
    known = {name: getattr(losses, name) for name in bench.told}
    balancer.backward(losses, recompute=lambda: bench.losses(model, bench.batch()), **known)
    for name, loss in losses.items():
        try:
            loss.backward()
        except RuntimeError:
            continue
        raise AssertionError(f"the graph of {name!r} is still there after backward()")


def keeps_memory_flat(bench: Bench) -> None:
    model, balancer = bench.model(), bench.balancer()

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    gc.freeze()  # look only at what is made from here on
    try:
        for _ in range(3):
            bench.gradients(model=model, balancer=balancer)
        before = alive()
        for _ in range(10):
            bench.gradients(model=model, balancer=balancer)
        grown = alive() - before
    finally:
        gc.unfreeze()
    assert grown <= 2, f"{grown} tensors more are alive after ten steps"


def refuses_losses_that_it_cannot_use(bench: Bench) -> None:
    name = bench.names[0]
    bad: dict[str, dict[str, Tensor]] = {
        "no loss": {},
        "a vector": {name: torch.ones(2, requires_grad=True) * 2},
        "a loss without a graph": {name: torch.tensor(1.0)},
    }
    for what, losses in bad.items():
        try:
            bench.balancer().backward(losses)
        except InputError:
            continue
        raise AssertionError(f"{what} was accepted, an InputError was due")


def its_state_fits_a_new_one(bench: Bench) -> None:
    used = bench.balancer()
    for _ in range(2):
        bench.gradients(balancer=used)
    fresh = bench.balancer()
    fresh.load_state_dict(used.state_dict())
    compare(
        bench.gradients(balancer=fresh),
        bench.gradients(balancer=used),
        "restored from its state, the next pass",
    )


def its_parameters_are_trained(bench: Bench) -> None:
    balancer = bench.balancer()
    learned = {name: p for name, p in balancer.named_parameters() if p.requires_grad}
    bench.gradients(balancer=balancer)
    missing = [name for name, parameter in learned.items() if parameter.grad is None]
    assert not missing, f"its parameters {missing} got no gradient"
    lost = [name for name in learned if name not in balancer.state_dict()]
    assert not lost, f"its parameters {lost} are not in its state"


def lowers_the_losses(bench: Bench) -> None:
    model, batch = bench.model(dtype=torch.float32), bench.batch(dtype=torch.float32)
    before = float(sum(value.item() for value in model.losses(batch).values()))
    fit(
        model,
        Samples(batch),
        losses=lambda model, batch: model.losses(batch),
        batch_size=8,
        epochs=60,
        balancer=bench.build(bench.names),
        optimizer=partial(torch.optim.Adam, lr=3e-2),
    )
    after = float(sum(value.item() for value in model.losses(batch).values()))
    assert after < 0.9 * before, f"60 steps changed the sum of the losses from {before:.4f} to {after:.4f}"


def resumes_bit_for_bit(bench: Bench) -> None:
    batch = bench.batch(dtype=torch.float32)

    def train(folder: Path, stop: int | None, resume: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        model, balancer, calls = bench.model(dtype=torch.float32), bench.build(bench.names), [0]

        def losses(model: Any, batch: Any) -> Losses:
            found: Losses = model.losses(batch)
            return found

        def validate(model: Any) -> dict[str, float]:
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            return {}

        fit(
            model,
            Samples(batch),
            losses=losses,
            batch_size=2,
            epochs=5,
            validate=validate,
            balancer=balancer,
            folder=folder,
            resume=resume,
            checkpoint_every=3,
            logs=(),
        )
        return {**model.state_dict(), **{f"balancer.{k}": v for k, v in balancer.state_dict().items()}}

    with tempfile.TemporaryDirectory() as base:
        whole = train(Path(base) / "whole", None, False)
        with contextlib.suppress(KeyboardInterrupt):
            train(Path(base) / "cut", 3, False)
        resumed = train(Path(base) / "cut", None, True)
    for name, tensor in whole.items():
        if isinstance(tensor, Tensor):
            assert torch.equal(resumed[name], tensor), f"{name} differs after an interruption"


CHECKS: tuple[Callable[[Bench], None], ...] = (
    gives_every_reached_parameter_a_finite_gradient,
    leaves_unreached_parameters_alone,
    moves_the_shared_parameters,
    adds_to_gradients_that_are_there,
    repeats_bit_for_bit,
    invariant_to_task_order,
    keeps_direction_when_all_losses_scale,
    follows_the_sum_where_tasks_agree,
    gives_heads_their_own_gradient,
    heads_ignore_other_tasks,
    a_single_task_keeps_its_direction,
    two_tasks_work,
    many_tasks_work,
    a_task_may_be_absent_from_a_batch,
    finds_the_shared_parameters_itself,
    takes_a_representation,
    survives_gradients_of_zero,
    survives_extreme_scales,
    works_in_float32,
    changes_no_weight_or_buffer,
    leaves_requires_grad_and_mode_alone,
    leaves_no_jacobian_behind,
    frees_the_graph,
    keeps_memory_flat,
    refuses_losses_that_it_cannot_use,
    its_state_fits_a_new_one,
    its_parameters_are_trained,
    lowers_the_losses,
    resumes_bit_for_bit,
)
