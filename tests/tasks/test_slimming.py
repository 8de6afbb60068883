"""Training at any width: what distillation reaches, what a step is made of, and how steering is measured."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from manyhead.data.sprites import sprites
from manyhead.errors import InputError
from manyhead.networks.controllable import SuperNet, Widths
from manyhead.tasks.controllability import hypervolume, task_ranges
from manyhead.tasks.slimming import DISTANCES, Sandwich, distillation
from manyhead.training import fit

OUTPUTS = {"shape": 3, "scale": 6}
LOSSES = dict.fromkeys(OUTPUTS, cross_entropy)


def network(**options) -> SuperNet:
    torch.manual_seed(0)
    options = {"image": 16, "channels": (8, 8), "strides": (2, 2), "hidden": 8} | options
    return SuperNet(OUTPUTS, **options)


def batch() -> dict:
    return sprites(12, side=16).tasks(*OUTPUTS).batch(torch.arange(12))


@pytest.mark.parametrize("comparison", list(DISTANCES))
def test_distillation_is_zero_at_full_width_and_reaches_the_narrow_encoder_alone(comparison) -> None:
    net, image = network(), batch()["inputs"]
    teacher = net.encode(image)
    assert float(distillation(teacher, teacher, comparison).detach()) == pytest.approx(0, abs=1e-12)
    teacher = [feature.requires_grad_() for feature in teacher]
    for feature in teacher:
        feature.retain_grad()
    narrow = Widths((0.25, 0.25), (0.25, 0.25))
    loss = distillation(net.encode(image, narrow), teacher, comparison)
    assert float(loss.detach()) > 0
    loss.backward()
    assert all(feature.grad is None for feature in teacher)
    reached = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert reached
    assert all(name.startswith("stages.") for name in reached)
    weight = net.stages[1].convolution.weight.grad
    assert weight[:2, :2].any()
    assert not weight[2:].any()


def test_distances_follow_their_equations() -> None:
    student, teacher = torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[0.0]], [[2.0]], [[9.0]]]])
    # (3, 4) / 5 against (0, 2) / 2, two elements
    assert float(DISTANCES["slice"](student, teacher)) == pytest.approx((0.6**2 + 0.2**2) / 2)
    wide = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]])  # strengths 1 and 2
    thin = torch.tensor([[[[2.0, 0.0]]]])  # strengths 4 and 0
    one = torch.tensor([1.0, 2.0]) / 5**0.5
    expected = (1 - one[0]) ** 2 + one[1] ** 2
    assert float(DISTANCES["attention"](thin, wide)) == pytest.approx(float(expected))
    apart = torch.tensor([[[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]]])  # two samples at right angles
    same = torch.ones(2, 1, 1, 1)  # two equal samples: rows (1, 1) / root 2
    half = 0.5**0.5
    expected_gram = 2 * ((1 - half) ** 2 + half**2) / 4
    assert float(DISTANCES["gram"](same, apart)) == pytest.approx(expected_gram)


def test_a_step_adds_up_the_losses_of_the_whole_the_smallest_and_random_networks() -> None:
    net, given = network(norm="layer"), batch()
    torch.manual_seed(5)
    drawn = [net.random() for _ in range(2)]
    widths = [net.full, net.smallest, *drawn]
    torch.manual_seed(5)
    found = Sandwich(LOSSES, weights={"scale": 0.5})(net, given)
    for task, weight in (("shape", 1.0), ("scale", 0.5)):
        by_hand = [cross_entropy(net(given["inputs"], w)[task], given["targets"][task]) for w in widths]
        torch.testing.assert_close(found[task], weight * sum(by_hand))
    teacher = net.encode(given["inputs"])
    by_hand = sum(distillation(net.encode(given["inputs"], w), teacher) for w in widths[1:])
    torch.testing.assert_close(found["distillation"], by_hand)
    assert set(Sandwich(LOSSES, strength=0.0)(net, given)) == set(OUTPUTS)
    one = Sandwich(LOSSES, stages=[1], others=0)(net, given)["distillation"]
    narrow = net.encode(given["inputs"], net.smallest)
    torch.testing.assert_close(one, distillation(narrow[1:], teacher[1:]))
    more = Sandwich(LOSSES, others=0, strength=0.0, predictions=2.0)(net, given)["distillation"]
    apart = [
        (net(given["inputs"], net.smallest)[t] - net(given["inputs"])[t]).square().mean() for t in OUTPUTS
    ]
    torch.testing.assert_close(more, 2 * sum(apart))


def test_a_network_of_one_width_is_trained_as_any_other() -> None:
    net, given = network(encoder_widths=(1.0,), decoder_widths=(1.0,)), batch()
    found = Sandwich(LOSSES)(net, given)
    assert set(found) == set(OUTPUTS)
    for task, value in found.items():
        torch.testing.assert_close(value, cross_entropy(net(given["inputs"])[task], given["targets"][task]))


def test_every_width_learns() -> None:
    net = network(channels=(16, 32), hidden=32)
    data = sprites(64, seed=1, side=16, positions=1, orientations=1).tasks(*OUTPUTS)
    options = {"losses": Sandwich(LOSSES), "batch_size": 64, "epochs": 30}
    fit(net, data, optimizer=partial(torch.optim.Adam, lr=1e-2), **options)
    for widths, least in ((net.smallest, 0.5), (net.full, 0.8)):
        small = net.cut(widths).eval()(data.inputs)
        right = [(small[t].argmax(1) == labels).float().mean() for t, labels in data.targets.items()]
        assert sum(right) / 2 > least, widths  # a guess has 0.25


def test_volumes_are_unions_of_boxes() -> None:
    reference = torch.zeros(2)
    assert hypervolume(torch.tensor([[2.0, 3.0]]), reference) == pytest.approx(6)
    steps = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [1.0, 1.0], [-1.0, 9.0]])
    assert hypervolume(steps, reference) == pytest.approx(6)
    assert hypervolume(steps, torch.tensor([1.0, 1.0])) == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(6, 3, generator=generator)
    samples = torch.rand(200_000, 3, generator=generator)
    below = (samples[:, None] < points).all(2).any(1).double().mean()
    assert hypervolume(points, torch.zeros(3)) == pytest.approx(float(below), abs=0.005)
    assert hypervolume(points[:0], torch.zeros(3)) == 0
    with pytest.raises(InputError, match=r"reference \(tasks,\), got"):
        hypervolume(points, torch.zeros(2))


def test_the_range_of_a_task_is_what_preferring_it_gains() -> None:
    preferences = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.2, 0.8], [0.2, 0.8]])
    scores = torch.tensor([[0.9, 0.3], [0.5, 0.5], [0.4, 0.6], [0.2, 0.4]])
    assert task_ranges(preferences, scores) == pytest.approx([0.9 - 0.3, 0.5 - 0.3])
    with pytest.raises(InputError, match="must both be"):
        task_ranges(preferences, scores[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": {}}, "losses must name a task"),
        ({"weights": {"colour": 1.0}}, "and those of weights"),
        ({"strength": -1.0}, "must not be negative, got -1.0"),
        ({"comparison": "cosine"}, "comparison must be one of slice, attention, gram, got 'cosine'"),
    ],
)
def test_bad_options_are_named(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sandwich(**({"losses": LOSSES} | options))
