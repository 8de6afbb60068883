"""What several seeds say together: the verdict follows from the paired interval, or from the bound."""

import pytest

from manyhead.system import Measurement, interval, judge


def runs(
    here: list[float], baseline: list[float] | None, holds: list[bool | None], **more: str
) -> list[Measurement]:
    return [
        Measurement("accuracy", "above", None if baseline is None else baseline[i], value, holds[i], **more)  # type: ignore[arg-type]
        for i, value in enumerate(here)
    ]


@pytest.mark.parametrize(
    ("here", "baseline", "holds", "better", "verdict"),
    [
        ([2.0, 2.1, 2.2], [1.0, 1.0, 1.0], [True] * 3, "higher", "holds"),
        ([2.0, 2.1, 2.2], [1.0, 1.0, 1.0], [True] * 3, "lower", "opposite"),
        ([0.0, 0.1, 0.2], [1.0, 1.0, 1.0], [True] * 3, "lower", "holds"),
        ([1.1, 0.9, 1.0], [1.0, 1.0, 1.0], [True, False, False], "higher", "not seen"),
        ([2.0, 2.1, 2.2], [1.0, 1.0, 1.0], [True, True, False], "higher", "undecided"),  # a stricter claim
        ([2.0], [1.0], [True], "higher", "undecided"),  # one seed has no interval
        ([1.0, 1.1, 0.9], None, [True] * 3, "higher", "holds"),
        ([1.0, 1.1, 0.9], None, [True, False, True], "higher", "undecided"),
        ([1.0, 1.1, 0.9], None, [False] * 3, "higher", "not seen"),
        ([1.0, 1.1, 0.9], None, [None] * 3, "higher", "reported"),
    ],
)
def test_the_verdict(
    here: list[float], baseline: list[float] | None, holds: list[bool | None], better: str, verdict: str
) -> None:
    found = judge(runs(here, baseline, holds, better=better))
    assert found.verdict == verdict
    assert found.here == pytest.approx(sum(here) / len(here))
    assert found.seeds == len(here)


def test_the_interval_is_students_of_the_paired_difference_signed_as_the_paper_claims() -> None:
    found = judge(runs([3.0, 5.0, 7.0], [1.0, 2.0, 3.0], [True] * 3))
    # differences 2, 3, 4: mean 3, deviation 1, t of two degrees 4.3027
    assert found.interval == pytest.approx((3 - 4.3027 / 3**0.5, 3 + 4.3027 / 3**0.5), abs=1e-3)
    turned = judge(runs([3.0, 5.0, 7.0], [1.0, 2.0, 3.0], [True] * 3, better="lower"))
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert interval([1.0]) is None
    assert interval([1.0, float("nan")]) is None


def test_quantities_are_not_mixed() -> None:
    other = Measurement("loss", "below", None, 1.0, True)
    with pytest.raises(ValueError, match="exactly one quantity"):
        judge([*runs([1.0], None, [True]), other])
    with pytest.raises(ValueError, match="exactly one quantity"):
        judge([])
