"""Slimmable layers against ordinary layers that hold the same corner of the weights."""

import pytest
import torch
from torch.nn.functional import conv2d

from manyhead.errors import InputError
from manyhead.layers.slimmable import (
    SlicedBatchNorm2d,
    SlicedGroupNorm,
    SlimmableConv2d,
    SlimmableLinear,
    SwitchableBatchNorm2d,
    channels_at,
)


def test_counts_are_rounded_up() -> None:
    assert [channels_at(10, ratio) for ratio in (0.25, 0.3, 0.5, 1.0)] == [3, 3, 5, 10]
    assert channels_at(30, 0.1) == 3  # 0.1 * 30 is a little more than 3 in floating point
    assert channels_at(3, 0.01) == 1


def test_a_convolution_uses_its_first_channels() -> None:
    layer, x = SlimmableConv2d(8, 6, 3, 2), torch.randn(2, 5, 7, 7)
    expected = conv2d(x, layer.weight[:4, :5], layer.bias[:4], stride=2, padding=1)
    torch.testing.assert_close(layer(x, 4), expected)
    torch.testing.assert_close(layer.cut(5, 4)(x), expected)
    assert layer(x).shape[1] == 6


def test_a_depthwise_convolution_shrinks_both_sides_together() -> None:
    layer, x = SlimmableConv2d(8, 8, 3, depthwise=True), torch.randn(2, 5, 7, 7)
    expected = conv2d(x, layer.weight[:5], layer.bias[:5], padding=1, groups=5)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.cut(5, 5)(x), expected)
    with pytest.raises(InputError, match="equal channels, got 8 and 4"):
        SlimmableConv2d(8, 4, depthwise=True)


def test_a_linear_map_uses_its_first_channels() -> None:
    layer, x = SlimmableLinear(8, 6), torch.randn(3, 5)
    expected = x @ layer.weight[:4, :5].T + layer.bias[:4]
    torch.testing.assert_close(layer(x, 4), expected)
    torch.testing.assert_close(layer.cut(5, 4)(x), expected)
    assert layer.cut(5)(x).shape == (3, 6)


def test_switching_keeps_statistics_of_widths_apart() -> None:
    norm = SwitchableBatchNorm2d([1, 3], [2, 4]).train()
    with torch.no_grad():
        norm.weights["2"].copy_(torch.tensor([2.0, 3.0]))
        norm.biases["2"].fill_(1.0)
    x = torch.randn(8, 2, 3, 3) * 3 + 5
    out = norm(x, 3)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm.of(3, 2).running_mean, 0.1 * x.mean((0, 2, 3)))
    for inputs, channels in ((1, 2), (1, 4), (3, 4)):
        assert not norm.of(inputs, channels).running_mean.any()
    torch.testing.assert_close(norm.eval().cut(3, 2)(x), norm(x, 3))
    with pytest.raises(InputError, match=r"for \[2, 4\] channels out of \[1, 3\], got 3 out of 1"):
        norm(torch.randn(1, 3, 2, 2), 1)


def test_sliced_batch_normalisation_counts_full_width_alone() -> None:
    norm = SlicedBatchNorm2d(4).train()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 5))
    narrow = torch.randn(8, 2, 3, 3) * 3 + 5
    out = norm(narrow)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.tensor([1.0, 2.0]), rtol=1e-4, atol=0)
    assert not norm.running_mean.any()
    norm(torch.randn(8, 4, 3, 3) + 1)
    assert norm.running_mean.any()
    torch.testing.assert_close(norm.eval().cut(4, 2)(narrow), norm(narrow))


def test_group_normalisation_slices_its_weights() -> None:
    for size, groups in ((2, 3), (None, 1)):
        norm, x = SlicedGroupNorm(8, size), torch.randn(2, 6, 3, 3)
        parts = x.view(2, groups, -1)
        expected = (parts - parts.mean(-1, keepdim=True)) / parts.std(-1, keepdim=True, correction=0)
        torch.testing.assert_close(norm(x), expected.view_as(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.cut(8, 6)(x), norm(x))
    with pytest.raises(InputError, match="groups of 2 do not divide 5"):
        SlicedGroupNorm(8, 2)(torch.randn(1, 5, 2, 2))
