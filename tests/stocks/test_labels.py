"""Labels and the time line: what each row is, when it is known, and which rows a sample reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.calendar import calendar_index, running_index
from manyhead.stocks.labels import (
    Alignment,
    available,
    delayed,
    filled,
    known_at,
    known_within,
    next_return,
    trend,
)


def walk(days: int, symbols: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return 100 * np.exp(np.cumsum(0.02 * generator.standard_normal((days, symbols)), axis=0))


def test_a_label_is_the_return_from_tomorrow_to_the_day_after() -> None:
    close = np.array([[10.0], [20.0], [30.0], [24.0]])
    np.testing.assert_allclose(next_return(close)[:, 0], [0.5, -0.2, np.nan, np.nan])
    np.testing.assert_allclose(next_return(close, 0, 1)[:, 0], [1.0, 0.5, -0.2, np.nan])
    assert np.isnan(next_return(close[:1])).all()


def test_missing_prices_leave_exactly_the_labels_that_need_them_missing() -> None:
    close = walk(8, 3)
    close[4, 1] = np.nan
    flow = next_return(close)
    assert np.flatnonzero(~available(flow)[:, 1]).tolist() == [2, 3, 6, 7]
    assert filled(flow)[2, 1] == 0
    assert trend(flow)[2, 1] == 0
    assert np.array_equal(trend(flow)[:6, 0], (flow[:6, 0] > 0).astype(int))


def test_a_price_of_zero_gives_no_infinite_label() -> None:
    close = walk(6, 1)
    close[2] = 0.0
    assert not np.isinf(next_return(close)).any()


@given(row=st.integers(0, 25), buy=st.integers(0, 3), hold=st.integers(1, 3))
def test_a_row_is_known_at_the_day_that_known_at_names_and_not_before(row: int, buy: int, hold: int) -> None:
    sell = buy + hold
    close = walk(40, 2)
    known = known_at(row, sell)
    later, earlier = close.copy(), close.copy()
    later[known + 1 :] *= 3
    earlier[known] *= 3
    flow = next_return(close, buy, sell)
    assert np.array_equal(flow[row], next_return(later, buy, sell)[row])
    assert not np.array_equal(flow[row], next_return(earlier, buy, sell)[row])


def test_the_last_labels_of_a_span_are_left_out_because_they_need_later_prices() -> None:
    assert known_within(range(10, 20)) == range(10, 18)
    assert all(known_at(row) in range(10, 20) for row in known_within(range(10, 20)))
    assert len(known_within(range(10, 11))) == 0


def test_official_samples_of_a_span_are_those_of_the_released_code() -> None:
    alignment = Alignment()
    assert len(alignment.starts(range(0, 81))) == 60  # 81 rows, 20 + 2 of them in each window
    sample = alignment.window(7)
    assert sample.series == sample.factors == range(7, 27)
    assert sample.targets == range(27, 29)
    assert sample.targets[sample.step] == sample.decision == 28  # the last output row is the signal
    assert known_at(sample.series[-1]) == sample.decision
    assert sample.decision - sample.factors[-1] == 2  # two days of factors are not used


def test_information_samples_end_at_the_decision() -> None:
    sample = Alignment("information").window(7)
    assert sample.factors == range(7, 27)
    assert sample.series == range(5, 25)
    assert sample.decision == sample.factors[-1] == known_at(sample.series[-1]) == 26
    assert sample.targets[sample.step] == sample.decision
    assert sample.targets == range(26, 28)


@pytest.mark.parametrize("kind", ["official", "information"])
@given(
    inputs=st.integers(1, 12),
    outputs=st.integers(2, 5),
    start=st.integers(0, 20),
    length=st.integers(1, 60),
    labelled=st.booleans(),
)
def test_no_sample_reads_what_is_unknown_at_its_decision(
    kind: str, inputs: int, outputs: int, start: int, length: int, labelled: bool
) -> None:
    alignment = Alignment(kind, inputs, outputs)
    span = range(start, start + length)
    starts = alignment.starts(span, labelled)
    for first in starts:
        sample = alignment.window(first)
        assert max(known_at(row) for row in sample.series) <= sample.decision
        assert max(sample.factors) <= sample.decision
        assert len(sample.series) == len(sample.factors) == inputs
        assert sample.targets[sample.step] == sample.decision
        assert min(*sample.series, *sample.factors) >= span.start
        assert (max(sample.targets) if labelled else sample.decision) < span.stop
        assert alignment.start(sample.decision) == first
    if starts:  # and no further sample would fit at either end
        assert min(alignment.window(starts[0] - 1).series) < span.start
        after = alignment.window(starts[-1] + 1)
        assert (max(after.targets) if labelled else after.decision) >= span.stop


def test_delayed_series_hold_what_was_known() -> None:
    flow = next_return(walk(12, 2))
    moved = delayed(flow, 2)
    assert np.isnan(moved[:2]).all()
    assert np.array_equal(moved[2:], flow[:-2], equal_nan=True)
    assert np.array_equal(delayed(flow, 0), flow, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: next_return(walk(5, 1), 2, 2), "buy"),
        (lambda: next_return(walk(5, 1), -1, 2), "buy"),
        (lambda: Alignment("sideways"), "align"),  # type: ignore[arg-type]
        (lambda: Alignment(input_days=0), "input_days"),
        (lambda: Alignment("official", output_days=1), "output_days"),
        (lambda: delayed(walk(5, 1), -1), "rows"),
        (lambda: running_index(-1), "rows"),
    ],
)
def test_wrong_arguments_are_named(call: object, names: str) -> None:
    with pytest.raises(InputError, match=names):
        call()  # type: ignore[operator]


def test_the_running_index_begins_in_march_and_wraps() -> None:
    index = running_index(300)
    assert index[0].tolist() == [2, 0]
    assert index[209].tolist() == [11, 20]
    assert index[210].tolist() == [0, 0]
    assert np.array_equal(index[:48], index[252:])


def test_the_calendar_index_is_the_calendar() -> None:
    dates = np.array(["2023-12-29", "2024-01-02", "2024-02-29", "1969-12-31"], dtype="datetime64[D]")
    assert calendar_index(dates).tolist() == [[11, 28], [0, 1], [1, 28], [11, 30]]
