"""The controllable network: what is cut out is what was trained, within budget, in the order preferred."""

import itertools
import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from manyhead.errors import InputError
from manyhead.networks.controllable import QUARTERS, SuperNet, Widths
from manyhead.networks.small_multitask import NetworkShape, SmallMultiTask, calibrate
from manyhead.networks.width_search import WidthSearch, nearest_ratios

NORMS = ("switch", "batch", "group", "layer")
OUTPUTS = {"shape": 3, "scale": 6, "edge": 1}


def network(norm: str = "switch", **options) -> SuperNet:
    torch.manual_seed(0)
    options = {"dense": ["edge"], "image": 16, "channels": (8, 12), "strides": (2, 1), "pool": 2} | options
    return SuperNet(options.pop("outputs", OUTPUTS), hidden=8, norm=norm, group=1, **options)


def worn(norm: str = "switch", **options) -> SuperNet:
    """A network whose weights and statistics are no longer the initial ones, in evaluation mode."""
    net, generator = network(norm, **options), torch.Generator().manual_seed(1)
    for _ in range(3):
        net(torch.randn(6, 1, 16, 16, generator=generator))
        for ratio in QUARTERS:
            net(torch.randn(6, 1, 16, 16, generator=generator), Widths((ratio,) * 2, (ratio,) * 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


IMAGES = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("norm", NORMS)
def test_a_small_network_is_the_big_one_at_its_widths(norm: str) -> None:
    net, generator = worn(norm), torch.Generator().manual_seed(3)
    cases = [net.full, net.smallest, *(net.random(generator, layerwise=True) for _ in range(6))]
    for widths in cases:
        small, big = net.cut(widths)(IMAGES), net(IMAGES, widths)
        assert small["edge"].shape == (5, 1, 16, 16)
        assert small["scale"].shape == (5, 6)
        for task in OUTPUTS:
            torch.testing.assert_close(small[task], big[task], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_weights_of_a_small_network_are_the_first_channels_of_the_big_one(norm: str) -> None:
    net = worn(norm)
    big, small = dict(net.named_parameters()), net.cut(Widths((0.5, 0.75), (1.0, 0.25, 0.5)))
    compared = 0
    for name, part in small.named_parameters():
        if name in big:  # a switchable normalisation has its own for each width
            corner = tuple(slice(size) for size in part.shape)
            assert torch.equal(part, big[name][corner]), name
            assert part.data_ptr() != big[name].data_ptr()
            compared += 1
    assert compared >= 14
    with torch.no_grad():  # a copy: the big network does not see what becomes of it
        for part in small.parameters():
            part.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in net.parameters())


def test_training_a_width_leaves_weights_outside_of_it_alone() -> None:
    net = network("switch").train()
    widths = Widths((0.5, 0.25), (0.75, 0.25, 0.5))
    before = {name: value.clone() for name, value in net.named_buffers()}
    found = net(IMAGES, widths)
    sum(value.square().sum() for value in found.values()).backward()
    weight = net.stages[1].convolution.weight.grad  # (12, 8, 3, 3), of which (3, 4) were used
    assert weight[:3, :4].abs().min() > 0
    assert not weight[3:].any()
    assert not weight[:, 4:].any()
    first = net.decoders["shape"].first.weight.grad  # 6 of 8 channels, in 2 x 2 parts
    assert not first[:, 6 * 4 :].any()
    assert not first[6:].any()
    touched = {name for name, value in net.named_buffers() if not torch.equal(value, before[name])}
    used = {"stages.0.norm.norms.1_4", "stages.1.norm.norms.4_3"}
    used |= {
        f"decoders.{task}.stage.norm.norms.3_{count}"
        for task, count in (("shape", 6), ("scale", 2), ("edge", 4))
    }
    assert {name.rsplit(".", 1)[0] for name in touched} == used


@pytest.mark.parametrize("norm", ["switch", "group"])
def test_costs_are_those_that_hooks_count(norm: str) -> None:
    net, generator = worn(norm), torch.Generator().manual_seed(4)
    for widths in (net.full, net.smallest, net.random(generator, layerwise=True)):
        small, counted = net.cut(widths), [0]

        def count(layer, inputs, output, counted=counted) -> None:
            # every output takes as many products as the layer has weights for it
            positions = output[0].numel()
            counted[0] += positions * layer.weight[0].numel()

        for layer in small.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(count)
        small(IMAGES[:1])
        assert net.cost(widths) == small.shape.cost() == counted[0]
    # at half the width the inner part of the encoder costs a quarter
    whole, half = network(channels=(64, 64, 64), strides=(1, 1, 1)), Widths((0.5,) * 3, (1.0,) * 3)
    decoders = sum(
        9 * 64 * 8 * 256 + (8 * 256 if sizes.dense else 8 * (32 + sizes.outputs))
        for sizes in whole.full_shape.decoders.values()
    )
    encoder = whole.cost() - decoders
    assert 0.25 < (whole.cost(half) - decoders + 3 * 9 * 32 * 8 * 256) / encoder < 0.3


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any),
    st.floats(0, 1),
    st.booleans(),
)
def test_searched_networks_keep_the_budget_and_the_order_of_preference(values, share, layerwise) -> None:
    net = _NET
    least, most = net.cost(net.smallest), net.cost()
    budget = least + share * (most - least)
    search = WidthSearch(net, layerwise=layerwise)
    found = search.find(dict(zip(OUTPUTS, values, strict=True)), budget)
    assert net.cost(found) <= budget
    for (p, d), (q, e) in itertools.permutations(zip(values, found.decoders, strict=True), 2):
        assert d >= e or p < q
    # the encoder is the largest that fits
    others = itertools.product(QUARTERS, repeat=2) if layerwise else ((r, r) for r in QUARTERS)
    for encoder in others:
        cost = net.cost(Widths(tuple(encoder), found.decoders))
        assert cost <= net.cost(found) or cost > budget


_NET = network("group", channels=(8, 16))


def test_permuting_equal_tasks_permutes_their_widths() -> None:
    net = network(outputs={"a": 3, "b": 3, "c": 3}, dense=[])
    search = WidthSearch(net)
    for values in itertools.permutations((0.1, 0.6, 0.3)):
        found = search.find(dict(zip("abc", values, strict=True)), 0.7 * net.cost())
        by_preference = [width for _, width in sorted(zip(values, found.decoders, strict=True))]
        assert by_preference == [0.5, 0.75, 1.0]


def test_decoder_ratios_follow_the_rule_and_step_down_together() -> None:
    assert nearest_ratios([0.8, 0.1, 0.1], QUARTERS) == (1.0, 0.25, 0.25)
    assert nearest_ratios([1.0, 0.5, 0.0], QUARTERS) == (1.0, 0.75, 0.25)  # 0.625 is as near to both
    net = network(outputs={"a": 3, "b": 3, "c": 3}, dense=[])
    tight = net.cost(Widths((0.25, 0.25), (0.75, 0.5, 0.25)))
    found = WidthSearch(net).find({"a": 1.0, "b": 0.6, "c": 0.3}, tight)
    assert found.decoders == (0.75, 0.5, 0.25)  # from (1, 0.75, 0.5), one down
    assert found.encoder == (0.25, 0.25)


def test_a_larger_budget_never_lowers_the_best_score_found() -> None:
    net = network("group")
    # any order of encoders will do as a score, so long as every one is tried
    quality = {shape: index * 7 % 16 for index, shape in enumerate(itertools.product(QUARTERS, repeat=2))}

    def score(small: SmallMultiTask) -> float:
        first, second = small.shape.channels
        return quality[first / 8, second / 12]

    search = WidthSearch(net, score, layerwise=True)
    budgets = torch.linspace(net.cost(net.smallest) * 2, net.cost(), 12).tolist()
    found = [search._score(search.best_encoder((0.25,) * 3, budget)) for budget in budgets]
    assert found == sorted(found)
    assert found[0] < found[-1] == 15
    assert len(search.tried) <= 16  # each is scored once


def test_the_evolutionary_search_comes_near_to_trying_all() -> None:
    options = {"channels": (8, 8, 8, 8), "strides": (2, 1, 1, 1), "outputs": {"a": 3}, "dense": []}
    net = network("group", **options)
    budget = 0.5 * net.cost()
    whole = WidthSearch(net, layerwise=True)
    evolved = WidthSearch(net, layerwise=True, most=0, seed=1)
    best, found = (search.best_encoder((0.5,), budget) for search in (whole, evolved))
    assert net.cost(found) <= budget
    assert net.cost(found) >= 0.97 * net.cost(best)
    assert evolved.best_encoder((0.5,), budget) == found


def test_calibration_gives_the_statistics_of_the_images() -> None:
    net = worn("batch")
    search = WidthSearch(net, calibration=IMAGES)
    small = search.extract({"shape": 1.0, "scale": 0.2, "edge": 0.2}, 0.6 * net.cost())
    before = small.stages[0].convolution(IMAGES)
    torch.testing.assert_close(
        small.stages[0].norm.running_mean, before.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(small.stages[0].norm.running_var, before.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert small.stages[0].norm.momentum == 0.1
    assert not small.training
    plain = nn.Linear(2, 2)
    calibrate(plain, torch.randn(3, 2))  # nothing to do
    with pytest.raises(InputError, match="norm='batch' needs calibration images"):
        WidthSearch(net)


def test_calibrated_statistics_are_those_of_every_width_with_one_ratio_for_the_encoder() -> None:
    net, generator = worn("switch"), torch.Generator().manual_seed(5)
    net.calibrate(IMAGES)
    for _ in range(4):
        widths = net.random(generator)
        small = net.cut(widths)
        anew = net.cut(widths)
        calibrate(anew, IMAGES)
        for (name, kept), (_, again) in zip(small.named_buffers(), anew.named_buffers(), strict=True):
            if kept.is_floating_point():
                torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-5, msg=name)


def test_a_saved_network_is_loaded_without_the_big_one(tmp_path) -> None:
    net = worn("switch")
    small = net.extract({"shape": 0.2, "scale": 1.0, "edge": 0.4}, 0.5 * net.cost())
    small.save(tmp_path / "small")
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"model.safetensors", "shape.json"}
    again = SmallMultiTask.load(tmp_path / "small")
    assert not any("limmable" in type(module).__name__ for module in again.modules())
    assert again.shape == small.shape
    for task, value in small(IMAGES).items():
        assert torch.equal(again(IMAGES)[task], value)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in net.parameters())
    (tmp_path / "small" / "shape.json").write_text(json.dumps({"inputs": 1}))
    with pytest.raises(InputError, match="not the shape of a network"):
        SmallMultiTask.load(tmp_path / "small")
    (tmp_path / "small" / "shape.json").write_text(net.full_shape.to_json())
    with pytest.raises(InputError, match=r"(?s)does not hold a small multi-task model.*size mismatch"):
        SmallMultiTask.load(tmp_path / "small")
    with pytest.raises(InputError, match="does not hold"):
        SmallMultiTask.load(tmp_path / "nothing")


def test_one_task_at_one_width_is_an_ordinary_network() -> None:
    net = network("switch", outputs={"a": 3}, dense=[], encoder_widths=(1.0,), decoder_widths=(1.0,))
    plain = SmallMultiTask(NetworkShape.from_json(net.full_shape.to_json()))
    state = {}
    for name, value in net.state_dict().items():
        name = re.sub(r"norms\.\d+_\d+\.", "", name)  # statistics of the one width
        state[
            re.sub(r"(weights|biases)\.\d+$", lambda m: "weight" if m[1] == "weights" else "bias", name)
        ] = value
    plain.load_state_dict(state)
    for model in (net, plain):
        cross_entropy(model(IMAGES)["a"], torch.tensor([0, 1, 2, 0, 1])).backward()
    torch.testing.assert_close(net.stages[0].convolution.weight.grad, plain.stages[0].convolution.weight.grad)
    assert net.full == net.smallest


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: network(outputs={}, dense=[]), "outputs must name a task"),
        (lambda: network(dense=["depth"]), "and those that are dense"),
        (lambda: network(strides=(1,)), "must be given for each stage"),
        (lambda: network("instance"), "norm must be 'switch', 'batch', 'group' or 'layer', got 'instance'"),
        (lambda: network(encoder_widths=(0.5,)), "encoder_widths must be different ratios .* 1 the largest"),
        (lambda: network(decoder_widths=(0.0, 1.0)), "decoder_widths must be different ratios above 0"),
        (
            lambda: SuperNet({"a": 2}, channels=(6,), strides=(1,), norm="group"),
            "groups of 4 do not divide 2",
        ),
        (lambda: network()(IMAGES, Widths((0.3, 1.0), (1.0,) * 3)), "encoder must be 2 ratios out of"),
        (lambda: network()(IMAGES, Widths((1.0, 1.0), (1.0,))), "decoders must be 3 ratios"),
        (lambda: network().extract({"shape": 1.0}, 1e9), "preference must name the tasks shape, scale, edge"),
        (lambda: network().extract(dict.fromkeys(OUTPUTS, 0.0), 1e9), "not all zero"),
        (
            lambda: network().extract(dict.fromkeys(OUTPUTS, 1.0), 10),
            "at least the smallest network's .* multiply-adds, got 10",
        ),
    ],
)
def test_what_cannot_be_is_named(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
