"""Subsampled attention: exactly the drawn sources, drawn as often as said, dense where asked."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from manyhead.errors import InputError
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.subsampled import (
    Sources,
    SubsampledAttention,
    local_sources,
    self_ensemble,
    set_subsampling,
    subsampling,
    uniform_sources,
)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def layer(causal: bool = False, rho: float = 0.25, **options: object) -> SubsampledAttention:
    torch.manual_seed(0)
    return SubsampledAttention(MultiHeadAttention(16, 4, causal=causal, rotary=1.0), rho, **options)


def dense_without(mixer: SubsampledAttention, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Attention with -inf on every pair that is not seen, `(batch, queries, keys)`."""
    q, k, v = mixer.attention.parts(x)
    logits = (q @ k.mT / 2).masked_fill(~seen[:, None], -torch.inf)
    return mixer.attention.merge(logits.softmax(-1).nan_to_num(0.0) @ v)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keep_self", [False, True])
def test_it_equals_dense_attention_without_the_other_columns(causal: bool, keep_self: bool) -> None:
    mixer, x = layer(causal, keep_self=keep_self), tokens(3, 12, 16)
    sources = uniform_sources(3, 12, 0.3, torch.Generator().manual_seed(1))
    seen = torch.zeros(3, 12, 12, dtype=torch.bool)
    for b in range(3):
        seen[b, :, sources.kept[b]] = True
    if keep_self:
        seen |= torch.eye(12, dtype=torch.bool)
    if causal:
        seen &= torch.ones(12, 12, dtype=torch.bool).tril()
    out = mixer(x, sources=sources)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, dense_without(mixer, x, seen), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_all_sources_or_evaluation_are_ordinary_attention(causal: bool) -> None:
    mixer, x = layer(causal, 1.0), tokens(2, 10, 16)
    plain = mixer.attention(x)
    torch.testing.assert_close(mixer.train()(x), plain, atol=1e-6, rtol=1e-5)
    assert torch.equal(layer(causal, 0.2).eval()(x), plain)
    local = layer(causal, mode="local", window=20, sigma=0.0 if causal else 50.0)
    torch.testing.assert_close(local.train()(x), plain, atol=1e-6, rtol=1e-5)


def test_a_local_window_without_noise_slides() -> None:
    x, at = tokens(2, 12, 16), torch.arange(12)
    mixer = layer(True, mode="local", window=4, sigma=0.0).train()
    distance = at[:, None] - at
    seen = ((distance >= 0) & (distance < 4)).expand(2, -1, -1)
    torch.testing.assert_close(mixer(x), dense_without(mixer, x, seen), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("keep_self", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "offset"), [(1, 0), (4, 0), (5, 2), (12, -3), (40, 0)])
def test_bands_over_shuffled_sources_are_the_lists(
    causal: bool, keep_self: bool, window: int, offset: int
) -> None:
    """The fast form and a list of sources for each query, from the same shuffle."""
    x = tokens(3, 23, 16).requires_grad_()
    for per_sample in (True, False):
        mixer = layer(
            causal, mode="local", window=window, sigma=4.0, offset=offset, keep_self=keep_self,
            per_sample=per_sample,
        ).train()  # fmt: skip
        mixer.generator = torch.Generator().manual_seed(3)
        fast = mixer(x)
        mixer.generator = torch.Generator().manual_seed(3)
        slow = mixer(x, sources=mixer.draw(3, 23, 23))
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (fast, slow)]
        assert torch.isfinite(gradients[0]).all()
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_every_source_is_drawn_as_often_as_rho_says() -> None:
    draws, random = 2000, torch.Generator().manual_seed(0)
    index = uniform_sources(draws, 10, 0.3, random).kept
    assert index.shape == (draws, 3)
    assert (index.diff() > 0).all()  # distinct, in order
    share = torch.bincount(index.flatten(), minlength=10) / draws
    assert ((share - 0.3).abs() < 4 * math.sqrt(0.3 * 0.7 / draws)).all()
    assert (uniform_sources(50, 10, 0.2, random, (0, 7)).kept == torch.tensor([0, 7])).all()


def test_near_sources_are_drawn_more_often_and_much_noise_is_flat() -> None:
    def share(sigma: float) -> torch.Tensor:
        found = local_sources(2000, 32, 8, sigma, torch.Generator().manual_seed(0), causal=False)
        assert found.kept.shape[-1] == 8
        mine = found.kept[:, 16][found.there[:, 16]]
        return torch.bincount(mine, minlength=32) / 2000

    near = share(4.0)
    assert near[14:19].min() > near[[8, 24]].max() > near[[0, 31]].max()
    assert ((share(1e4) - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / 2000)).all()


@pytest.mark.parametrize("mode", ["unbiased", "local", "bernoulli"])
def test_no_output_depends_on_the_future_and_none_is_empty(mode: str) -> None:
    mixer = layer(True, 0.1, mode=mode, window=3, sigma=5.0).train()
    x = tokens(2, 12, 16)
    y = x.clone()
    y[:, 7:] += 1
    drawn = mixer.draw(2, 12, 12)
    assert torch.isfinite(mixer(x, sources=drawn)).all()
    assert torch.equal(mixer(x, sources=drawn)[:, :7], mixer(y, sources=drawn)[:, :7])


def test_dropped_sources_get_no_gradient_and_names_stay() -> None:
    mixer, x = layer(keep_self=False), tokens(1, 8, 16)
    grads = []
    for projection in (mixer.k_proj, mixer.v_proj):
        projection.register_forward_hook(lambda *seen: grads.append(seen[2]) or seen[2].retain_grad())
    index = torch.tensor([[1, 4]])
    mixer(x, sources=Sources(index, torch.ones_like(index, dtype=torch.bool))).square().sum().backward()
    for projected in grads:
        dropped = [0, 2, 3, 5, 6, 7]
        assert (projected.grad[0, dropped] == 0).all()
        assert (projected.grad[0, [1, 4]] != 0).any()
    assert mixer.state_dict().keys() == mixer.attention.state_dict().keys()


def test_with_equal_logits_the_mean_is_unbiased() -> None:
    mixer = layer(keep_self=False)
    nn.init.zeros_(mixer.q_proj.weight)
    nn.init.zeros_(mixer.q_proj.bias)
    x = tokens(1, 12, 16).expand(2000, -1, -1)
    with torch.no_grad():
        out = mixer.train()(x)[:, 0]
        exact = mixer.eval()(x[:1])[0, 0]
    error = 4 * out.std(0) / math.sqrt(2000)
    assert ((out.mean(0) - exact).abs() < error + 1e-6).all()


@pytest.mark.parametrize("rho", [0.5, 0.125])
def test_scores_and_averages_cost_their_share_of_the_sources(rho: float) -> None:
    """Multiplications beside the four projections, counted, with one's own key as an element-wise product."""

    def work(share: float) -> int:
        mixer = layer(True, share).train()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mixer(torch.zeros(2, 128, 16))
        return counter.get_total_flops() - 4 * 2 * 2 * 128 * 16 * 16

    assert work(1.0) == 2 * 2 * 2 * 128 * 128 * 16
    assert work(rho) == rho * work(1.0)


def test_draws_repeat_by_seed_and_differ_between_layers_and_samples() -> None:
    def draws(seed: int) -> list[Sources]:
        random = torch.Generator().manual_seed(seed)
        layers = [layer(generator=random) for _ in range(2)]
        return [one.draw(2, 40, 40) for one in layers]

    first, again = draws(3), draws(3)
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].kept, first[1].kept)
    assert not torch.equal(first[0].kept[0], first[0].kept[1])
    assert layer(per_sample=False).draw(5, 40, 40).kept.shape == (1, 10)


def test_an_ensemble_averages_probabilities() -> None:
    mixer, x = layer().eval(), tokens(2, 12, 16)
    mixer.generator = torch.Generator().manual_seed(5)
    one = self_ensemble(mixer, lambda: mixer(x), 1)
    mixer.generator = torch.Generator().manual_seed(5)
    with subsampling(mixer), torch.no_grad():
        torch.testing.assert_close(one, mixer(x).log_softmax(-1))
    torch.testing.assert_close(self_ensemble(mixer, lambda: mixer(x), 4).exp().sum(-1), torch.ones(2, 12))
    assert torch.equal(mixer(x), mixer.attention(x))  # dense again
    set_subsampling(mixer, False)
    assert torch.equal(mixer.train()(x), mixer.attention(x))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rho": 0.0},
        {"rho": 1.5},
        {"mode": "both"},
        {"window": 0},
        {"sigma": -1.0},
        {"mode": "local", "always_keep": (0,)},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SubsampledAttention(MultiHeadAttention(16, 4), **wrong)
