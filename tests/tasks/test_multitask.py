"""Tasks: missing labels reach neither loss nor metrics nor heads; evaluation equals a direct computation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from manyhead.errors import InputError
from manyhead.tasks import LinearHead, MultiTask, PerceptronHead, PooledHead, Task, class_weights

NAN = float("nan")


def regression(name: str = "number", channels: int = 3) -> Task:
    return Task(name, LinearHead(channels), nn.functional.mse_loss, {"mse": MeanSquaredError()})


def classification(name: str = "kind", channels: int = 3, classes: int = 4) -> Task:
    metrics = {"accuracy": MulticlassAccuracy(classes, average="micro")}
    return Task(name, LinearHead(channels, classes), nn.functional.cross_entropy, metrics)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.Tanh())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["label", "missing", "masked"]), min_size=1, max_size=9), st.integers(0, 99))
def test_only_labelled_entries_count(kinds: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    prediction, target = torch.randn(len(kinds)), torch.randn(len(kinds))
    mask = torch.tensor([kind != "masked" for kind in kinds])
    for index, kind in enumerate(kinds):
        if kind == "missing":
            target[index] = NAN
    loss = regression().loss(prediction, target, mask)
    errors = [
        (float(prediction[i]) - float(target[i])) ** 2 for i, kind in enumerate(kinds) if kind == "label"
    ]
    if errors:
        assert loss is not None
        assert float(loss) == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    else:
        assert loss is None


def test_labels_of_a_panel_may_miss_for_some_stocks() -> None:
    # (batch, stocks, classes) against (batch, stocks)
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, -100, 3], [-100, 1, 2]])
    loss = classification().loss(logits, labels)
    flat = nn.functional.cross_entropy(logits.reshape(6, 4), labels.reshape(6), ignore_index=-100)
    assert loss is not None
    assert float(loss) == pytest.approx(float(flat))


def test_a_task_without_labels_in_a_batch_leaves_its_head_alone() -> None:
    model = MultiTask(network(), [regression(), classification()])
    targets = {"number": torch.full((6,), NAN), "kind": torch.arange(6) % 4}
    losses = model.losses({"inputs": torch.randn(6, 5), "targets": targets})
    assert list(losses) == ["kind"]
    losses["kind"].backward()
    assert model.task("number").head.weight.grad is None
    only = model.losses({"inputs": torch.randn(6, 5), "targets": {"number": torch.randn(6)}})
    assert list(only) == ["number"]


def test_losses_name_what_is_shared() -> None:
    model = MultiTask(network(), [regression(), classification()])
    batch = {"inputs": torch.randn(6, 5), "targets": {"number": torch.randn(6)}}
    losses = model.losses(batch)
    assert [id(p) for p in losses.shared] == [id(p) for p in model.network.parameters()]
    assert losses.representation.shape == (6, 3)
    own = MultiTask(_PerTask(), [regression("a"), regression("b")])
    told = own.losses({"inputs": torch.randn(6, 5), "targets": {"a": torch.randn(6), "b": torch.randn(6)}})
    assert told.representation is None
    assert set(told) == {"a", "b"}


class _PerTask(nn.Module):
    """A representation for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({"a": nn.Linear(5, 3), "b": nn.Linear(5, 3)})

    def forward(self, x):
        return {name: expert(x) for name, expert in self.experts.items()}


def test_evaluation_equals_a_direct_computation_whatever_the_batches() -> None:
    torch.manual_seed(3)
    model = MultiTask(network(), [regression(), classification()])
    x, number, kind = torch.randn(20, 5), torch.randn(20), torch.randint(4, (20,))
    number[::3], kind[::4] = NAN, -100

    def batches(size: int):
        for start in range(0, 20, size):
            part = slice(start, start + size)
            yield {"inputs": x[part], "targets": {"number": number[part], "kind": kind[part]}}

    found = [model.evaluate(batches(size)) for size in (20, 7, 1)]
    out = {name: value.detach() for name, value in model(x).items()}
    there = ~number.isnan()
    assert found[0]["number/mse"] == pytest.approx(
        float(((out["number"] - number)[there] ** 2).mean()), rel=1e-5
    )
    labelled = kind >= 0
    hits = (out["kind"].argmax(1) == kind)[labelled].float().mean()
    assert found[0]["kind/accuracy"] == pytest.approx(float(hits))
    assert found[0]["kind/loss"] == pytest.approx(
        float(nn.functional.cross_entropy(out["kind"], kind, ignore_index=-100)), rel=1e-5
    )
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    assert model.training


def test_a_task_without_any_label_is_absent_from_the_evaluation() -> None:
    model = MultiTask(network(), [regression(), classification()])
    batch = {
        "inputs": torch.randn(2, 5),
        "targets": {"number": torch.randn(2), "kind": torch.tensor([-100, -100])},
    }
    assert set(model.evaluate([batch])) == {"number/loss", "number/mse"}


def test_metrics_are_no_part_of_the_weights() -> None:
    model = MultiTask(network(), [regression()])
    model.evaluate([{"inputs": torch.randn(2, 5), "targets": {"number": torch.randn(2)}}])
    assert set(model.state_dict()) == {
        "network.0.weight",
        "network.0.bias",
        "tasks.number.head.weight",
        "tasks.number.head.bias",
    }


def test_heads_give_the_shapes_that_they_promise() -> None:
    x = torch.randn(2, 3, 4, 8)
    assert LinearHead(8)(x).shape == (2, 3, 4)
    assert LinearHead(8, 5)(x).shape == (2, 3, 4, 5)
    assert PerceptronHead(8, 16, 5)(x).shape == (2, 3, 4, 5)
    assert PooledHead(LinearHead(8, 5))(x).shape == (2, 5)
    same = PooledHead(nn.Identity())
    assert torch.allclose(same(x), x.mean((1, 2)))
    assert torch.equal(PooledHead(nn.Identity(), "max")(x), x.amax((1, 2)))
    assert torch.equal(PooledHead(nn.Identity(), "first")(x), x[:, 0, 0])


def test_class_weights_make_classes_count_alike() -> None:
    labels = torch.tensor([0, 0, 0, 1, -100, 3, 3, 1])
    weights = class_weights(labels, 5)
    counts = torch.tensor([3.0, 2.0, 0.0, 2.0, 0.0])
    shares = weights * counts
    assert shares[counts > 0].tolist() == pytest.approx([7 / 3] * 3)
    assert weights[2] == weights[4] == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MultiTask(network(), []), "at least one task"),
        (lambda: MultiTask(network(), [regression(), regression()]), "distinct names"),
        (lambda: regression("a.b"), "must not be empty nor hold"),
        (
            lambda: MultiTask(network(), [regression()]).task("x"),
            r"there is no task 'x'; the tasks are \['number'\]",
        ),
        (lambda: MultiTask(network(), [regression()]).losses({"x": 1}), "must hold 'inputs' and 'targets'"),
        (
            lambda: MultiTask(network(), [regression()]).losses(
                {"inputs": torch.ones(1, 5), "targets": {"z": 0}}
            ),
            "targets for 'z'",
        ),
        (lambda: regression().loss(torch.ones(3), torch.ones(4)), "do not fit"),
        (lambda: regression().loss(torch.ones(3), torch.ones(3), torch.ones(2)), "mask of task 'number'"),
        (lambda: PooledHead(nn.Identity(), "median"), "how must be 'mean', 'max' or 'first'"),
    ],
)
def test_bad_input_is_named(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
