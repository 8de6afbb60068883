"""Rotary positions are turns of complex numbers; interpolation divides the positions."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.layers.rotary import interpolation_factor, rotate


def test_it_turns_complex_numbers_by_the_position_times_a_geometric_rate():
    x, at = torch.randn(2, 3, 7, 8, dtype=torch.float64), torch.arange(5, 12).double()
    turned = rotate(x, at, base=100.0, factor=4.0)
    numbers = torch.complex(x[..., :4], x[..., 4:])
    rates = torch.tensor([100.0 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    expected = numbers * torch.polar(torch.ones(7, 4).double(), at[:, None] / 4 * rates)
    torch.testing.assert_close(torch.cat([expected.real, expected.imag], -1), turned, atol=1e-5, rtol=1e-5)


def test_products_depend_on_distances_and_a_factor_of_one_is_nothing():
    q, k = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    at = torch.arange(6)
    here = rotate(q, at) @ rotate(k, at).T
    there = rotate(q, at + 50) @ rotate(k, at + 50).T
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(q, 4 * at, factor=4.0), rotate(q, at))


def test_the_factor_is_rounded_up_and_never_stretches():
    assert interpolation_factor(512, 128) == 4
    assert interpolation_factor(513, 128) == 5
    assert interpolation_factor(100, 128) == 1
    with pytest.raises(InputError):
        interpolation_factor(0, 128)
