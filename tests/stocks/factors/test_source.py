"""Factor sources: held, joined, and computed block by block."""

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.factors import (
    Chosen,
    Factors,
    FactorSource,
    Joined,
    LaggedAlpha360,
    alpha158,
    join,
    store,
)
from tests.stocks.factors.panels import random_panel


def some(names: tuple[str, ...], days: int = 5) -> Factors:
    random = np.random.default_rng(len(names))
    return Factors(names, random.random((days, 3, len(names)), np.float32))


def test_joined_rows_stand_side_by_side() -> None:
    a, b = some(("A", "B")), some(("C",))
    both = join([a, b])
    assert isinstance(both, FactorSource)
    assert (both.names, both.days) == (("A", "B", "C"), 5)
    np.testing.assert_array_equal(both.rows(1, 4), np.concatenate([a.values, b.values], axis=-1)[1:4])
    assert join([a]) is a


def test_storing_equals_asking_whatever_the_threads() -> None:
    source = LaggedAlpha360(random_panel(75, 4, gaps=0.1), (0, 3))
    whole = source.rows(0, 75)
    assert store(source, threads=1).values.tobytes() == whole.tobytes()
    assert store(source, threads=2).values.tobytes() == whole.tobytes()
    assert store(source, stop=40).values.tobytes() == whole[:40].tobytes()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="'A' comes twice"):
        join([some(("A",)), some(("B", "A"))])
    with pytest.raises(InputError, match="same days"):
        Joined((some(("A",)), some(("B",), days=6)))
    with pytest.raises(InputError, match="at least one"):
        join([])
    with pytest.raises(InputError, match="values must be"):
        Factors(("A",), np.zeros((2, 2, 2), np.float32))


def test_the_factors_that_both_sets_have_are_joined_once() -> None:
    panel = random_panel(70, 3)
    lagged, rolling = LaggedAlpha360(panel), alpha158(panel, (5,))
    both = join([lagged, rolling])
    assert len(both.names) == 360 + 13 + 29 - 4
    for name in ("OPEN0", "HIGH0", "LOW0", "VWAP0"):  # they are the same numbers
        np.testing.assert_array_equal(
            Chosen(lagged, (name,)).rows(0, 70), Chosen(rolling, (name,)).rows(0, 70)
        )
    np.testing.assert_array_equal(
        Chosen(both, ("CLOSE7", "KMID")).rows(3, 9)[..., 1], rolling.values[3:9, :, 0]
    )
    with pytest.raises(InputError, match="no factor 'ROC60'"):
        Chosen(both, ("ROC60",))
