"""Merging on flat vectors: the invariants of TIES, TALL-masks and Consensus."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.merging.masks import (
    consensus_mask,
    magnitude_mask,
    pack,
    storage_bits,
    tall_mask,
    unpack,
    usage,
    usage_histogram,
)
from manyhead.merging.ties import combine, elect, ties, trim, trim_rank
from manyhead.merging.vectors import apply, merged_keys, task_vectors, total

seeds = st.integers(0, 2**31)


def vectors(seed: int, tasks: int = 4, size: int = 97) -> torch.Tensor:
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed))


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_one_task_is_rebuilt_exactly(seed: int) -> None:
    row = vectors(seed, tasks=1)[0]
    row[::5] = 0
    assert torch.equal(tall_mask(row, row, 0.4), row != 0)
    assert torch.equal(consensus_mask([row != 0], 1), row != 0)  # one mask alone keeps its shape


def test_disjoint_supports_are_rebuilt_exactly_and_have_no_consensus() -> None:
    rows = vectors(0, tasks=3, size=90)
    owner = torch.arange(90) % 3
    rows = torch.where(owner == torch.arange(3)[:, None], rows, 0.0)
    masks = [tall_mask(row, total(rows), 7.0) for row in rows]
    for row, mask in zip(rows, masks, strict=True):
        assert torch.equal(mask * total(rows), row)
    assert not consensus_mask(masks, 2).any()
    assert consensus_mask(masks, 1).all()


@pytest.mark.parametrize(("lam", "marked"), [(0.3, True), (0.35, False)])
def test_identical_vectors_are_marked_iff_lambda_times_others_is_below_one(lam: float, marked: bool) -> None:
    rows = vectors(3, tasks=1).repeat(4, 1)  # 3 others: the bound is 1/3
    assert (tall_mask(rows[0], total(rows), lam) == marked).all()


@given(seeds, st.floats(0, 2), st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_masks_shrink_with_lambda_and_ignore_a_common_scale(seed: int, one: float, other: float) -> None:
    rows = vectors(seed)
    low, high = sorted((one, other))
    merged = total(rows)
    wide, narrow = tall_mask(rows[1], merged, low), tall_mask(rows[1], merged, high)
    assert (wide | ~narrow).all()
    assert torch.equal(tall_mask(rows[1] * 4, merged * 4, low), wide)  # powers of two scale exactly
    assert torch.equal(tall_mask(rows[1], merged, 0.0), rows[1] != 0)


def test_consensus_runs_from_plain_merging_to_the_base() -> None:
    rows = vectors(5)
    masks = [tall_mask(row, total(rows), 0.4) for row in rows]
    assert consensus_mask(masks, 0).all()
    assert not consensus_mask(masks, 5).any()
    assert int(usage(masks).max()) <= 4
    histogram = usage_histogram(masks)
    assert sum(histogram) == 97
    assert histogram[2] + histogram[3] + histogram[4] == int(consensus_mask(masks, 2).sum())


@given(seeds, st.sampled_from(["mean", "sum", "max"]), st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_ties_is_odd_and_blind_to_the_order_of_tasks(seed: int, how: str, order: list[int]) -> None:
    rows = vectors(seed).double()
    merged = ties(rows, 30, how)  # type: ignore[arg-type]
    torch.testing.assert_close(ties(-rows, 30, how), -merged)  # type: ignore[arg-type]
    torch.testing.assert_close(ties(rows[order], 30, how), merged)  # type: ignore[arg-type]


def test_ties_without_trimming_on_equal_signs_is_the_mean_or_the_sum() -> None:
    rows = vectors(7).abs() * vectors(8, tasks=1).sign()
    torch.testing.assert_close(ties(rows, 100, "mean"), rows.mean(0))
    torch.testing.assert_close(ties(rows, 100, "sum"), rows.sum(0))


def test_a_cancelled_sum_takes_the_sign_of_the_majority() -> None:
    rows = torch.tensor([[1.0, 2.0, 2.0, -3.0], [-1.0, 2.0, 2.0, -3.0]])
    assert elect(rows).tolist() == [1, 1, 1, -1]
    assert combine(rows, elect(rows), "mean").tolist() == [1, 2, 2, -3]


@pytest.mark.parametrize("keep", [1, 10, 33.3, 99, 100])
def test_trimming_keeps_one_entry_more_than_asked_unless_exact(keep: float) -> None:
    rows = vectors(11, tasks=2, size=200)
    asked = int(200 * keep / 100)
    assert (trim(rows, keep) != 0).sum(1).tolist() == [min(asked + 1, 200)] * 2
    assert (trim(rows, keep, exact=True) != 0).sum(1).tolist() == [asked] * 2
    assert int(magnitude_mask(rows[0], keep).sum()) == min(asked + 1, 200)


@given(seeds, st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_packing_masks_round_trips_at_eight_weights_a_byte(seed: int, size: int) -> None:
    mask = vectors(seed, tasks=1, size=size)[0] > 0
    packed = pack(mask)
    assert packed.numel() == -(-size // 8)
    assert torch.equal(unpack(packed, size), mask)


def test_storage_in_bits_for_two_tasks_of_three_weights_and_one_frozen() -> None:
    assert storage_bits(3, 1, 2) == {"individual": 7 * 32, "merged": 4 * 32, "masks": 7 * 32 + 2 * 3}


def test_excluded_and_integer_tensors_stay_the_base() -> None:
    base = {"w": torch.zeros(3), "head.w": torch.ones(2), "steps": torch.tensor(4)}
    model = {"w": torch.ones(3), "head.w": torch.zeros(5), "steps": torch.tensor(9)}
    assert merged_keys(base, ["head.*"]) == ["w"]
    merged = apply(base, total(task_vectors(base, [model], ["head.*"])), 0.5, ["head.*"])
    assert merged["w"].tolist() == [0.5] * 3
    assert merged["head.w"] is base["head.w"]
    assert int(merged["steps"]) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: task_vectors({"w": torch.ones(2)}, []), "at least one"),
        (lambda: task_vectors({"w": torch.ones(2)}, [{}]), "model 0 lacks the tensor 'w'"),
        (lambda: task_vectors({"w": torch.ones(2)}, [{"w": torch.ones(3)}]), r"\(3,\) in model 0"),
        (lambda: task_vectors({"n": torch.tensor(1)}, [{"n": torch.tensor(1)}]), "no floating-point"),
        (lambda: tall_mask(torch.ones(2), torch.ones(2), -1), "lambda must be"),
        (lambda: tall_mask(torch.ones(2), torch.ones(3), 1), "differ"),
        (lambda: trim_rank(10, 0), "above 0"),
        (lambda: trim_rank(10, 101), "at most 100"),
        (lambda: ties(torch.ones(2, 3), 20, "median"), "one of mean, sum, max"),  # type: ignore[arg-type]
        (lambda: unpack(torch.zeros(2, dtype=torch.uint8), 20), "has 3 bytes"),
    ],
)
def test_wrong_input_is_named(wrong: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong()  # type: ignore[operator]
