"""A window holds exactly the rows that its decision day may see, in both alignments."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.stocks.dataset import Samples, Windows
from manyhead.stocks.factors import Factors
from manyhead.stocks.labels import Alignment, next_return

DAYS, STOCKS, T1 = 60, 3, 5
CLOSE = np.cumprod(1 + np.random.default_rng(0).normal(0, 0.02, (DAYS, STOCKS)), axis=0).astype(np.float32)


def windows(kind: Literal["information", "official"], outputs: int = 2) -> Windows:
    # the only factor of a row is the row's own number, so that a window tells where it was cut
    rows = np.broadcast_to(np.arange(DAYS, dtype=np.float32)[:, None, None], (DAYS, STOCKS, 1)).copy()
    time = np.stack([np.arange(DAYS + outputs), np.arange(DAYS + outputs)], axis=1)
    return Windows(next_return(CLOSE), Factors(("ROW",), rows), time, Alignment(kind, T1, outputs))


def test_information_alignment_ends_every_input_at_the_decision_row() -> None:
    batch = windows("information").batch([20])
    assert batch.factors[0, :, 0, 0].tolist() == [16, 17, 18, 19, 20]
    newest = CLOSE[20] / CLOSE[19] - 1
    assert torch.allclose(batch.returns[0, -1], torch.from_numpy(newest))
    assert torch.allclose(batch.flow[0, 0], torch.from_numpy(CLOSE[22] / CLOSE[21] - 1))
    assert batch.time[0, :, 0].tolist() == list(range(16, 23))


def test_official_alignment_ends_factors_two_rows_before_and_scores_the_second_output() -> None:
    cut = windows("official")
    batch = cut.batch([20])
    assert batch.factors[0, :, 0, 0].tolist() == [14, 15, 16, 17, 18]
    # the newest return input is flow of row 18 = close[20] / close[19] - 1, known at the decision
    assert torch.allclose(batch.returns[0, -1], torch.from_numpy(CLOSE[20] / CLOSE[19] - 1))
    assert torch.allclose(batch.flow[0, cut.alignment.step], torch.from_numpy(CLOSE[22] / CLOSE[21] - 1))


def test_within_a_span_of_81_rows_the_released_code_has_60_predictions() -> None:
    cut = Windows(
        next_return(CLOSE), windows("official").factors, np.zeros((99, 2), int), Alignment("official")
    )
    assert len(cut.decision_rows(range(100, 181), within=True)) == 60


@pytest.mark.parametrize("kind", ["information", "official"])
def test_days_after_the_decision_are_those_expected_on_it(kind: Literal["information", "official"]) -> None:
    cut = windows(kind, 3)
    # expected days are told apart by their sign: -(1000 * row + days ahead)
    ahead = -(1000 * np.arange(DAYS)[:, None] + np.arange(1, 4))
    expecting = replace(cut, ahead=np.repeat(ahead[..., None], 2, axis=2)).batch([20, 31]).time[..., 0]
    plain = cut.batch([20, 31]).time[..., 0]
    decided = torch.tensor([[20], [31]])
    assert torch.equal(expecting[plain <= decided], plain[plain <= decided])
    later = torch.where(plain > decided, -(1000 * decided + plain - decided), plain)
    assert torch.equal(expecting, later)


@given(
    kind=st.sampled_from(["information", "official"]),
    outputs=st.integers(2, 4),
    start=st.integers(0, 30),
    length=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_labelled_windows_know_every_target_by_the_end_of_their_span(
    kind: Literal["information", "official"], outputs: int, start: int, length: int
) -> None:
    span = range(start, start + length)
    cut = windows(kind, outputs)
    for row in cut.decision_rows(span, labelled=True):
        last_target = row - cut.alignment.step + outputs - 1
        assert last_target + 2 <= span[-1]


@pytest.mark.parametrize("kind", ["information", "official"])
def test_prices_after_the_decision_day_change_no_input(kind: Literal["information", "official"]) -> None:
    decision = 30
    before = windows(kind).batch([decision])
    altered = CLOSE.copy()
    altered[decision + 1 :] *= 7
    cut = windows(kind)
    after = Windows(next_return(altered), cut.factors, cut.time, cut.alignment).batch([decision])
    assert torch.equal(before.returns, after.returns)
    assert torch.equal(before.trend, after.trend)
    assert not torch.equal(before.flow, after.flow)  # the targets do lie in the future


def test_one_batch_equals_its_windows_one_by_one() -> None:
    cut = windows("information")
    rows = np.array([10, 40, 11, 58, 59])
    together = Samples(cut, rows).batch(torch.arange(5))
    for place, row in enumerate(rows):
        alone = cut.batch([row])
        for left, right in zip(together, alone, strict=True):
            assert torch.equal(left[place], right[0])
    assert not together.known[-1].any()  # the newest rows have no target yet
