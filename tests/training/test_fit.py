"""The loop: what it computes equals a plain loop, and an interrupted run equals an undisturbed one."""

import csv
import itertools
import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from manyhead.errors import InputError
from manyhead.tasks import (
    HomoscedasticUncertainty,
    LinearHead,
    LogSum,
    Losses,
    MultiTask,
    RepMTL,
    Sum,
    Task,
    TorchJD,
)
from manyhead.training import (
    CheckpointError,
    NonFiniteLoss,
    each_epoch,
    each_step,
    fit,
    load_state,
    plateau,
    seed_everything,
    sequential,
    warmup_cosine,
)
from manyhead.training.checkpoint import CHECKPOINT


class Points:
    """Fifty points with a number and a class to predict."""

    def __init__(self, samples: int = 50) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, 6, generator=generator)
        self.number = self.x[:, 0].sin()
        self.kind = (self.x[:, 1] > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices):
        return {
            "inputs": self.x[indices],
            "targets": {"number": self.number[indices], "kind": self.kind[indices]},
        }


class Single:
    """The same points one by one, to be collated."""

    def __init__(self) -> None:
        self.points = Points()

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int):
        points = self.points
        return {
            "inputs": points.x[index],
            "targets": {"number": points.number[index], "kind": points.kind[index]},
        }


def network(dropout: float = 0.2) -> MultiTask:
    seed_everything(1)
    body = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout))
    return MultiTask(
        body,
        [
            Task("number", LinearHead(12), nn.functional.mse_loss),
            Task("kind", LinearHead(12, 2), nn.functional.cross_entropy),
        ],
    )


def losses(model: MultiTask, batch) -> Losses:
    return model.losses(batch)


def evaluate(model: MultiTask) -> dict[str, float]:
    points = Points()
    return model.evaluate([points.batch(torch.arange(len(points)))])


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if hasattr(tensor, "clone")}


def timeless(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


run = partial(fit, losses=losses, batch_size=8, epochs=3, seed=3)


# -- the loop computes what a plain loop computes -----------------------------------------------------


def test_it_equals_a_plain_loop_bit_for_bit() -> None:
    data, model = Points(), network(dropout=0.0)
    fitted = run(model, data, order=sequential, optimizer=partial(torch.optim.SGD, lr=0.1), clip_norm=0.3)
    plain = network(dropout=0.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        for indices in torch.arange(50).split(8):
            optimizer.zero_grad()
            found = plain.losses(data.batch(indices))
            (found["number"] + found["kind"]).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
            optimizer.step()
    for name, tensor in weights(plain).items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert fitted.steps == 21
    assert [row["step"] for row in fitted.history] == [7, 14, 21]


def test_a_run_repeats_bit_for_bit_and_gives_the_callers_generators_back() -> None:
    ends = []
    for before in (1, 2):
        torch.manual_seed(before)
        model = network()
        seed_everything(before)
        state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        run(model, Points())
        assert torch.equal(torch.get_rng_state(), state[0])
        assert random.getstate() == state[1]
        assert np.random.get_state()[1].tolist() == state[2]  # noqa: NPY002
        ends.append(weights(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    other = network()
    run(other, Points(), seed=4)
    assert not torch.equal(weights(other)["network.0.weight"], ends[0]["network.0.weight"])


def test_batches_built_at_once_equal_collated_samples() -> None:
    fast, slow = network(), network()
    run(fast, Points())
    run(slow, Single())
    assert all(torch.equal(a, b) for a, b in zip(weights(fast).values(), weights(slow).values(), strict=True))


def test_accumulated_batches_equal_one_large_batch() -> None:
    def plain(dropout=0.0):
        torch.manual_seed(0)
        return nn.Linear(6, 1).double()

    def square(model, batch):
        return {"number": ((model(batch["inputs"].double())[:, 0] - batch["targets"]["number"]) ** 2).mean()}

    large, small = plain(), plain()
    options = {"losses": square, "epochs": 2, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    one = fit(large, Points(48), batch_size=12, **options)
    many = fit(small, Points(48), batch_size=4, accumulate=3, **options)
    assert one.steps == many.steps == 8
    torch.testing.assert_close(small.weight, large.weight, rtol=1e-10, atol=1e-12)
    assert one.history[-1]["train/number"] == pytest.approx(many.history[-1]["train/number"], rel=1e-10)


@pytest.mark.parametrize(
    "build", [Sum, LogSum, partial(RepMTL, tau=1.0), partial(HomoscedasticUncertainty, ["number", "kind"])]
)
def test_accumulated_batches_are_averaged_whatever_the_balancer_makes_of_losses(build) -> None:
    # the gradient of a logarithm does not shrink with the loss, nor does that of a log-variance
    def gradient(batches: list[range], model: MultiTask, balancer) -> dict[str, torch.Tensor]:
        for rows in batches:
            losses = model.losses(Points().batch(torch.tensor(rows)))
            balancer.backward(losses, representation=losses.representation)
        found = {**dict(model.named_parameters()), **dict(balancer.named_parameters())}
        return {name: parameter.grad / len(batches) for name, parameter in found.items()}

    before, balancer = network(dropout=0.0).eval(), build()
    expected = gradient([range(4), range(4, 8)], before, balancer)
    start = {name: value.clone() for name, value in before.named_parameters()} | {
        name: value.detach().clone() for name, value in balancer.named_parameters()
    }

    class Still(nn.Module):  # normalisation keeps its statistics, as above
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(dropout=0.0)

        def train(self, mode: bool = True):
            return super().train(False)

    after, trained = Still(), build()
    fit(
        after,
        Points(8),
        losses=lambda model, batch: model.inner.losses(batch),
        batch_size=4,
        accumulate=2,
        epochs=1,
        order=sequential,
        balancer=trained,
        optimizer=partial(torch.optim.SGD, lr=1.0),
    )
    ends = dict(after.inner.named_parameters()) | dict(trained.named_parameters())
    for name, gradient_ in expected.items():
        torch.testing.assert_close(start[name] - ends[name], gradient_, rtol=1e-4, atol=1e-6)


def test_training_losses_are_means_over_samples() -> None:
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

    def index(model, batch):
        return {"a": batch.double().mean() + 0 * model.w}

    class Numbers:
        def __len__(self):
            return 11

        def batch(self, indices):
            return indices

    fitted = fit(Still(), Numbers(), losses=index, batch_size=4, epochs=1)
    assert fitted.history[0]["train/a"] == pytest.approx(5.0)
    dropped = fit(Still(), Numbers(), losses=index, batch_size=4, epochs=1, drop_last=True, order=sequential)
    assert dropped.history[0]["train/a"] == pytest.approx(3.5)
    assert dropped.steps == 2


def test_a_batch_without_any_label_changes_nothing() -> None:
    data, model = Points(16), network()
    before = weights(model)
    data.number[:] = float("nan")
    data.kind[:] = -100
    fitted = run(model, data)
    assert torch.equal(model.tasks["number"].head.weight, before["tasks.number.head.weight"])
    assert "train/number" not in fitted.history[0]


# -- choice of the epoch, schedules --------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_the_best_epoch_is_chosen_and_its_weights_are_given_back(mode, best) -> None:
    values, seen = iter([3.0, 1.0, float("nan"), 5.0, 1.0]), []

    def validate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(weights(model))
        return {"score": next(values)}

    model = network()
    fitted = run(model, Points(), epochs=5, validate=validate, monitor="score", mode=mode)
    assert (fitted.best_epoch, fitted.best_value) == (best, {"min": 1.0, "max": 5.0}[mode])
    assert all(torch.equal(value, seen[best - 1][name]) for name, value in weights(model).items())
    assert model.training


def test_patience_stops_a_run_that_no_longer_improves() -> None:
    values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    options = {"epochs": 5, "validate": lambda m: {"x": next(values)}, "monitor": "x", "patience": 2}
    fitted = run(network(), Points(), **options)
    assert (fitted.stopped, len(fitted.history), fitted.best_epoch) == ("patience", 4, 2)


def test_the_last_weights_stay_without_monitor() -> None:
    seen = []
    model = network()
    fitted = run(model, Points(), validate=lambda m: seen.append(weights(m)) or {"x": -len(seen)})
    assert fitted.best_epoch is None
    assert fitted.best_value is None
    assert all(torch.equal(value, seen[-1][name]) for name, value in weights(model).items())


def test_schedules_step_when_they_should() -> None:
    def rates(schedule, **options):
        optimizer = partial(torch.optim.SGD, lr=0.01)
        fitted = run(network(), Points(), epochs=4, optimizer=optimizer, schedule=schedule, **options)
        return [100 * row["lr"] for row in fitted.history]

    assert rates(lambda o: StepLR(o, 2, 0.1)) == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert rates(each_epoch(lambda o: StepLR(o, 1, 0.5))) == pytest.approx([1.0, 0.5, 0.25, 0.125])
    assert rates(each_step(lambda o: StepLR(o, 7, 0.5))) == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    cosine = rates(warmup_cosine(0))
    expected = [0.5 * (1 + np.cos(np.pi * step / 28)) for step in (7, 14, 21, 28)]
    assert cosine == pytest.approx(expected, abs=1e-12)
    flat = {"validate": lambda m: {"x": 1.0}, "monitor": "x"}
    assert rates(plateau(0.1, patience=1), **flat) == pytest.approx([1.0, 1.0, 1.0, 0.1])


def test_warmup_rises_linearly_to_the_peak() -> None:
    seen = []

    def watch(model, batch):
        seen.append(optimizer.param_groups[0]["lr"])
        return model.losses(batch)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    fit(
        model,
        Points(),
        losses=watch,
        batch_size=5,
        epochs=1,
        optimizer=optimizer,
        schedule=warmup_cosine(4, 0.1),
    )
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert seen[4] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(seen[4:]))


def test_the_balancers_parameters_are_trained_without_weight_decay() -> None:
    balancer = HomoscedasticUncertainty(["number", "kind"], initial=1.0)
    kept = []

    def optimizer(groups):
        kept.append(torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.5))
        return kept[-1]

    run(network(), Points(), balancer=balancer, optimizer=optimizer)
    assert [group["weight_decay"] for group in kept[0].param_groups] == [0.5, 0.0]
    assert (balancer.log_variance != 1.0).all()


def test_bfloat16_autocast_trains_on_cpu_close_to_float32() -> None:
    full, mixed = network(0.0), network(0.0)
    first = run(full, Points(), validate=evaluate)
    seen = []

    def watch(model, batch):
        seen.append(model.network[0](batch["inputs"]).dtype)
        return model.losses(batch)

    second = fit(
        mixed,
        Points(),
        losses=watch,
        batch_size=8,
        epochs=3,
        seed=3,
        validate=evaluate,
        precision="bf16-mixed",
    )
    assert set(seen) == {torch.bfloat16}
    assert mixed.network[0].weight.dtype == torch.float32
    assert second.history[-1]["number/loss"] == pytest.approx(first.history[-1]["number/loss"], rel=0.1)


def test_double_precision_converts_the_model() -> None:
    model = nn.Linear(6, 1)
    square = lambda m, b: {"a": (m(b["inputs"].double()) ** 2).mean()}  # noqa: E731
    fit(model, Points(), losses=square, batch_size=8, epochs=1, precision="64-true")
    assert model.weight.dtype == torch.float64


# -- interruption --------------------------------------------------------------------------------------

BALANCERS = {
    "sum": Sum,
    "uncertainty": lambda: HomoscedasticUncertainty(["number", "kind"]),
    "gradvac": lambda: TorchJD("gradvac"),  # it remembers, and draws random orders
}


def interrupted(folder: Path, stop: int | None, resume: bool, balancer: str, **options):
    """A run that stops at the given call of the loss function."""
    model, built, calls = network(), BALANCERS[balancer](), [0]

    def watch(model, batch):
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        noise = random.random() + np.random.rand()  # noqa: NPY002 generators with a state of their own
        return model.losses(batch | {"inputs": batch["inputs"] + 0.01 * noise})

    fitted = fit(
        model,
        Points(),
        losses=watch,
        batch_size=8,
        epochs=3,
        validate=evaluate,
        monitor="number/loss",
        balancer=built,
        folder=folder,
        resume=resume,
        checkpoint_every=2,
        **options,
    )
    checkpoint = load_state(folder / CHECKPOINT)
    return (
        fitted,
        weights(model),
        checkpoint["optimizer"],
        built.state_dict(),
        (folder / "metrics.csv").read_text(),
    )


def equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(tmp_path: Path, balancer: str) -> None:
    options = {"schedule": warmup_cosine(3), "accumulate": 2, "logs": ("csv",)}
    whole = interrupted(tmp_path / "whole", None, False, balancer, **options)
    for stop in (1, 4, 7, 8, 13, 20):
        folder = tmp_path / f"stop{stop}"
        with pytest.raises(KeyboardInterrupt):
            interrupted(folder, stop, False, balancer, **options)
        again = interrupted(folder, None, True, balancer, **options)
        assert timeless(again[0].history) == timeless(whole[0].history)
        assert again[0].best_epoch == whole[0].best_epoch
        for name, first, second in zip(
            ("weights", "optimizer", "balancer"), whole[1:4], again[1:4], strict=True
        ):
            assert equal(first, second), f"{name} differ after a stop at batch {stop}"
        rows = [list(csv.DictReader(text.splitlines())) for text in (whole[4], again[4])]
        assert timeless(rows[0]) == timeless(rows[1]), "the table has other rows"


def test_a_finished_run_resumes_at_once_and_may_be_prolonged(tmp_path: Path) -> None:
    model = network()
    first = run(model, Points(), validate=evaluate, monitor="number/loss", folder=tmp_path / "a")
    fresh = network()
    with torch.no_grad():
        fresh.network[0].weight.zero_()
    again = run(fresh, Points(), validate=evaluate, monitor="number/loss", folder=tmp_path / "a", resume=True)
    assert again.history == first.history
    assert all(
        torch.equal(a, b) for a, b in zip(weights(model).values(), weights(fresh).values(), strict=True)
    )
    longer, straight = network(), network()
    options = {"validate": evaluate, "monitor": "number/loss", "epochs": 5}
    fit_longer = run(longer, Points(), folder=tmp_path / "a", resume=True, **options)
    fit_straight = run(straight, Points(), folder=tmp_path / "b", **options)
    assert timeless(fit_longer.history) == timeless(fit_straight.history)
    assert all(
        torch.equal(a, b) for a, b in zip(weights(longer).values(), weights(straight).values(), strict=True)
    )


def test_tensorboard_curves_hold_every_epoch_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, 17, False, "sum")
    interrupted(tmp_path, None, True, "sum")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("number/loss")] == [7, 14, 21]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 9}, "was made with batch_size=8, it cannot go on with 9"),
        ({"seed": 5}, "was made with seed=3, it cannot go on with 5"),
        ({"accumulate": 2}, "accumulate=1"),
        ({"balancer": TorchJD("mgda")}, "was made with balancer='Sum', it cannot go on with 'TorchJD'"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, "optimizer='AdamW'"),
        ({"schedule": warmup_cosine(2)}, "was made without a scheduler"),
        ({"resume": False}, "already holds a run: pass resume=True"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(tmp_path: Path, change, message) -> None:
    run(network(), Points(), epochs=1, folder=tmp_path)
    with pytest.raises(InputError, match=message):
        run(network(), Points(), **{"epochs": 2, "folder": tmp_path, "resume": True, **change})


def test_another_model_or_data_set_is_refused(tmp_path: Path) -> None:
    run(network(), Points(), epochs=1, folder=tmp_path)
    with pytest.raises(InputError, match="samples=50, it cannot go on with 49"):
        run(network(), Points(49), folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="the model does not fit"):
        fit(
            nn.Linear(6, 1),
            Points(),
            losses=lambda m, b: {},
            batch_size=8,
            epochs=2,
            seed=3,
            folder=tmp_path,
            resume=True,
        )


# -- what goes wrong -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_task_and_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    calls = [0]

    def bad(model, batch):
        found = model.losses(batch)
        calls[0] += 1
        if calls[0] == 10:
            found["kind"] = found["kind"] * float("nan")
        return found

    with pytest.raises(
        NonFiniteLoss, match=r"task 'kind' is nan in epoch 2, step 10; the last checkpoint in .* stays"
    ):
        fit(network(), Points(), losses=bad, batch_size=8, epochs=3, folder=tmp_path)
    assert load_state(tmp_path / CHECKPOINT)["position"]["step"] == 7


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

    # the root of zero is finite, its gradient is not
    with pytest.raises(NonFiniteLoss, match="the weight 'w' is not finite after step 1"):
        fit(
            Root(),
            Points(8),
            losses=lambda m, b: {"a": m.w.abs().sqrt().sum()},
            batch_size=8,
            epochs=1,
            folder=tmp_path,
        )
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_save_that_fails_is_an_error_and_the_checkpoint_before_it_stays(
    tmp_path: Path, monkeypatch
) -> None:
    run(network(), Points(), epochs=1, folder=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def refuse(*arguments):
        raise PermissionError(1, "rename refused")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        with pytest.raises(CheckpointError, match=r"could not be written .*rename refused"):
            run(network(), Points(), epochs=2, folder=tmp_path, resume=True, logs=())
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert run(network(), Points(), epochs=2, folder=tmp_path, resume=True).steps == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"epochs": -1}, "epochs must not be negative, got -1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"clip_norm": 0.0}, "clip_norm must be positive or None, got 0.0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be positive"),
        ({"patience": 2}, "patience needs monitor"),
        ({"mode": "best"}, "mode must be 'min' or 'max', got 'best'"),
        ({"monitor": "nothing", "epochs": 1}, r"monitor must be one of \[.*train/kind.*\], got 'nothing'"),
        ({"logs": ("excel",)}, "logs must be among .*, got 'excel'"),
        ({"precision": "12-true"}, "accelerator, devices, strategy or precision"),
        ({"accelerator": "abacus"}, "accelerator, devices, strategy or precision"),
        (
            {"strategy": "fsdp"},
            "accelerator, devices, strategy or precision|strategy must keep whole copies",
        ),
        ({"schedule": plateau()}, "a plateau schedule needs monitor"),
        (
            {"schedule": plateau(), "monitor": "train/kind", "mode": "max"},
            "mode of the plateau schedule is 'min'",
        ),
        ({"optimizer": lambda groups: 1}, "optimizer must return a torch Optimizer, got int"),
        ({"resume": True}, "resume=True needs the folder"),
        (
            {"precision": "16-mixed", "balancer": TorchJD("mgda")},
            "scales the loss, which TorchJD does not allow",
        ),
    ],
)
def test_bad_arguments_are_named(change, message) -> None:
    with pytest.raises(InputError, match=message):
        run(network(), Points(), **change)


def test_data_and_models_that_cannot_be_trained_are_named() -> None:
    with pytest.raises(InputError, match="train must have a length"):
        run(network(), 5)
    with pytest.raises(InputError, match="at least one sample"):
        run(network(), [])
    with pytest.raises(InputError, match="no trainable parameter"):
        run(nn.Tanh(), Points())


def test_progress_shows_bars_in_a_terminal_and_nothing_else(capsys, monkeypatch) -> None:
    run(network(), Points(), epochs=1)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then writes as to a terminal
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    run(network(), Points(), epochs=2, progress=True)
    shown = capsys.readouterr().out
    assert "epochs" in shown
    assert "2/2" in shown or "1/2" in shown
    assert "number" in shown
    assert "kind" in shown


# -- several processes ---------------------------------------------------------------------------------


class Notes:
    """Twenty-one samples; who read which is noted in a file for each process."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(21, 4, generator=generator, dtype=torch.float64)
        self.folder = folder

    def __len__(self) -> int:
        return 21

    def batch(self, indices):
        with open(self.folder / f"seen-{os.getpid()}.txt", "a", encoding="utf-8") as file:
            file.write("".join(f"{index}\n" for index in indices.tolist()))
        return self.x[indices]


def two_targets(model, x):
    out = model(x)
    return {"a": ((out[:, 0] - x[:, 0].sin()) ** 2).mean(), "b": ((out[:, 1] + x[:, 1]) ** 2).mean()}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 2)).double()


def share(folder: Path, devices: int, balancer=None, epochs: int = 3, dropout: float = 0.0, **options):
    folder.mkdir(exist_ok=True)
    model = small()
    model[2].p = dropout
    fitted = fit(
        model,
        Notes(folder),
        losses=two_targets,
        batch_size=8,
        epochs=epochs,
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        folder=folder / "run",
        logs=("csv",),
        balancer=balancer,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        validate=weight_sum,
        monitor="train/a",
        **options,
    )
    return model, fitted


def weight_sum(model) -> dict[str, float]:
    return {"sum": float(model[0].weight.sum())}


def test_two_processes_train_what_one_does_and_share_the_samples(tmp_path: Path) -> None:
    one, alone = share(tmp_path / "one", 1)
    two, shared = share(tmp_path / "two", 2)
    seen = [path.read_text().split() for path in (tmp_path / "two").glob("seen-*.txt")]
    assert len(seen) == 2
    assert sorted(map(int, seen[0] + seen[1])) == sorted(list(range(21)) * 3)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)
    assert shared.steps == alone.steps == 9
    for row, other in zip(alone.history, shared.history, strict=True):
        assert other["train/a"] == pytest.approx(row["train/a"], rel=1e-9)


def test_any_balancer_works_in_two_processes_and_resumes_there(tmp_path: Path) -> None:
    whole, straight = share(tmp_path / "whole", 2, TorchJD("upgrad"), dropout=0.3)
    share(tmp_path / "cut", 2, TorchJD("upgrad"), epochs=2, dropout=0.3)
    again, resumed = share(tmp_path / "cut", 2, TorchJD("upgrad"), resume=True, dropout=0.3)
    assert timeless(resumed.history) == timeless(straight.history)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in weights(whole).items()), (
        "every process' generators must come back"
    )
    with pytest.raises(InputError, match="processes=2, it cannot go on with 1"):
        share(tmp_path / "cut", 1, TorchJD("upgrad"), resume=True, dropout=0.3)


SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from manyhead.training import fit

class Points:
    def __len__(self):
        return 16
    def batch(self, indices):
        return indices[:, None].float() / 16

model = nn.Linear(1, 1)
nn.init.zeros_(model.weight)
fitted = fit(model, Points(), losses=lambda m, x: {"a": ((m(x) - x) ** 2).mean()}, batch_size=8, epochs=2,
             devices=2, strategy="ddp", folder=sys.argv[1], logs=("csv",))
rank = os.environ.get("LOCAL_RANK", "0")
Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps([model.weight.item(), fitted.steps]))
"""


def test_a_script_is_started_again_for_each_further_device(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("rank*.json")]
    assert len(told) == 2
    assert told[0] == told[1]
    assert told[0][1] == 4
