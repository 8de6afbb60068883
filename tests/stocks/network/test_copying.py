"""The tiled copy attention is the dense definition, gradients included, and holds no more than it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manyhead.stocks.network import copying
from manyhead.stocks.network.copying import copy_attention, copy_attention_reference


def drawn(days: int, stocks: int, dim: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(days, stocks, 3 * dim, generator=draw, dtype=torch.float64, requires_grad=True)


def presence(days: int, stocks: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(days, stocks, generator=draw) < 0.6


@given(
    days=st.integers(1, 5),
    stocks=st.integers(1, 9),
    dim=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    tile=st.sampled_from([1, 8 * 9 * 4, 8 * 9 * 9, 8 * 9 * 9 * 3, 2**20]),
    keep=st.sampled_from([0, 2**20]),
    masked=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_equals_the_definition_for_any_tiling(
    days: int, stocks: int, dim: int, seed: int, tile: int, keep: int, masked: bool
) -> None:
    qkv = drawn(days, stocks, dim, seed)
    available = presence(days, stocks, seed) if masked else None
    before = copying.TILE_BYTES, copying.KEEP_BYTES
    copying.TILE_BYTES, copying.KEEP_BYTES = tile, keep
    try:
        ours, rows = copy_attention(qkv, 0.7, available)
        weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (grad,) = torch.autograd.grad((ours * weight).sum(), qkv)
    finally:
        copying.TILE_BYTES, copying.KEEP_BYTES = before
    query, key, value = qkv.chunk(3, -1)
    expected, expected_rows = copy_attention_reference(query, key, value, 0.7, available)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), qkv)
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_gradient_against_finite_differences() -> None:
    qkv = drawn(3, 6, 4)
    assert torch.autograd.gradcheck(lambda x: copy_attention(x, 0.5)[0], [qkv])


@pytest.mark.parametrize("tile", [1, 2**20])
def test_ties_go_to_the_lowest_row(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(copying, "TILE_BYTES", tile)
    qkv = drawn(2, 5, 3).detach()
    qkv[:, :, :3] = qkv[:, :1, :3]  # every stock asks the same
    assert (copy_attention(qkv, 1.0)[1] == 0).all()
    available = torch.tensor([[False, True, True, True, True]]).expand(2, -1)
    assert (copy_attention(qkv, 1.0, available)[1] == 1).all()


def test_a_lone_stock_copies_its_own_value() -> None:
    qkv = drawn(4, 1, 3)
    out, rows = copy_attention(qkv, 1.0)
    assert (rows == 0).all()
    torch.testing.assert_close(out, qkv[..., 6:])


def test_an_absent_stock_has_no_influence_on_the_others() -> None:
    qkv = drawn(3, 7, 4).detach()
    available = torch.ones(3, 7, dtype=torch.bool)
    available[:, 2] = False
    changed = qkv.clone()
    changed[:, 2] = 50.0
    others = [0, 1, 3, 4, 5, 6]
    one, two = copy_attention(qkv, 1.0, available)[0], copy_attention(changed, 1.0, available)[0]
    assert torch.equal(one[:, others], two[:, others])
    without = copy_attention(qkv[:, others], 1.0)[0]
    torch.testing.assert_close(one[:, others], without)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest storage that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, size)
        return result


def test_no_tensor_is_larger_than_the_projections_or_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    days, stocks, dim = 3, 256, 8
    monkeypatch.setattr(copying, "TILE_BYTES", 4 * stocks * 16)
    qkv = torch.randn(days, stocks, 3 * dim, requires_grad=True)
    with Largest() as seen:
        copy_attention(qkv, 1.0)[0].sum().backward()
    # The copied rows of one day may fill N^2; all days, or N^2 times anything, may not.
    assert seen.elements <= max(stocks * stocks, days * stocks * 3 * dim)
    with Largest() as dense:
        copy_attention_reference(*qkv.chunk(3, -1), 1.0)[0].sum().backward()
    assert dense.elements >= days * stocks * stocks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 63, 64, 77, 96, 200])
def test_grouped_argmax_is_the_lowest_row_of_the_largest(rows: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(rows)
    weights = torch.randint(0, 40, (3, rows, 5), generator=draw).to(dtype) / 40  # many ties, zeros too
    weights[:, ::7] = -1.0  # as hidden rows have
    largest, where = copying._argmax(weights)
    assert torch.equal(where, weights.argmax(1))
    assert torch.equal(largest.view(dtype), weights.amax(1))
