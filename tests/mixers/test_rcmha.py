"""RCMHA: what is left when parts are switched off, causality, distances, and memory."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.mixers.rcmha import RelativeConvolutionalAttention, align
from manyhead.networks.segment_recurrent import SegmentRecurrentLM


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def random_layer(**options: object) -> RelativeConvolutionalAttention:
    torch.manual_seed(0)
    layer = RelativeConvolutionalAttention(16, 4, max_length=600, **options)
    for name in ("key_table", "bias_table", "query_bias"):
        if layer.relative:
            nn.init.normal_(getattr(layer, name))
    return layer


def no_convolution(layer: RelativeConvolutionalAttention) -> None:
    for convolution in layer.convolutions:
        nn.init.zeros_(convolution.conv.bias)
        convolution.conv.weight.data[:] = torch.tensor([0.0, 0.0, 1.0])


def test_with_an_identity_convolution_it_starts_as_plain_attention() -> None:
    layer = RelativeConvolutionalAttention(16, 4)
    no_convolution(layer)
    x = tokens(2, 9, 16)
    q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
    plain = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), layer.out_proj(plain), atol=1e-6, rtol=0)


def test_its_parts_alone_are_the_papers_other_two_attentions() -> None:
    whole, x = random_layer(), tokens(2, 9, 16)
    relative_only = random_layer(convolution=False)
    relative_only.load_state_dict(whole.state_dict(), strict=False)
    no_convolution(whole)
    torch.testing.assert_close(whole(x), relative_only(x))
    whole = random_layer()
    for name in ("key_table", "bias_table", "query_bias"):
        nn.init.zeros_(getattr(whole, name))
    convolution_only = random_layer(relative=False)
    convolution_only.load_state_dict(whole.state_dict(), strict=False)
    torch.testing.assert_close(whole(x), convolution_only(x))


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (4, 9), (1, 7)])
def test_the_shift_is_a_gather_by_distance(queries: int, keys: int) -> None:
    by_distance = tokens(2, queries, keys + queries)
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    index = (j - i + queries).expand(2, -1, -1)
    assert torch.equal(align(by_distance, keys), by_distance.gather(2, index))
    layer = random_layer()
    q, k = tokens(1, 4, queries, 4), tokens(1, 4, keys, 4)
    r = j - (i + keys - queries)
    table, bias = layer.key_table[600 + r], layer.bias_table[600 + r]  # (queries, keys, heads, ...)
    expected = (
        torch.einsum("bhid,bhjd->bhij", q + layer.query_bias[:, None], k)
        + torch.einsum("bhid,ijhd->bhij", q, table)
        + bias.permute(2, 0, 1)
    ) / 2
    torch.testing.assert_close(layer.logits(q, k), expected, atol=1e-5, rtol=1e-5)


def test_the_future_changes_no_bit_of_the_past() -> None:
    layer, x = random_layer(), tokens(1, 12, 16)
    y = x.clone()
    y[:, 7:] += 1
    assert torch.equal(layer(x)[:, :7], layer(y)[:, :7])
    assert not torch.allclose(layer(x)[:, 7:], layer(y)[:, 7:])
    seen = random_layer(causal=False)
    assert not torch.allclose(seen(x)[:, :7], seen(y)[:, :7])


def test_heads_are_exchangeable_as_they_share_the_filters() -> None:
    layer, x = random_layer(), tokens(2, 9, 16)
    before, order = layer(x), torch.tensor([2, 0, 3, 1])
    rows = (order[:, None] * 4 + torch.arange(4)).flatten()
    with torch.no_grad():
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
            projection.weight.copy_(projection.weight[rows])
        layer.v_proj.bias.copy_(layer.v_proj.bias[rows])
        layer.out_proj.weight.copy_(layer.out_proj.weight[:, rows])
        layer.key_table.copy_(layer.key_table[:, order])
        layer.bias_table.copy_(layer.bias_table[:, order])
        layer.query_bias.copy_(layer.query_bias[order])
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("carry", [True, False])
def test_segments_with_full_memory_equal_one_pass_if_queries_are_carried(carry: bool) -> None:
    layer, x = random_layer(), tokens(2, 15, 16)
    outs, before, at = [], None, 0
    for length in (6, 1, 5, 3):
        out, last = layer.segment(
            x[:, at : at + length], x[:, :at] if at else None, before if carry else None
        )
        outs, before, at = [*outs, out], last, at + length
    differs = ((torch.cat(outs, 1) - layer(x)).abs().amax((0, 2)) > 1e-5).nonzero()[:, 0].tolist()
    assert differs == ([] if carry else [6, 7, 8, 12, 13])


def test_steps_equal_the_parallel_form() -> None:
    layer, x = random_layer().eval(), tokens(2, 512, 16)
    with torch.no_grad():
        state, outs = layer.initial_state(2), []
        for x_t in x.unbind(1):
            y_t, state = layer.step(x_t, state)
            outs.append(y_t)
        torch.testing.assert_close(torch.stack(outs, 1), layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "relu2"])
def test_a_model_with_carried_queries_reads_segments_like_one_text(activation: str) -> None:
    torch.manual_seed(0)
    model = SegmentRecurrentLM(
        11, 16, 4, 1, 32, mem_len=12, segment=12, carry_queries=True, activation=activation
    )
    for weight in model.attentions.parameters():
        nn.init.normal_(weight, std=0.3)
    ids = torch.randint(11, (2, 12))
    whole, _ = model(ids)
    first, memory = model(ids[:, :5])
    second, memory = model(ids[:, 5:], memory)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-5, rtol=1e-5)
    assert memory[0].inputs.shape == (2, 12, 16)
    assert not memory[0].inputs.requires_grad


def test_it_costs_twelve_weights_a_feature_over_relative_attention_and_says_what_does_not_fit() -> None:
    count = [sum(w.numel() for w in random_layer(convolution=c).parameters()) for c in (True, False)]
    assert count[0] - count[1] == 12 * 4
    with pytest.raises(InputError, match="distances up to 4"):
        RelativeConvolutionalAttention(16, 4, max_length=4)(tokens(1, 5, 16))
    with pytest.raises(InputError, match="causal"):
        random_layer(causal=False).step(tokens(1, 16), random_layer().initial_state(1))
