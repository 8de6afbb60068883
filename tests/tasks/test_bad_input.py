"""What users get wrong about tasks and losses: one message each, that names the task."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from manyhead.comparison import compare
from manyhead.errors import InputError
from manyhead.tasks import LinearHead, MultiTask, Task, balancer_by_name
from manyhead.training import NonFiniteLoss, fit, load_state
from manyhead.training.checkpoint import CHECKPOINT


class Rows:
    """Inputs with a number and a class."""

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = {"number": self.x[:, 0], "kind": (self.x[:, 1] > 0).long()}

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> dict[str, Any]:
        return {"inputs": self.x[rows], "targets": {name: y[rows] for name, y in self.y.items()}}


def model(loss: Any = cross_entropy) -> MultiTask:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    return MultiTask(body, [Task("number", LinearHead(6), mse_loss), Task("kind", LinearHead(6, 2), loss)])


def train(losses: Any, net: MultiTask | None = None, **options: Any) -> None:
    fit(net or model(), Rows(), losses=losses, batch_size=8, epochs=2, **options)


def changed(task: str, change: Any) -> Any:
    def losses(net: MultiTask, batch: Any) -> Any:
        found = net.losses(batch)
        found[task] = change(found[task])
        return found

    return losses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: model(None), r"task 'kind' needs a loss\(prediction, target\), got None"),
        (lambda: Task("kind", lambda x: x, mse_loss), "head of task 'kind' must be a module, got function"),
        (
            lambda: train(lambda net, batch: net.losses(batch)["kind"]),
            "losses must return task name -> scalar loss, got Tensor",
        ),
        (
            lambda: train(
                lambda net, batch: net.losses(batch),
                model(lambda p, t: cross_entropy(p, t, reduction="none")),
            ),
            r"the loss of task 'kind' must be a scalar tensor, got shape \(8,\)",
        ),
        (
            lambda: train(changed("kind", float)),
            "the loss of task 'kind' must be a scalar tensor, got float",
        ),
        (
            lambda: train(changed("number", lambda loss: loss.detach())),
            "the loss of task 'number' does not depend on any parameter",
        ),
        (
            lambda: train(changed("number", lambda loss: -loss), balancer=balancer_by_name("log_sum")),
            "the loss of task 'number' is -.*it has no logarithm",
        ),
    ],
)
def test_a_loss_that_cannot_be_used_names_its_task(wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("balancer", ["sum", "mgda", "flat", "rep_mtl"])
def test_one_task_that_is_not_finite_is_named_with_its_step_and_the_last_checkpoint_stays(
    value: float, balancer: str, tmp_path: Path
) -> None:
    armed = [True]

    def losses(net: MultiTask, batch: Any) -> Any:
        found = net.losses(batch)
        if armed[0] and batch["inputs"][0, 0] == Rows().x[3, 0]:  # the batch that sample 3 begins
            found["kind"] = found["kind"] * value
        return found

    def first_is_three(samples: int, epoch: int, seed: int) -> Tensor:
        return torch.arange(samples).roll(-3) if epoch == 1 else torch.arange(samples)

    with pytest.raises(
        NonFiniteLoss, match=rf"task 'kind' is {value} in epoch 2, step 4; the last checkpoint"
    ):
        train(losses, balancer=balancer_by_name(balancer), order=first_is_three, folder=tmp_path)
    assert load_state(tmp_path / CHECKPOINT)["position"]["step"] == 3
    armed[0] = False
    train(losses, balancer=balancer_by_name(balancer), order=first_is_three, folder=tmp_path, resume=True)
    assert load_state(tmp_path / CHECKPOINT)["position"]["step"] == 6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("single_class", "validation has a single class of task 'kind', 1: nothing to tell apart"),
        ("unlabelled", "validation has no label of task 'kind'"),
    ],
)
def test_a_task_whose_labels_tell_nothing_is_refused_before_it_is_trained(
    source: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        compare(
            f"tests.comparison.planted:{source}", [], seeds=(0,), epochs=1, folder=tmp_path, progress=False
        )
