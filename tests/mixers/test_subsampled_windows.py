"""Windows over a shuffled grid: exactly the drawn sources, near ones more often, plain ones without noise."""

import math

import pytest
import torch

from manyhead.errors import InputError
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.subsampled import self_ensemble, set_subsampling
from manyhead.mixers.subsampled_windows import SubsampledWindowAttention, grid_order
from manyhead.testing.mixers import check_mixer


def tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def layer(window=4, sigma=2.0, **options):
    torch.manual_seed(0)
    return SubsampledWindowAttention(MultiHeadAttention(16, 4), window, sigma, **options)


def dense_without(mixer, x, seen):
    """Attention over the flat grid with -inf on what is not seen, `(batch, cells, cells)`."""
    q, k, v = mixer.attention.parts(x.flatten(1, 2))
    logits = (q @ k.mT / 2).masked_fill(~seen[:, None], -torch.inf)
    return mixer.attention.merge(logits.softmax(-1) @ v).view_as(x)


def window_of(height, width, window, offset):
    """For each cell a number of its window; parts of a window beyond an edge are windows of their own."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    down, right = ((at - offset).div(window, rounding_mode="floor") for at in (y, x))
    return (down * 1000 + right).expand(height, width).flatten()


@pytest.mark.parametrize(("window", "offset"), [(4, 0), (4, 2), (4, 1), (2, 1), (8, 0)])
@pytest.mark.parametrize("per_sample", [True, False])
def test_it_equals_dense_attention_without_the_other_sources(window, offset, per_sample):
    mixer, x = layer(window, offset=offset, per_sample=per_sample), tokens(3, 8, 16, 16)
    order = grid_order(3 if per_sample else 1, 8, 16, 2.0, torch.Generator().manual_seed(1))
    number = window_of(8, 16, window, offset)
    seen = torch.zeros(3, 128, 128, dtype=torch.bool)
    for b in range(3):
        cell = torch.empty(128, dtype=torch.long)
        cell[order[b if per_sample else 0]] = torch.arange(128)  # where each source landed
        seen[b] = number[:, None] == number[cell]
    if offset == 0:
        assert (seen.sum(-1) == window**2).all()
    torch.testing.assert_close(mixer(x, order=order), dense_without(mixer, x, seen), atol=1e-6, rtol=1e-5)
    mixer.generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(mixer.train()(x), mixer(x, order=order))


def test_without_noise_windows_are_plain_and_a_window_of_all_is_dense():
    order = grid_order(2, 6, 4, 0.0)
    assert torch.equal(order, torch.arange(24).expand(2, -1))
    mixer, x = layer(8, 50.0), tokens(2, 8, 8, 16)
    torch.testing.assert_close(mixer.train()(x), mixer.eval()(x), atol=1e-6, rtol=1e-5)
    assert torch.equal(mixer(x), mixer.attention(x.flatten(1, 2)).view_as(x))
    set_subsampling(mixer, False)
    assert torch.equal(mixer.train()(x), mixer.eval()(x))


def test_near_sources_land_near_and_much_noise_is_flat():
    def share(sigma):
        """How often each source lands in the first window of an 8 x 8 grid of 4 x 4 windows."""
        order = grid_order(3000, 8, 8, sigma, torch.Generator().manual_seed(0)).view(-1, 8, 8)
        assert (order.flatten(1).sort(-1).values == torch.arange(64)).all()  # every source once
        return torch.bincount(order[:, :4, :4].flatten(), minlength=64).view(8, 8) / 3000

    near = share(1.5)
    for line in (near.diagonal(), near[0], near[:, 0]):
        assert (line.diff() < 0.02).all()
        assert line[0] > 0.8
        assert line[7] < 0.05
    assert ((share(1e4) - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / 3000)).all()


def test_contract_names_and_ensemble():
    mixer = layer()
    assert "gradients" in check_mixer(mixer, (2, 8, 8, 16))
    assert mixer.state_dict().keys() == mixer.attention.state_dict().keys()
    x = tokens(2, 8, 8, 16)
    together = self_ensemble(mixer.eval(), lambda: mixer(x), 3)
    torch.testing.assert_close(together.exp().sum(-1), torch.ones(2, 8, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SubsampledWindowAttention(MultiHeadAttention(16, 4, causal=True), 4, 1.0),
        lambda: layer(4, offset=4),
        lambda: layer(4).train()(tokens(1, 6, 8, 16)),
        lambda: layer(4, -1.0),
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError):
        wrong()
