"""The wavelet split: against PyWavelets, exact reconstruction, linearity, and no leak between windows."""

import numpy as np
import pytest
import torch

from manyhead.errors import InputError
from manyhead.stocks.wavelet import split_matrices, wavelet_split

pywt = pytest.importorskip("pywt")


def reference(x: np.ndarray, wave: str, level: int) -> tuple[np.ndarray, np.ndarray]:
    """PyWavelets' own transform along axis 0, inverted without details and without approximation."""
    with np.errstate(all="ignore"):
        approximation, *details = pywt.wavedec(x, wave, mode="zero", level=level, axis=0)
    blank = [np.zeros_like(detail) for detail in details]
    low = pywt.waverec([approximation, *blank], wave, mode="zero", axis=0)
    high = pywt.waverec([np.zeros_like(approximation), *details], wave, mode="zero", axis=0)
    return low[: len(x)], high[: len(x)]


@pytest.mark.filterwarnings("ignore:Level value of")
@pytest.mark.parametrize("wave", ["sym2", "db4", "haar", "bior2.2", "coif1"])
@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("length", [2, 5, 16, 20, 21])
def test_equals_pywavelets(wave: str, level: int, length: int) -> None:
    x = np.random.default_rng(length).standard_normal((length, 3))
    low, high = wavelet_split(torch.from_numpy(x), axis=0, wave=wave, level=level)
    expected_low, expected_high = reference(x, wave, level)
    np.testing.assert_allclose(low.numpy(), expected_low, atol=1e-12)
    np.testing.assert_allclose(high.numpy(), expected_high, atol=1e-12)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 20, 33])
def test_the_two_parts_sum_to_the_window(length: int, level: int) -> None:
    low, high = split_matrices(length, "sym2", level)
    np.testing.assert_allclose(low + high, np.eye(length), atol=1e-12)
    window = 0.02 * torch.randn(4, length, 7)
    parts = wavelet_split(window, level=level)
    torch.testing.assert_close(parts[0] + parts[1], window, rtol=0, atol=1e-6)


def test_any_axis_gives_the_same_split_in_place() -> None:
    window = torch.randn(2, 3, 20, 5)
    low, high = wavelet_split(window)
    moved_low, moved_high = wavelet_split(window.movedim(2, 0), axis=0)
    torch.testing.assert_close(moved_low.movedim(0, 2), low)
    torch.testing.assert_close(moved_high.movedim(0, 2), high)


def test_a_window_is_split_by_itself_and_differentiably() -> None:
    windows = torch.randn(2, 20, 3, requires_grad=True)
    low, _ = wavelet_split(windows)
    low[0].sum().backward()
    assert windows.grad is not None
    assert (windows.grad[1] == 0).all()
    assert (windows.grad[0] != 0).any()


def test_slow_waves_go_low_and_fast_ones_high() -> None:
    day = torch.arange(20.0)
    slow, fast = torch.sin(day * 2 * torch.pi / 20), (-1.0) ** day
    low, high = wavelet_split(torch.stack([slow, fast], dim=1))
    inner = slice(3, -3)  # zero padding disturbs the ends
    assert high[inner, 0].abs().max() < 0.1 * low[inner, 0].abs().max()
    assert low[inner, 1].abs().max() < 0.1 * high[inner, 1].abs().max()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((20, "symm2", 1), "wave"),
        ((20, "sym2", 0), "level"),
        ((0, "sym2", 1), "length"),
        ((9, "mexh", 1), "wave"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[int, str, int], names: str) -> None:
    with pytest.raises(InputError, match=names):
        split_matrices(*arguments)
