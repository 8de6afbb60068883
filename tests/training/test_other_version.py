"""A checkpoint that another version laid out ends a continued run with one message, and stays as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyhead.training import CheckpointError, fit, load_state, save_state
from manyhead.training.checkpoint import CHECKPOINT


class Points:
    def __len__(self) -> int:
        return 8

    def batch(self, indices: Tensor) -> Tensor:
        return indices[:, None].float() / 8


def square(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"a": ((model(x) - x) ** 2).mean()}


def go(folder: Path, epochs: int) -> None:
    torch.manual_seed(0)
    fit(nn.Linear(1, 1), Points(), losses=square, batch_size=4, epochs=epochs, folder=folder, resume=True)


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def position(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state | {"position": state["position"] | changed}


LAYOUTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no precision": without("precision"),
    "no generators": without("processes"),
    "no balancer": without("balancer"),
    "a field of the position that is gone": position(best_loss=0.5),
    "a position that lacks a field": lambda state: state | {"position": without("counts")(state["position"])},
    "three values a process": lambda state: state | {"processes": [each[:3] for each in state["processes"]]},
    "no process": lambda state: state | {"processes": []},
    "a list": lambda state: [state],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_message_and_nothing_is_lost(layout: str, tmp_path: Path) -> None:
    go(tmp_path, 1)
    file = tmp_path / CHECKPOINT
    save_state(file, LAYOUTS[layout](load_state(file)))
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="written by another version of manyhead") as raised:
        go(tmp_path, 2)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert file.read_bytes() == before


def test_the_same_layout_goes_on(tmp_path: Path) -> None:
    go(tmp_path, 1)
    file = tmp_path / CHECKPOINT
    save_state(file, load_state(file))
    go(tmp_path, 2)
    assert load_state(file)["position"]["epoch"] == 2
