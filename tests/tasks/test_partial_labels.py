"""Every balancer trains on samples that have labels for some tasks only, in float32 and under bfloat16."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks import LinearHead, MultiTask, Task, balancer_by_name, balancer_names
from manyhead.training import fit, mixed_tasks, shuffled

NAMES = ("a", "b", "c")
# what a constructor asks for with three tasks
NEEDS: dict[str, dict[str, Any]] = {
    "fixed": {"weights": dict.fromkeys(NAMES, 0.5)},
    "uncertainty": {"tasks": NAMES},
    "flat": {"rho": 0.05, "adaptive": False},
    "cagrad": {"c": 0.4},
    "constant": {"weights": torch.ones(3)},
    "fairgrad": {"alpha": 1.0},
    "krum": {"n_byzantine": 0},
    "nashmtl": {"n_tasks": 3, "optim_niter": 2},
    "trimmedmean": {"trim_number": 1},
    "famo": {"shape": 3},
    "uw": {"shape": 3},
    "imtll": {"shape": 3},
    "stch": {"mu": 1.0},
    "cosmos": {"lambda_": 1.0, "weights": torch.ones(3)},
    "pbi": {"theta": 1.0, "weights": torch.ones(3)},
}
# one weight for each task by position, or a least number of tasks: `mixed_tasks` puts all into every batch
BY_POSITION = ("constant", "cosmos", "dwa", "famo", "imtll", "krum", "nashmtl", "pbi", "trimmedmean", "uw")


class Partial:
    """Samples with a label for each task by chance: some have none, some all; 'c' is rare."""

    def __init__(self, count: int = 48) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 5, generator=generator)
        chance = torch.rand(3, count, generator=generator)
        self.labelled = {
            name: chance[i] < p for i, (name, p) in enumerate(zip(NAMES, (0.7, 0.5, 0.2), strict=True))
        }
        self.y = {name: self.x[:, i] + 2.0 for i, name in enumerate(NAMES)}
        for name, there in self.labelled.items():
            self.y[name][~there] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> dict[str, Any]:
        return {"inputs": self.x[rows], "targets": {name: y[rows] for name, y in self.y.items()}}


def curved(prediction: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(prediction.float(), target)


def train(
    name: str, order: Any, precision: str
) -> tuple[MultiTask, MultiTask, list[dict[str, float]], set[Any]]:
    torch.manual_seed(0)
    model, start = (
        MultiTask(nn.Sequential(nn.Linear(5, 8), nn.Tanh()), [Task(n, LinearHead(8), curved) for n in NAMES])
        for _ in range(2)
    )
    start.load_state_dict(model.state_dict())
    seen = set()

    def losses(model: MultiTask, batch: Any) -> Any:
        seen.add(model.network[0](batch["inputs"]).dtype)  # type: ignore[index, operator]
        return model.losses(batch)

    fitted = fit(
        model,
        Partial(),
        losses=losses,
        batch_size=12,
        epochs=3,
        order=order,
        balancer=balancer_by_name(name, **NEEDS.get(name, {})),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.02),
        precision=precision,
    )
    return model, start, fitted.history, seen


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", balancer_names())
def test_every_balancer_trains_every_task(name: str, precision: str) -> None:
    order = mixed_tasks(Partial().labelled, 12, temperature=2.0)
    model, start, history, seen = train(name, order, precision)
    assert seen == {torch.float32 if precision == "32-true" else torch.bfloat16}
    for (where, before), after in zip(start.named_parameters(), model.parameters(), strict=True):
        assert after.dtype == torch.float32
        assert torch.isfinite(after).all(), where
        assert not torch.equal(before, after), where
    assert all(math.isfinite(row[f"train/{task}"]) for row in history for task in NAMES)
    assert sum(history[-1][f"train/{task}"] for task in NAMES) < sum(
        history[0][f"train/{task}"] for task in NAMES
    )


def apart(samples: int, epoch: int, seed: int) -> Tensor:
    """The rare task is in the first batches alone."""
    there = Partial().labelled["c"]
    rows = shuffled(samples, epoch, seed)
    return torch.cat([rows[there[rows]], rows[~there[rows]]])


@pytest.mark.parametrize("name", [name for name in balancer_names() if name not in BY_POSITION])
def test_a_batch_may_lack_a_task(name: str) -> None:
    model, _, history, _ = train(name, apart, "32-true")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(f"train/{task}" in history[-1] for task in NAMES)


@pytest.mark.parametrize("name", BY_POSITION)
def test_a_balancer_by_position_says_so_where_a_task_is_absent(name: str) -> None:
    with pytest.raises(InputError, match=r"cannot combine"):
        train(name, apart, "32-true")
