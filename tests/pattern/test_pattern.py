"""All forms of a pattern are one set of pairs; borders and special cases are those of the papers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.pattern import (
    Blocks,
    Causal,
    Chosen,
    Everything,
    Explicit,
    GridPartition,
    Halo,
    PerHead,
    PerSample,
    Prefix,
    Shifted,
    Valid,
    Window,
)
from manyhead.pattern.dialects import from_mask, from_natten, picture, to_natten
from manyhead.testing.patterns import check_pattern, grids, patterns


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_form_is_the_same_set_of_pairs(data: st.DataObject) -> None:
    grid = data.draw(grids())
    check_pattern(data.draw(patterns(grid)), grid)


def naten_rule(tokens: int, size: int, stride: int, dilation: int, causal: bool) -> np.ndarray:
    """The rule of the gna card, one query and key at a time."""
    mask = np.zeros((tokens, tokens), bool)
    for p in range(tokens):
        group, x = p % dilation, p // dilation
        length = (tokens - group + dilation - 1) // dilation
        if causal:
            leader = min(x // stride * stride + stride - 1, length - 1)
            seen = range(max(leader - size + 1, 0), x + 1)
        else:
            leader = min(x // stride * stride + stride // 2, length - 1)
            start = min(max(leader - size // 2, 0), length - size)
            seen = range(start, start + size)
        for y in seen:
            mask[p, y * dilation + group] = True
    return mask


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 7), st.integers(1, 7), st.integers(1, 3), st.booleans(), st.integers(0, 9))
def test_window_follows_the_rule(size: int, stride: int, dilation: int, causal: bool, more: int) -> None:
    tokens, stride = size * dilation + more, min(size, stride)
    mask = Window(size, stride, dilation, causal).mask(tokens).numpy()
    assert (mask == naten_rule(tokens, size, stride, dilation, causal)).all()


def test_interior_is_the_same_under_every_border() -> None:
    shift, pad, wrap = (Window(5, border=border).mask(12) for border in ("shift", "pad", "wrap"))
    assert torch.equal(shift[2:-2], pad[2:-2])
    assert torch.equal(shift[2:-2], wrap[2:-2])
    assert torch.equal(Window(5, border="valid").mask(12), shift[2:-2])
    assert pad.sum(1).tolist() == [3, 4, *[5] * 8, 4, 3]
    assert wrap.sum(1).unique().tolist() == [5]


def test_special_points_of_the_window() -> None:
    grid = (8, 12)
    assert Window((8, 12)).same(Everything(), grid)
    assert Window((4, 6), (4, 6)).same(Blocks((4, 6)), grid)
    assert Window(8, causal=True).same(Causal(), (8,))
    assert Window((-1, 3)).same(Everything() & Window((-1, 3)), grid)
    assert Window((3, 3), causal=(True, False)).same(
        Window((3, -1), causal=(True, False)) & Window((-1, 3)), grid
    )


def test_blocks_lattices_halos_and_shifts() -> None:
    assert Blocks(3).mask(7).sum(1).tolist() == [3, 3, 3, 3, 3, 3, 1]
    assert GridPartition(3).mask(6)[1].nonzero().flatten().tolist() == [1, 3, 5]
    assert Halo(4, 0).same(Blocks(4), (10,))
    assert Halo(1, 2).same(Window(5, border="pad"), (9,))
    assert Shifted(4, 0).same(Blocks(4), (8,))
    swin = Shifted(4, 2).mask(8)
    assert swin[0].nonzero().flatten().tolist() == [0, 1]
    assert Shifted(4, 2, "wrap").mask(8)[0].nonzero().flatten().tolist() == [0, 1, 6, 7]


def test_prefix_tokens_see_and_are_seen() -> None:
    mask = (Prefix(2, sees_all=True) | Window(3)).mask(6)
    assert mask[:, :2].all()
    assert mask[:2].all()
    assert Prefix(3).pairs((2, 4)) == 24


def test_members_differ_by_sample_and_head() -> None:
    valid = (Window(3) & Valid((2, 5))).mask(5)
    assert valid.shape == (2, 1, 5, 5)
    assert not valid[0, 0, :, 2:].any()
    assert torch.equal(valid[1, 0], Window(3).mask(5))
    heads = PerHead((Window(3), Causal()))
    assert torch.equal(heads.mask(5)[0, 1], Causal().mask(5))
    samples = PerSample((heads, heads))
    assert samples.mask(5).shape == (2, 2, 5, 5)
    for pattern in (Window(3) & Valid((2, 5)), heads, samples):
        assert pattern.pairs(5) == int(pattern.mask(5).sum())


def test_chosen_queries_are_rows_of_the_mask() -> None:
    chosen = Chosen(Window((3, 3)), ((0, 0), (2, 3), (1, 1)))
    rows = Window((3, 3)).mask((4, 5))[[0, 13, 6]]
    assert torch.equal(chosen.mask((3,), (4, 5)), rows)
    assert chosen.pairs((3,), (4, 5)) == int(rows.sum())


@pytest.mark.parametrize(
    ("pattern", "grid"),
    [
        (Everything(), (6,)),
        (Causal(), (7,)),
        (Causal((True, False)), (3, 4)),
        (Window(5), (11,)),
        (Window(4, 2), (12,)),
        (Window(3, dilation=2, causal=True), (11,)),
        (Window((3, 5)), (7, 9)),
        (Window((3, 5), border="pad"), (7, 9)),
        (Window(5, border="wrap"), (9,)),
        (Blocks((2, 3)), (6, 6)),
        (GridPartition((3, 2)), (6, 8)),
        (Halo(4, 1), (12,)),
        (Shifted(4), (12,)),
        (Window((3, 3)) & Causal((True, False)), (6, 5)),
        (Window(3) | Prefix(2), (10,)),
    ],
)
def test_from_mask_finds_an_expression(pattern: object, grid: tuple[int, ...]) -> None:
    mask = pattern.mask(grid)  # type: ignore[attr-defined]
    found = from_mask(mask, grid)
    assert torch.equal(found.mask(grid), mask)
    assert not isinstance(found, Explicit)


def test_from_mask_keeps_what_has_no_structure() -> None:
    mask = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    found = from_mask(mask, 9)
    assert isinstance(found, Explicit)
    assert torch.equal(found.mask(9), mask)


def test_natten_dialect() -> None:
    arguments = to_natten(Window((3, 4), (1, 2), (2, 1), (True, False)), (8, 9))
    assert arguments == {
        "kernel_size": (3, 4),
        "stride": (1, 2),
        "dilation": (2, 1),
        "is_causal": (True, False),
    }
    assert from_natten(**arguments) == Window((3, 4), (1, 2), (2, 1), (True, False))
    assert to_natten(Causal(), (8,))["kernel_size"] == (8,)
    assert to_natten(Blocks(4), (8,))["stride"] == (4,)
    for pattern in (Window(3, border="wrap"), Prefix(1), Window(3) | Prefix(2), Window(3) & Valid((2,))):
        with pytest.raises(ValueError, match="NATTEN"):
            to_natten(pattern, (8,))


def test_pictures_show_what_is_seen() -> None:
    assert picture(Window(3), (5,)).splitlines() == ["###..", "###..", ".###.", "..###", "..###"]
    assert picture(Window((3, 3)), (4, 4), query=(0, 0)).splitlines() == ["Q##.", "###.", "###.", "...."]
    assert picture(Window(3) & Valid((2, 3)), (3,), sample=0).splitlines() == ["##.", "##.", "##."]


def test_sentences_and_values() -> None:
    assert Window(7).describe() == (
        "Each query sees a window of 7 tokens around it, moved inside the grid at borders."
    )
    assert "causal on axis 0" in Window((3, 3), causal=(True, False)).describe()
    assert Window([3, 3]) == Window((3, 3))  # type: ignore[arg-type]
    assert hash(Window(3) & Causal()) == hash(Window(3) & Causal())
    assert Window(7).flops(64, heads=2, head_dim=8, batch=3) == 4 * 64 * 7 * 2 * 8 * 3
