"""Conflicts planted in one layer, or in one attention head, are found there and nowhere else."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.insight.conflict import WHOLE, ConflictWatch, conflicts, groups, layers
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.neighborhood import NeighborhoodAttention
from manyhead.networks.transformer import Stack
from manyhead.pattern import Window
from manyhead.tasks import LinearHead, MultiTask, Sum, Task, TorchJD, balancer_by_name
from manyhead.testing.balancers import check_balancer
from manyhead.training import fit


class Branches(nn.Module):
    """Three maps side by side, so that a loss can weigh each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.middle, self.right = (nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.left(x).sum(), self.middle(x).sum(), self.right(x).sum()])


def test_opposite_gradients_in_one_layer_only_are_found_there() -> None:
    torch.manual_seed(0)
    network = Branches()
    sums = network(torch.randn(5, 4))
    losses = {
        "one": (sums * torch.tensor([1.0, 2.0, 1.0])).sum(),
        "two": (sums * torch.tensor([3.0, -1.0, 1.0])).sum(),
        "third": (sums * torch.tensor([1.0, 1.0, 0.0])).sum(),
    }
    found = conflicts(losses, groups(network))
    assert found["left"] == pytest.approx([1.0, 1.0, 1.0])
    assert found["middle"] == pytest.approx([-1.0, 1.0, -1.0])  # one-two, one-third, two-third
    assert found["right"][0] == pytest.approx(1.0)
    assert all(value != value for value in found["right"][1:])  # the third task does not reach it
    assert set(found) == {WHOLE, "left", "middle", "right"}


@pytest.mark.parametrize(
    "mixer",
    [
        partial(MultiHeadAttention, 8, 4),
        partial(NeighborhoodAttention, 8, 4, Window(3)),
        partial(nn.MultiheadAttention, 8, 4, batch_first=True),
    ],
)
def test_a_conflict_in_one_attention_head_is_found_there(mixer: partial[nn.Module]) -> None:
    torch.manual_seed(1)
    network = mixer()
    # the output map hands each head its own channels; its gradient would mix them, so it is held
    for name, parameter in network.named_parameters():
        if "out" in name or name.startswith("proj"):
            with torch.no_grad():
                parameter.copy_(torch.eye(8) if parameter.ndim == 2 else torch.zeros(8))
            parameter.requires_grad_(False)
    x = torch.randn(3, 6, 8)
    out = (
        network(x, x, x, need_weights=False)[0] if isinstance(network, nn.MultiheadAttention) else network(x)
    )
    by_head = out.unflatten(-1, (4, 2)).square().sum((0, 1, 3))
    losses = {"one": by_head.sum(), "two": (by_head * torch.tensor([1.0, 1.0, -1.0, 1.0])).sum()}
    compared = [group for group in groups(network) if group.head is not None]
    assert [group.head for group in compared] == [0, 1, 2, 3]
    found = conflicts(losses, compared)
    for group in compared:
        expected = -1.0 if group.head == 2 else 1.0
        assert found[group.name][0] == pytest.approx(expected, abs=1e-5)


def test_keys_that_heads_share_belong_to_none_of_them() -> None:
    network = MultiHeadAttention(8, 4, kv_heads=2)
    held = {id(p) for group in groups(network) if group.head is not None for p, _ in group.parts}
    assert id(network.q_proj.weight) in held
    assert id(network.k_proj.weight) not in held


def test_layers_come_in_order_of_depth_with_containers_opened() -> None:
    network = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), Stack(8, lambda _: MultiHeadAttention(8, 2), 2, hidden=8)
    )
    assert list(layers(network)) == ["0", "2.layers.0", "2.layers.1", "2.norm"]
    assert sum(p.numel() for held in layers(network).values() for p in held) == sum(
        p.numel() for p in network.parameters()
    )
    named = [group.name for group in groups(network)]
    assert named[:5] == [WHOLE, "0", "2.layers.0", "2.layers.0.mixer head 0", "2.layers.0.mixer head 1"]
    assert [group.layer for group in groups(network)] == [0, 1, 2, 2, 2, 3, 3, 3, 4]


class Rows:
    """Inputs with two targets, a data set that `fit` takes."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = {"a": self.x.sum(1), "b": -self.x.sum(1)}

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> dict[str, object]:
        return {"inputs": self.x[rows], "targets": {name: y[rows] for name, y in self.y.items()}}


def model() -> MultiTask:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    return MultiTask(body, [Task(name, LinearHead(6), nn.functional.mse_loss) for name in ("a", "b")])


def run(
    watched: bool, balancer: str, folder: Path | None = None, epochs: int = 2
) -> tuple[MultiTask, object]:
    net = model()
    plain = balancer_by_name(balancer)
    watch = ConflictWatch(plain, net.network, every=3) if watched else plain
    fit(
        net,
        Rows(40),
        losses=lambda m, batch: m.losses(batch),
        batch_size=8,
        epochs=epochs,
        balancer=watch,
        folder=folder,
        resume=folder is not None,
        logs=(),
    )
    return net, watch


@pytest.mark.parametrize("balancer", ["sum", "mgda", "flat", "rep_mtl"])
def test_watching_changes_nothing_of_the_training(balancer: str) -> None:
    (plain, _), (seen, watch) = run(False, balancer), run(True, balancer)
    assert isinstance(watch, ConflictWatch)
    for one, two in zip(plain.parameters(), seen.parameters(), strict=True):
        assert torch.equal(one, two)
    assert [look.step for look in watch.looks] == [0, 3, 6, 9]
    assert set(watch.looks[0].cosines) == {WHOLE, "0"}
    assert watch.seconds > 0


def test_the_looks_of_a_resumed_run_are_those_of_an_undisturbed_one(tmp_path: Path) -> None:
    run(True, "sum", tmp_path / "run", epochs=1)
    _, resumed = run(True, "sum", tmp_path / "run", epochs=3)
    _, whole = run(True, "sum", epochs=3)
    assert isinstance(resumed, ConflictWatch)
    assert isinstance(whole, ConflictWatch)
    assert resumed.looks == whole.looks


def test_a_watched_balancer_is_still_a_balancer() -> None:
    check_balancer(lambda names: ConflictWatch(TorchJD("upgrad"), every=2))


def test_what_cannot_be_watched_is_refused() -> None:
    with pytest.raises(InputError, match="every must be at least 1, got 0"):
        ConflictWatch(Sum(), nn.Linear(1, 1), every=0)
    with pytest.raises(InputError, match="no shared trainable parameter"):
        groups(nn.ReLU())
