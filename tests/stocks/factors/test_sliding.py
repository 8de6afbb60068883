"""Sliding statistics by merging: each equals a loop over windows, on any data."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from manyhead.stocks.factors.ranking import merged, quantiles, ranks, selected
from manyhead.stocks.factors.sliding import Tally, age_of_highest, highest, moments, plan, sums

numbers = st.floats(-8, 8, width=32).map(lambda x: np.float32(round(x * 2) / 2))  # many ties
gappy = arrays(np.float32, st.tuples(st.integers(1, 25), st.just(2)), elements=numbers | st.just(np.nan))
window_sets = st.sets(st.integers(2, 14), min_size=1, max_size=3).map(lambda s: tuple(sorted(s)))


@given(st.sets(st.integers(2, 300), min_size=1, max_size=6))
def test_a_plan_builds_every_window_from_parts_that_exist(windows: set[int]) -> None:
    known = {1}
    for step in plan(tuple(sorted(windows))):
        assert {step.newer, step.older} <= known
        assert step.newer + step.older == step.width
        known.add(step.width)
    assert windows <= known


def test_the_five_windows_of_alpha158_cost_seven_merges() -> None:
    assert [step.width for step in plan((5, 10, 20, 30, 60))] == [2, 3, 5, 10, 20, 30, 60]


@settings(max_examples=40, deadline=None)
@given(gappy, window_sets)
def test_sums_extremes_and_moments_equal_a_loop(values: np.ndarray, windows: tuple[int, ...]) -> None:
    tally = Tally.of(np.isfinite(values), windows)
    total, top, centre = (
        sums(np.nan_to_num(values), windows),
        highest(values, windows),
        moments(values, tally),
    )
    ages = age_of_highest(np.where(np.isnan(values), np.float32(np.inf), values), windows)
    for d in windows:
        for row, column in np.ndindex(values.shape):
            window = values[max(0, row - d + 1) : row + 1, column]
            known = window[~np.isnan(window)].astype(np.float64)
            assert tally.count[d][row, column] == len(known)
            assert total[d][row, column] == known.sum()
            assert ages[d][row, column] == len(window) - 1 - window.argmax()  # NaN wins, oldest first
            if len(known):
                assert top[d][row, column] == known.max()
                np.testing.assert_allclose(centre[d].mean[row, column], known.mean(), atol=1e-12)
                expected = ((known - known.mean()) ** 2).sum()
                np.testing.assert_allclose(centre[d].squares[row, column], expected, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(gappy, window_sets)
def test_quantiles_and_ranks_equal_a_loop(values: np.ndarray, windows: tuple[int, ...]) -> None:
    tally = Tally.of(np.isfinite(values), windows)
    found = quantiles(values, tally.count, (0.8, 0.2, 0.5), windows)
    twice = ranks(values, windows)
    for d in windows:
        for row, column in np.ndindex(values.shape):
            window = values[max(0, row - d + 1) : row + 1, column]
            if np.isnan(window[-1]):
                assert np.isnan([level[row, column] for level in found[d]]).all()
                continue
            known = window[~np.isnan(window)].astype(np.float64)
            expected = np.quantile(known, [0.8, 0.2, 0.5])
            np.testing.assert_allclose([level[row, column] for level in found[d]], expected, atol=1e-12)
            below, equal = (known < window[-1]).sum(), (known == window[-1]).sum()
            assert twice[d][row, column] == 2 * below + equal


@given(st.lists(numbers, max_size=13), st.lists(numbers, max_size=13))
def test_merging_two_ascending_lists_of_any_lengths_sorts_them(first: list, second: list) -> None:
    one, two = ([np.array([x]) for x in sorted(part)] for part in (first, second))
    whole = sorted(first + second)
    assert [x.item() for x in merged(one, two)] == [x.item() for x in whole]
    for k, value in enumerate(whole):
        assert selected(one, two, k).item() == value
