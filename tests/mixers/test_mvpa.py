"""Multi-variate parallel attention: what segments and channels see, what distances mean, equal forms."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from manyhead.errors import InputError
from manyhead.layers.wavelet_tokens import HIGH, LOW, WaveletTokens, coefficient_sizes, db4_coefficients
from manyhead.mixers.mvpa import MultivariateParallelAttention
from manyhead.testing.mixers import check_mixer

WIDTH, HEADS, KV = 16, 4, 2


def layer(segments=16, channels=8, kv_heads=KV, **options):
    torch.manual_seed(0)
    tables = [nn.Parameter(torch.randn(size, WIDTH)) for size in (segments, channels)]
    made = MultivariateParallelAttention(WIDTH, HEADS, kv_heads, *tables, **options).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2 and weight.shape[-1] == WIDTH:
                weight.normal_(std=0.3)
        made.bias.normal_()
    return made


def tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("relative", ["aligned_end", "distance"])
@pytest.mark.parametrize(
    "options", [{}, {"global_att": False}, {"window": 2}, {"window": 2, "last_global": False}]
)
def test_three_forms_are_one(relative, options):
    x = tokens(2, 6, 3, WIDTH)
    outs = [layer(relative=relative, impl=impl, **options)(x) for impl in ("naive", "broadcast", "sdpa")]
    torch.testing.assert_close(outs[1], outs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outs[2], outs[0], atol=1e-5, rtol=1e-5)


def test_contract():
    assert "causal" in check_mixer(layer(), (2, 5, 3, WIDTH))


def test_a_segment_sees_no_later_one_and_all_channels_of_its_own():
    mixer, x = layer(), tokens(2, 7, 3, WIDTH)
    y = x.clone()
    y[:, 4, 1] += 1
    before, after = mixer(x), mixer(y)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4] - after[:, 4]).abs().amax((0, 2)).min() > 1e-4
    weights = mixer.mixing_matrix(x).unflatten(-1, (7, 3)).unflatten(2, (7, 3))
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    assert (weights.permute(2, 4, 0, 1, 3, 5)[later] == 0).all()


def test_reversed_channels_reverse_and_others_commute_only_without_channel_terms():
    mixer, x = layer(), tokens(2, 5, 4, WIDTH)
    torch.testing.assert_close(mixer(x.flip(2)), mixer(x).flip(2), atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    assert (mixer(x[:, :, order]) - mixer(x)[:, :, order]).abs().max() > 1e-3
    with torch.no_grad():
        mixer.channel_proj.weight.zero_()
        mixer.bias[-mixer.bias.numel() // 3 :].zero_()
    torch.testing.assert_close(mixer(x[:, :, order]), mixer(x)[:, :, order], atol=1e-5, rtol=1e-5)


def test_without_relative_terms_it_is_grouped_attention_under_a_block_causal_mask():
    mixer, x = layer(), tokens(2, 5, 3, WIDTH)
    with torch.no_grad():
        for part in (mixer.time_proj.weight, mixer.channel_proj.weight, mixer.bias):
            part.zero_()
    flat = x.flatten(1, 2)
    q = mixer.q_proj(flat).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    k, v = (
        p.unflatten(-1, (KV, -1)).transpose(1, 2).repeat_interleave(2, 1)
        for p in mixer.kv_proj(flat).chunk(2, -1)
    )
    t = torch.arange(15) // 3
    out = scaled_dot_product_attention(q, k, v, attn_mask=t[:, None] >= t)
    torch.testing.assert_close(
        mixer(x), mixer.out_proj(out.transpose(1, 2).flatten(2)).view_as(x), atol=1e-5, rtol=1e-5
    )


def test_content_counts_within_the_window_and_for_the_last_segment():
    mixer, x = layer(window=1), tokens(1, 6, 2, WIDTH)
    near = mixer.near(6)
    t = torch.arange(6)
    assert torch.equal(near[:-1], ((t[:, None] - t).abs() <= 1)[:-1])
    assert near[-1].all()
    assert not layer(window=1, last_global=False).near(6)[-1, 0]
    # logits of far segments do not depend on the keys' content
    q, k, _, biases = mixer.terms(x)
    a, b = (mixer.logits(x, q, keys, biases) for keys in (k, k + 1))
    far = (t[:, None] - t > 1) & (t < 5)[:, None]
    assert torch.equal(a.permute(2, 4, 0, 1, 3, 5)[far], b.permute(2, 4, 0, 1, 3, 5)[far])


def test_a_single_channel_makes_no_channel_term():
    mixer, x = layer(channels=1), tokens(2, 6, 1, WIDTH)
    before = mixer(x)
    with torch.no_grad():
        mixer.channels.add_(3.0)
    torch.testing.assert_close(mixer(x), before, atol=1e-5, rtol=1e-5)


def test_distances_keep_their_meaning_when_a_series_goes_on():
    """Outputs of a prefix are those of the whole with rows by distance; counted from the end they move."""
    x = tokens(2, 9, 3, WIDTH)
    mixer = layer(relative="distance", window=3, last_global=False)
    torch.testing.assert_close(mixer(x[:, :5]), mixer(x)[:, :5], atol=1e-5, rtol=1e-5)
    aligned = layer(window=3, last_global=False)
    assert (aligned(x[:, :5]) - aligned(x)[:, :5]).abs().max() > 1e-3
    # with the table's first rows cut off the code's form gives the earlier outputs as well
    shorter = layer(window=3, last_global=False)
    shorter.load_state_dict(aligned.state_dict())
    shorter.positions = nn.Parameter(aligned.positions[4:])
    torch.testing.assert_close(shorter(x[:, :5]), aligned(x)[:, :5], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"global_att": False}, {"window": 2}])
def test_segments_one_by_one_equal_the_whole(options):
    mixer = layer(relative="distance", last_global=False, **options)
    assert "recurrent form" in check_mixer(mixer, (2, 9, 3, WIDTH))
    small = mixer.initial_state(2, channels=3, capacity=4)
    assert small.keys.shape == (2, HEADS, 4, 3, 4)
    for _ in range(4):
        _, small = mixer.step(tokens(2, 3, WIDTH), small)
    with pytest.raises(InputError, match="room for 4 segments"):
        mixer.step(tokens(2, 3, WIDTH), small)
    with pytest.raises(InputError, match="distance"):
        layer().step(tokens(2, 3, WIDTH), small)


def test_as_many_key_heads_as_query_heads_is_the_repeated_form():
    grouped, whole = layer(), layer(kv_heads=HEADS)

    def spread(weight):
        return weight.unflatten(0, (KV, -1)).repeat_interleave(HEADS // KV, 0).flatten(0, 1)

    with torch.no_grad():
        for name in ("q_proj", "out_proj"):
            getattr(whole, name).weight.copy_(getattr(grouped, name).weight)
        for name in ("time_proj", "channel_proj"):
            getattr(whole, name).weight.copy_(spread(getattr(grouped, name).weight))
        whole.kv_proj.weight.copy_(torch.cat([spread(w) for w in grouped.kv_proj.weight.chunk(2)]))
        whole.bias.copy_(torch.cat([spread(b) for b in grouped.bias.chunk(3)]))
        whole.positions.copy_(grouped.positions)
        whole.channels.copy_(grouped.channels)
    x = tokens(2, 5, 3, WIDTH)
    torch.testing.assert_close(whole(x), grouped(x), atol=1e-5, rtol=1e-5)


def test_time_and_channel_terms_cost_as_the_paper_says():
    """Without content, multiplications of the logits grow with T^2 C + T C^2 (counted)."""

    def work(segments, channels):
        mixer = layer(64, 64, global_att=False)
        x = torch.zeros(1, segments, channels, WIDTH)
        q, k, _, biases = mixer.terms(x)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mixer.logits(x, q, k, biases)
        return counter.get_total_flops()

    assert work(32, 16) / work(16, 16) == pytest.approx((32**2 * 16 + 32 * 256) / (16**3 + 16**3), rel=0.15)
    full = 2 * (32 * 32) ** 2 * WIDTH  # TC x TC products of all heads
    assert work(32, 32) < 0.5 * full


def test_a_table_that_is_too_short_is_refused():
    with pytest.raises(InputError, match="table of segments"):
        layer(segments=4)(tokens(1, 5, 3, WIDTH))
    with pytest.raises(InputError, match="table of channels"):
        layer(channels=2)(tokens(1, 4, 3, WIDTH))
    with pytest.raises(InputError):
        layer(impl="fast")


def test_wavelets_are_orthogonal_constant_signals_have_no_detail_and_sizes_halve():
    low, high = (torch.tensor(taps, dtype=torch.float64) for taps in (LOW, HIGH))
    for shift in (0, 2, 4, 6):
        expected = 1.0 if shift == 0 else 0.0
        assert float(low[shift:] @ low[: 8 - shift]) == pytest.approx(expected, abs=1e-9)
        assert float(high[shift:] @ high[: 8 - shift]) == pytest.approx(expected, abs=1e-9)
        assert float(high[shift:] @ low[: 8 - shift]) == pytest.approx(0, abs=1e-9)
    # four vanishing moments
    n = torch.arange(8, dtype=torch.float64)
    assert all(abs(float((n**power) @ high)) < 1e-6 for power in range(4))
    constant = db4_coefficients(torch.ones(2, 64))
    sizes = coefficient_sizes(64)
    assert constant.shape[-1] == sum(sizes)
    assert constant[:, sizes[-1] :].abs().max() < 1e-5
    assert sizes[0] == (64 + 7) // 2
    with pytest.raises(InputError):
        coefficient_sizes(13)


def test_no_gradient_passes_the_transform():
    x = torch.randn(3, 32, requires_grad=True)
    tokens_of = WaveletTokens(32, 8)
    tokens_of(x).sum().backward()
    assert x.grad is None
    assert tokens_of.proj.weight.grad is not None
