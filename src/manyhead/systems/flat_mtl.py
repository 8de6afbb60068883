"""Flat regions on two digits: with and without the sharpness-aware part, on two aggregators.

Phan et al., 'Improving Multi-task Learning via Seeking Task-based Flat Regions', 2022, arXiv 2211.13723.
The balancer is `manyhead.tasks.FlatRegions`; here it is measured.
"""

import time
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from manyhead.system import Measurement, System
from manyhead.tasks import Balancer, FlatRegions, LinearHead, MultiTask, Task, TorchJD

TRAIN, VALIDATION, TEST = 1500, 1000, 2000
EPOCHS, BATCH = 10, 64
PUSH = 0.5  # length of the step uphill that tells how sharp a minimum is
RADII = ((True, 0.5), (True, 2.0), (False, 0.05))  # (adaptive, rho), chosen on validation


def build() -> MultiTask:
    """Two strided convolutions and a hidden layer under two heads, 87,000 weights."""
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 12, 5, stride=2), nn.ReLU()),
        *(nn.Conv2d(12, 24, 5, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24 * 36, 90), nn.ReLU()),
    )
    return MultiTask(encoder, [Task(name, LinearHead(90, 10), cross_entropy) for name in ("first", "second")])


@torch.no_grad()
def accuracy(model: Any, pairs: Any) -> float:
    """Share of digits that are told right, averaged over the tasks."""
    model.eval()
    found = model(pairs.inputs)
    model.train()
    right = [(found[name].argmax(1) == labels).double().mean() for name, labels in pairs.targets.items()]
    return float(torch.stack(right).mean())


def learn(balancer: Balancer, train: Any, validation: Any, seed: int, epochs: int) -> tuple[MultiTask, float]:
    """A model trained with a balancer, at its best epoch on validation, and its accuracy there."""
    from manyhead.training import fit

    torch.manual_seed(seed)
    model = build()
    fitted = fit(
        model,
        train,
        losses=lambda model, batch: model.losses(batch),
        batch_size=BATCH,
        epochs=epochs,
        validate=lambda model: {"accuracy": accuracy(model, validation)},
        monitor="accuracy",
        mode="max",
        balancer=balancer,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        seed=seed,
        logs=(),
    )
    return model, float(fitted.best_value or 0.0)


def sharpness(model: MultiTask, pairs: Any) -> float:
    """How much the mean loss over the tasks rises under a step uphill of length PUSH."""
    batch = pairs.batch(torch.arange(len(pairs)))
    weights = list(model.parameters())

    def mean() -> torch.Tensor:
        return torch.stack(list(model.losses(batch).values())).mean()

    before = mean()
    slope = torch.autograd.grad(before, weights)
    length = torch.stack([part.norm() for part in slope]).norm() + 1e-12
    held = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, part in zip(weights, slope, strict=True):
            weight.add_(PUSH * part / length)
        after = mean()
        for weight, value in zip(weights, held, strict=True):
            weight.copy_(value)
    return float(after - before.detach())


def step_seconds(balancer: Balancer, train: Any, steps: int = 8) -> float:
    """Processor seconds of one step, forward passes included, the median of several."""
    model = build()
    batch = train.batch(torch.arange(BATCH))
    taken = []
    for _ in range(steps):
        started = time.process_time()
        losses = model.losses(batch)
        recompute = partial(model.losses, batch)
        balancer.backward(losses, shared=losses.shared, recompute=recompute)
        taken.append(time.process_time() - started)
        model.zero_grad()
    return sorted(taken)[steps // 2]


def demo(seed: int, budget: float) -> list[Measurement]:
    """Train with and without flat regions on the same canvases, compare accuracy, sharpness and cost."""
    from manyhead.data.multi_mnist import multi_mnist

    share = min(1.0, budget / SYSTEM.budget)
    epochs = max(2, round(EPOCHS * share))
    train, validation, test = multi_mnist(TRAIN, VALIDATION, TEST, seed)
    run = partial(learn, train=train, validation=validation, seed=seed)
    # the radius is chosen on validation with the plain mean, and used under the other aggregator too
    tried = [
        (*run(FlatRegions("mean", adaptive=adaptive, rho=rho), epochs=epochs), adaptive, rho)
        for adaptive, rho in RADII
    ]
    flat_mean, _, adaptive, rho = max(tried, key=lambda found: found[1])
    flat = partial(FlatRegions, "cagrad", c=0.4, adaptive=adaptive, rho=rho)
    models = {
        "mean": run(TorchJD("mean"), epochs=epochs)[0],
        "mean, twice the epochs": run(TorchJD("mean"), epochs=2 * epochs)[0],
        "flat mean": flat_mean,
        "CAGrad": run(TorchJD("cagrad", c=0.4), epochs=epochs)[0],
        "flat CAGrad": run(flat(), epochs=epochs)[0],
        "flat CAGrad, direct": run(flat(mode="direct"), epochs=epochs)[0],
    }
    score = {name: 100 * accuracy(model, test) for name, model in models.items()}
    rise = {name: sharpness(models[name], test) for name in ("CAGrad", "flat CAGrad")}

    def against(name: str, other: str, paper: str) -> Measurement:
        return Measurement(
            what=f"accuracy of {name}, against {other}",
            paper=paper,
            baseline=score[other],
            here=score[name],
            holds=score[name] > score[other],
            unit="%",
        )

    ratio = step_seconds(FlatRegions("mean"), train) / step_seconds(TorchJD("mean"), train)
    return [
        against("flat CAGrad", "CAGrad", "95.01 to 95.95 on MultiMNIST"),
        against("flat mean", "mean", "86.40 to 87.72 on MultiFashion"),
        against("flat mean", "mean, twice the epochs", "not reported"),
        against("flat CAGrad", "flat mean", "87.82 against 87.72 on MultiFashion"),
        against("flat CAGrad", "flat CAGrad, direct", "87.82 against 86.72 on MultiFashion"),
        Measurement(
            what=f"rise of the test loss under a step uphill of length {PUSH}",
            paper="clearly smaller",
            baseline=rise["CAGrad"],
            here=rise["flat CAGrad"],
            holds=rise["flat CAGrad"] < rise["CAGrad"],
            better="lower",
        ),
        Measurement(
            what="processor time of a step over that of the mean alone, two tasks",
            paper="2.0 to 2.7 from counting passes",
            baseline=None,
            here=ratio,
            holds=2.0 <= ratio <= 2.7,
        ),
    ]


NOTES = f"""
MultiMNIST is made from `mnist_10k`: {TRAIN:,} canvases to learn from, {VALIDATION:,} to choose the epoch and
the radius, {TEST:,} to report, with no digit in two parts; a network of 87,000 weights, Adam at 1e-3,
{EPOCHS} epochs of batches of {BATCH}. The radius is chosen among adaptive 0.5 and 2 and plain 0.05 with the
mean as aggregator, and used for CAGrad as it is.

**Where paper and code disagree.** The paper tells of two radii and separate norms for shared and own
weights, and does not say that the perturbation is adaptive; the Multi-MNIST code has one radius, one joint
norm and always the adaptive form. `FlatRegions` has separate norms by default, `norm_scope="joint"` for the
code's; `rho=2.0, adaptive=True` are the published runs' values. The official CAGrad divides by 1 + c^2, and
the official MGDA keeps a thousandth of weight on each task; TorchJD's do neither. A radius of zero runs the
authors' two stages all the same, so that their time comparison is not with a trainer of one pass; here it is.
The Multi-MNIST script chooses the best epoch on the test set; here it is chosen on validation.

Normalisation layers use the batch's statistics at the perturbed weights but count a batch once in their
running averages: `fit` sees to it, and `frozen_statistics` does elsewhere.
"""

SYSTEM = System(
    slug="flat_mtl",
    title="Improving Multi-task Learning via Seeking Task-based Flat Regions",
    year=2022,
    arxiv="2211.13723",
    claim="A sharpness-aware perturbation for every task, its gradients aggregated in two parts, raises the "
    "accuracy of any gradient aggregator.",
    demo=demo,
    budget=60.0,
    notes=NOTES,
)
