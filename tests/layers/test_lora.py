"""Low-rank adaptation: nothing at first, the same after merging, and exactly the named parameters train."""

import pytest
import torch
from torch import nn

from manyhead.errors import InputError
from manyhead.layers.lora import LoRALinear, add_lora, lora_groups, merge_lora
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.transformer import Transformer


def model():
    torch.manual_seed(0)
    return Transformer(
        20, 16, 2, mixers=lambda n: MultiHeadAttention(16, 4, causal=True, rotary=1.0), positions="none"
    ).eval()


def ids():
    return torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(1))


def test_it_changes_nothing_at_first_and_merging_keeps_what_it_learned():
    network = model()
    expected = network(ids())
    add_lora(network, rank=3)
    assert torch.equal(network(ids()), expected)
    for name, parameter in network.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter)
    learned = network(ids())
    assert (learned - expected).abs().max() > 1e-3
    merge_lora(network)
    torch.testing.assert_close(network(ids()), learned, atol=1e-5, rtol=1e-5)
    assert network.state_dict().keys() == model().state_dict().keys()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_what_trains_is_named_and_counted():
    network = model()
    names = add_lora(network, rank=4)
    low = [name for name in names if "lora" in name]
    others = [name for name in names if "lora" not in name]
    assert len(low) == 2 * 4 * 2
    assert others
    assert all("embed" in name or "norm" in name for name in others)
    assert sum(network.get_parameter(name).numel() for name in low) == 2 * 4 * (2 * 4 * 16)  # 2 r d each
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(ids()).square().sum().backward()
        optimizer.step()
    tied = {"output.weight"}  # the embedding by another name
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed - tied == set(names)
    plain = add_lora(model(), rank=4, trainable=())
    assert all("lora" in name for name in plain)


def test_a_term_for_some_rows_leaves_the_others():
    torch.manual_seed(0)
    base = nn.Linear(6, 10)
    layer, x = LoRALinear(base, 2, rows=slice(4, None)), torch.randn(3, 6)
    nn.init.normal_(layer.lora_b)
    out, plain = layer(x), base(x)
    assert torch.equal(out[:, :4], plain[:, :4])
    by_hand = plain[:, 4:] + 8 * x @ layer.lora_a.T @ layer.lora_b.T  # alpha / rank = 16 / 2
    torch.testing.assert_close(out[:, 4:], by_hand)
    torch.testing.assert_close(x @ layer.weight.T + layer.bias, out)


def test_dropout_works_in_training_only():
    layer, x = LoRALinear(nn.Linear(6, 6), 2, rate=0.5), torch.ones(400, 6)
    nn.init.ones_(layer.lora_b)
    assert (layer.train()(x).std(0) > 0).all()
    assert (layer.eval()(x).std(0) < 1e-6).all()


def test_b_may_learn_faster():
    network = model()
    add_lora(network)
    slow, fast = lora_groups(network, 1e-3, 8.0)
    assert (slow["lr"], fast["lr"]) == (1e-3, 8e-3)
    assert {tuple(p.shape) for p in fast["params"]} == {(16, 8)}
    assert len(slow["params"]) + len(fast["params"]) == sum(p.requires_grad for p in network.parameters())


def test_no_target_or_a_bad_rank_is_refused():
    with pytest.raises(InputError, match="no linear map"):
        add_lora(model(), targets=("query",))
    for wrong in ({"rank": 0}, {"rows": slice(8, 4)}):
        with pytest.raises(InputError, match="rank is at least 1"):
            LoRALinear(nn.Linear(4, 10), **wrong)
