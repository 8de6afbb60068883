"""Every kernel equals the dense definition, output and gradients, for random grids and patterns."""

import itertools
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import manyhead.kernels.masks as masks
import manyhead.kernels.windows as windows
from manyhead.attention import KERNELS, RelativeBias, assert_plan, attend, merge, parse_bytes, plan
from manyhead.kernels.flex import Flex
from manyhead.kernels.unfused import neighborhood_av, neighborhood_qk
from manyhead.pattern import (
    Blocks,
    Causal,
    Chosen,
    Everything,
    Explicit,
    GridPartition,
    Halo,
    Pattern,
    PerHead,
    PerSample,
    Prefix,
    Valid,
    Window,
)
from manyhead.testing.patterns import grids, patterns

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def tensors(
    grid: tuple[int, ...],
    query_grid: tuple[int, ...] | None = None,
    batch: int = 1,
    heads: int = 2,
    key_heads: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Queries, keys, values and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    query_grid = query_grid or grid
    shapes = [(batch, *query_grid, heads, 4), (batch, *grid, key_heads, 4), (batch, *grid, key_heads, 5)]
    found = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    upstream = torch.randn((batch, *query_grid, heads, 5), generator=generator, dtype=dtype)
    return [*(x.requires_grad_() for x in found), upstream]


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax over a mask, written from the definition, apart from the library."""
    groups = q.shape[-2] // k.shape[-2]
    query = q.flatten(1, -3)
    key, value = (x.flatten(1, -3).repeat_interleave(groups, 2) for x in (k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * scale
    weights = torch.where(mask, logits.exp(), 0.0)
    total = weights.sum(-1)
    out = torch.einsum(
        "bhqk,bkhd->bqhd", weights / total.clamp_min(torch.finfo(total.dtype).tiny)[..., None], value
    )
    return out.reshape(*q.shape[:-1], -1), total.log().transpose(1, 2).reshape(q.shape[:-1])


def assert_equal(kernel: str, pattern: Pattern, inputs: list[Tensor], grid: tuple[int, ...]) -> None:
    """Output and gradients of a kernel against the definition."""
    q, k, v, upstream = inputs
    tolerance = TOLERANCE[q.dtype]
    expected, _ = dense(q, k, v, pattern.mask(tuple(q.shape[1:-2]), grid), 0.4)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    out = attend(q, k, v, pattern, scale=0.4, kernel=kernel)
    assert isinstance(out, Tensor)
    found = torch.autograd.grad(out, (q, k, v), upstream)
    assert (out - expected).abs().max() < tolerance
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() < tolerance * (1 + theirs.abs().max())


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_windows_equal_the_definition(data: st.DataObject) -> None:
    grid = data.draw(grids(most=40))
    pattern = data.draw(patterns(grid))
    key_heads, groups = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    inputs = tensors(grid, None, data.draw(st.integers(1, 2)), key_heads * groups, key_heads, dtype)
    logits = data.draw(st.sampled_from([1, 50, 1000, windows.LOGITS]))  # many small chunks and parts
    kinds = data.draw(st.sampled_from([0, masks.KINDS]))  # with and without a table of kinds of tiles
    with patch.object(windows, "LOGITS", logits), patch.object(masks, "KINDS", kinds):
        assert_equal("windows", pattern, inputs, grid)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_other_kernels_equal_the_definition(data: st.DataObject) -> None:
    grid = data.draw(grids(most=30))
    pattern = data.draw(patterns(grid))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    inputs = tensors(grid, None, 2, 2, data.draw(st.sampled_from([1, 2])), dtype)
    for kernel in ("reference", "sdpa", "auto"):
        assert_equal(kernel, pattern, inputs, grid)
    refusals = plan(*inputs[:3], pattern).refusals
    if "blocks" not in refusals:
        assert_equal("blocks", pattern, inputs, grid)


@pytest.mark.parametrize(
    ("pattern", "grid"),
    [
        (Blocks(4), (12,)),
        (Blocks((2, 3)), (4, 9)),
        (GridPartition((2, 3)), (4, 9)),
        (Blocks((2, -1)) & GridPartition((-1, 4)), (6, 8)),
        (Window((4, 3), (4, 3)), (8, 9)),
        (Blocks((3, -1)), (6, 4)),
    ],
)
def test_blocks_equal_the_definition(pattern: Pattern, grid: tuple[int, ...]) -> None:
    assert_equal("blocks", pattern, tensors(grid, batch=2, heads=4), grid)


@pytest.mark.parametrize("kernel", ["windows", "reference"])
def test_log_sum_exp_and_its_gradient(kernel: str) -> None:
    q, k, v, _ = tensors((5, 6), heads=4)
    pattern = Window((3, 4), (2, 1)) | Prefix(2)
    expected = dense(q, k, v, pattern.mask((5, 6)), 0.5)[1]
    found = attend(q, k, v, pattern, kernel=kernel, scale=0.5, return_lse=True)[1]
    assert (found - expected).abs().max() < 1e-12
    weight = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k))
    ours = torch.autograd.grad((found * weight).sum(), (q, k))
    for a, b in zip(ours, wanted, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_gradients_by_finite_differences() -> None:
    q, k, v, _ = tensors((7,), heads=1, key_heads=1)
    run = lambda *x: attend(*x, Window(3, dilation=2) | Prefix(1), kernel="windows", return_lse=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, (q, k, v))


def test_samples_heads_and_lengths_of_their_own() -> None:
    q, k, v, g = tensors((8,), batch=2, heads=4)
    heads = PerHead((Window(3), Causal(), Window(3), Window(5) & Causal()))
    cases = [
        heads,
        PerSample((Window(3), Causal())),
        Window(3) & Valid((4, 8)),
        Causal() & Valid((1, 6)),
        PerSample((heads, PerHead((Causal(),) * 4))),
    ]
    for pattern in cases:
        for kernel in ("auto", "windows", "sdpa", "reference"):
            assert_equal(kernel, pattern, [q, k, v, g], (8,))


def test_a_query_that_sees_nothing_gives_zeros_and_no_nan() -> None:
    q, k, v, g = tensors((6,))
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    for kernel in ("windows", "sdpa", "reference"):
        out = attend(q, k, v, Explicit(mask) & Causal(), kernel=kernel)
        assert isinstance(out, Tensor)
        assert (out[:, 2] == 0).all()
        for gradient in torch.autograd.grad(out, (q, k, v), g):
            assert torch.isfinite(gradient).all()


def test_chosen_queries_and_valid_borders() -> None:
    q, k, v, _ = tensors((5, 6))
    full = attend(q, k, v, Window((3, 3)))
    assert isinstance(full, Tensor)
    picked = torch.stack([q[:, 0, 0], q[:, 4, 5]], 1)
    some = attend(picked, k, v, Chosen(Window((3, 3)), ((0, 0), (4, 5))))
    assert torch.allclose(some, torch.stack([full[:, 0, 0], full[:, 4, 5]], 1))
    inner = attend(q, k, v, Window((3, 3), border="valid"), kernel="windows")
    assert torch.allclose(inner, full[:, 1:-1, 1:-1])


def test_cross_attention_between_grids() -> None:
    q, k, v, g = tensors((3, 4), (7,))
    assert_equal("auto", Everything(), [q, k, v, g], (3, 4))
    q, k, v, g = tensors((9,), (7,))
    for kernel in ("windows", "sdpa", "reference"):
        assert_equal(kernel, Prefix(4), [q, k, v, g], (9,))


def test_additional_keys_are_dense_attention_over_both() -> None:
    q, k, v, g = tensors((6,), heads=4)
    ak, av = (torch.randn(1, 3, 2, n, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    mask = torch.cat([Window(3).mask(6), torch.ones(6, 3, dtype=torch.bool)], 1)
    expected, _ = dense(q, torch.cat([k, ak], 1), torch.cat([v, av], 1), mask, 0.5)
    out = attend(q, k, v, Window(3), additional_keys=ak, additional_values=av)
    assert (out - expected).abs().max() < 1e-12
    wanted = torch.autograd.grad(expected, (q, k, ak, av), g)
    for a, b in zip(torch.autograd.grad(out, (q, k, ak, av), g), wanted, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_merge_is_softmax_over_the_union_and_survives_large_logits() -> None:
    q, k, v, _ = tensors((8,))
    with torch.no_grad():
        parts = [attend(q * 1e3, k, v, p, return_lse=True) for p in (Causal(), Explicit(~Causal().mask(8)))]
        out, lse = merge([p[0] for p in parts], [p[1] for p in parts])
        whole = attend(q * 1e3, k, v, Everything(), return_lse=True, kernel="windows")
    assert (out - whole[0]).abs().max() < 1e-9
    assert (lse - whole[1]).abs().max() < 1e-9


def test_a_bias_is_added_to_the_logits() -> None:
    q, k, v, _ = tensors((6,))
    bias = torch.randn(2, 6, 6, dtype=torch.float64)
    for pattern in (Window(3), Causal(), Everything()):
        both = [attend(q, k, v, pattern, bias=bias, kernel=kernel) for kernel in ("sdpa", "reference")]
        assert torch.allclose(*both)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_relative_bias_is_its_dense_self_in_every_kernel(data: st.DataObject) -> None:
    grid = data.draw(grids(most=30))
    pattern = data.draw(patterns(grid))
    key_heads, groups = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    q, k, v, g = tensors(grid, None, 2, key_heads * groups, key_heads)
    table = torch.randn(key_heads * groups, *(data.draw(st.sampled_from([1, 3, 7])) for _ in grid)).double()
    bias = RelativeBias(table.requires_grad_(), data.draw(st.integers(1, 2)))
    # the definition, pair by pair
    dense_bias = torch.empty(len(table), *grid, *grid, dtype=torch.float64)
    for query in itertools.product(*map(range, grid)):
        for key in itertools.product(*map(range, grid)):
            steps = [(b - a) // bias.dilation for a, b in zip(query, key, strict=True)]  # type: ignore[operator]
            place = [
                min(max(step + n // 2, 0), n - 1) for step, n in zip(steps, table.shape[1:], strict=True)
            ]
            dense_bias[(slice(None), *query, *key)] = table.detach()[(slice(None), *place)]
    flat = dense_bias.reshape(len(table), q[0, ..., 0, 0].numel(), -1)
    assert (bias.dense(grid, grid) == flat).all()
    wanted = attend(q, k, v, pattern, bias=bias.dense(grid, grid), kernel="reference")
    wanted_gradients = torch.autograd.grad(wanted, (q, k, v, table), g)  # type: ignore[arg-type]
    with patch.object(windows, "LOGITS", data.draw(st.sampled_from([1, 100, windows.LOGITS]))):
        for kernel in plan(q, k, v, pattern, bias=bias).seconds:
            out = attend(q, k, v, pattern, bias=bias, kernel=kernel)
            assert (out - wanted).abs().max() < 1e-10  # type: ignore[operator]
            gradients = torch.autograd.grad(out, (q, k, v, table), g)  # type: ignore[arg-type]
            for ours, theirs in zip(gradients, wanted_gradients, strict=True):
                assert (ours - theirs).abs().max() < 1e-10 * (1 + theirs.abs().max())


def test_windows_with_a_relative_bias_equal_the_unfused_primitives() -> None:
    q, k, v, _ = tensors((7, 9))
    window, table = Window((3, 5), dilation=(2, 1)), torch.randn(2, 5, 9, dtype=torch.float64)
    out = attend(q, k, v, window, scale=1.0, bias=RelativeBias(table, (2, 1)), kernel="windows")
    first, second, third = (x.movedim(-2, 1) for x in (q, k, v))
    weights = neighborhood_qk(first, second, window, table).softmax(-1)
    assert (out - neighborhood_av(weights, third, window).movedim(1, -2)).abs().max() < 1e-12  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    q, k, v, g = (x.detach().to(dtype).requires_grad_() for x in tensors((6, 7), dtype=torch.float32))
    exact = attend(*(x.double() for x in (q, k, v)), Window((3, 3)), kernel="reference")
    out = attend(q, k, v, Window((3, 3)), kernel="windows")
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() < 2e-2
    torch.autograd.backward(out, g)
    assert q.grad is not None
    assert q.grad.dtype == dtype


def test_flex_mask_mod_gives_the_same_forward_pass() -> None:
    q, k, v, _ = (x.detach() for x in tensors((5, 7), dtype=torch.float32))
    pattern = (Window((3, 3), (2, 1)) & Causal((True, False))) | Prefix(3)
    from manyhead.planning import request_of

    request = request_of(q, k, v, pattern, None, True, False)
    out, lse = Flex().run(q, k, v, request, 0.5, None)
    expected = attend(q, k, v, pattern, scale=0.5, kernel="windows", return_lse=True)
    assert (out - expected[0]).abs().max() < 1e-5
    assert (lse - expected[1]).abs().max() < 1e-5


def test_plan_names_a_kernel_and_every_refusal_in_a_sentence() -> None:
    q, k, v, _ = tensors((32, 32), dtype=torch.float32)
    found = plan(q, k, v, Window((5, 5)))
    assert found.kernel == "windows"
    assert found.pairs == 2 * 1024 * 25
    assert found.flops == 2 * 2 * 1024 * 25 * (4 + 5 + 4 * 3 + 4 + 5)
    assert set(found.refusals) | set(found.seconds) == set(KERNELS)
    for reason in found.refusals.values():
        assert len(reason.split()) > 4
    assert "windows" in found.describe()
    assert_plan(found, memory="1GiB", seconds=10)
    with pytest.raises(AssertionError, match="budget is 1,000"):
        assert_plan(found, memory="1KB")
    with pytest.raises(AssertionError, match="s, the budget"):
        assert_plan(found, seconds=1e-9)
    assert parse_bytes("2GiB") == 2 << 30


def test_windows_hold_no_array_that_grows_with_the_window() -> None:
    sizes = []
    for size in (5, 13, 21):
        inputs = [x.detach().requires_grad_() for x in tensors((24, 24), dtype=torch.float32)[:3]]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):  # noqa: B023
            saved: list[int] = []
            attend(*inputs, Window((size, size)), kernel="windows")
        sizes.append(sum(saved))
    assert len(set(sizes)) == 1


def test_halo_pattern_is_the_halo_of_its_block() -> None:
    q, k, v, g = tensors((7, 6))
    assert_equal("windows", Halo((3, 2), (1, 2)), [q, k, v, g], (7, 6))


def test_keys_outside_have_no_gradient() -> None:
    q, k, v, _ = tensors((12,))
    out = attend(q, k, v, Window(3, dilation=2), kernel="windows")
    (gradient,) = torch.autograd.grad(out[:, 4].sum(), v)
    seen = gradient.abs().sum((0, 2, 3)) > 0
    assert seen.nonzero().flatten().tolist() == [2, 4, 6]
    assert math.isfinite(float(gradient.sum()))
