"""Weights go to the released code's names and back without loss."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.stocks.network import Stockformer, load_official, official_state_dict


def build(seed: int, **options: object) -> Stockformer:
    torch.manual_seed(seed)
    return Stockformer(5, 8, 2, 6, 3, 4, head_dim=4, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("fusion_self", [False, True])
def test_round_trip(prefix: str, fusion_self: bool) -> None:
    one, two = build(0, fusion_self=fusion_self), build(1, fusion_self=fusion_self)
    state = {prefix + name: tensor for name, tensor in official_state_dict(one).items()}
    load_official(two, state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    for name, tensor in official_state_dict(two).items():
        assert torch.equal(tensor, state[prefix + name])


def test_every_element_has_one_place() -> None:
    """Numbering all official elements and loading them numbers all of ours, each once."""
    network = build(0)
    state, start = official_state_dict(network), 0
    for name, tensor in state.items():
        if ".tcn.tcn." not in name:
            state[name] = torch.arange(start, start + tensor.numel()).view(tensor.shape)
            start += tensor.numel()
            twin = name.replace(".tcn.conv.", ".tcn.tcn.0.0.")
            state[twin] = state[name]
    load_official(network, state)
    ours = torch.cat([tensor.flatten() for tensor in network.state_dict().values()])
    assert torch.equal(ours.sort().values, torch.arange(float(start)))


def test_either_name_of_the_convolution_will_do() -> None:
    state = official_state_dict(build(0))
    for dropped in (".tcn.conv.", ".tcn.tcn.0.0."):
        load_official(build(1), {name: x for name, x in state.items() if dropped not in name})
    state["features.dual_encoder.0.tcn.conv.bias"] = torch.ones(8)
    with pytest.raises(InputError, match="one tensor"):
        load_official(build(1), state)


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    network = build(1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = official_state_dict(build(0))
    missing = {name: x for name, x in state.items() if name != "features.pre_l.bias"}
    with pytest.raises(InputError, match=r"missing \['features.pre_l.bias'\]"):
        load_official(network, missing)
    with pytest.raises(InputError, match=r"unknown \['extra'\]"):
        load_official(network, state | {"extra": torch.ones(1)})
    with pytest.raises(InputError, match=r"must have shape \(3,\)"):
        load_official(network, state | {"features.pre_l.bias": torch.ones(2)})
    with pytest.raises(InputError, match="with and without"):
        load_official(network, state | {"module.features.pre_l.bias": torch.ones(3)})
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_ablation_without_counterpart_is_refused() -> None:
    with pytest.raises(InputError, match="addition"):
        official_state_dict(build(0, fusion="addition"))
