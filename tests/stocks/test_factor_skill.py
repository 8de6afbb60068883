"""The factor table: coefficients against their definition, and a choice that finds the planted factor."""

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.factors import Chosen, Factors
from manyhead.stocks.metrics import daily_ic, daily_rank_ic
from manyhead.stocks.preprocess import factor_skill, notable_factors

RANDOM = np.random.default_rng(3)
FLOW = RANDOM.normal(0, 0.02, (80, 40))
FLOW[RANDOM.random(FLOW.shape) < 0.1] = np.nan
NOISE = RANDOM.normal(size=(80, 40, 4))
NOISE[..., 1] = -np.nan_to_num(FLOW) * 20 + NOISE[..., 1]  # upside down
NOISE[..., 2] = 1  # never a coefficient
NOISE[5:9, :, 3] = np.nan
SOURCE = Factors(("NOISE", "INVERSE", "CONSTANT", "GAPPY"), NOISE.astype(np.float32))


def test_each_row_is_the_factor_alone_over_the_days_asked_for() -> None:
    table = factor_skill(SOURCE, FLOW, range(4, 60))
    for index, row in enumerate(table.iter_rows(named=True)):
        ic = daily_ic(SOURCE.values[4:60, :, index], FLOW[4:60])
        assert row["factor"] == SOURCE.names[index]
        assert row["days"] == np.isfinite(ic).sum()
        if row["factor"] == "CONSTANT":
            assert np.isnan([row["ic"], row["ic_std"], row["rank_ic"], row["ic_positive"]]).all()
            continue
        ic = ic[np.isfinite(ic)]
        expected = [ic.mean(), ic.std(), (ic > 0).mean(), (np.abs(ic) > 0.02).mean()]
        np.testing.assert_allclose([row[k] for k in ("ic", "ic_std", "ic_positive", "ic_notable")], expected)
        ranked = daily_rank_ic(SOURCE.values[4:60, :, index], FLOW[4:60])
        np.testing.assert_allclose(row["rank_ic"], np.nanmean(ranked))


def test_the_choice_keeps_what_ranks_either_way_and_returns_after_the_rows_do_not_matter() -> None:
    table = factor_skill(SOURCE, FLOW, range(0, 60))
    assert notable_factors(table, least=0.1) == ("INVERSE",)
    assert Chosen(SOURCE, notable_factors(table, least=0.1)).rows(0, 2).shape == (2, 40, 1)
    later = FLOW.copy()
    later[60:] = 9.0
    assert factor_skill(SOURCE, later, range(0, 60)).equals(table, null_equal=True)
    with pytest.raises(InputError, match="no factor has"):
        notable_factors(table, least=0.99)


def test_returns_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(80, 40\)"):
        factor_skill(SOURCE, FLOW[:, :-1], range(0, 10))
    with pytest.raises(InputError, match="at least one row"):
        factor_skill(SOURCE, FLOW, range(3, 3))
