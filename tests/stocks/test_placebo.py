"""On permuted labels nothing is found: the mean IC is zero and p-values are uniform."""

from pathlib import Path

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.config import build
from manyhead.stocks.placebo import placebo
from manyhead.stocks.prepare import permuted
from manyhead.stocks.prices import read_prices
from manyhead.stocks.splits import choose_splits
from tests.stocks.market import SMALL, market, written


def test_permuting_keeps_each_day_s_returns_and_its_gaps() -> None:
    flow = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    flow[2, 3:5] = np.nan
    dealt = permuted(flow, 1)
    assert np.array_equal(np.sort(dealt, axis=1), np.sort(flow, axis=1), equal_nan=True)
    assert np.array_equal(np.isnan(dealt), np.isnan(flow))
    assert not np.array_equal(dealt, flow, equal_nan=True)


def test_without_skill_the_mean_ic_is_zero_and_p_values_are_uniform(tmp_path: Path) -> None:
    panel = read_prices(written(market(days=330, symbols=16), tmp_path / "prices.parquet"))
    config = build(
        SMALL, {"universe": {"count": 14}, "splits": {"test": 80, "step": 80}, "baselines": {"trials": 1}}
    )
    (split,) = choose_splits(config, panel.days).values()
    found = placebo(panel, split, config, runs=200)
    assert abs(found.mean) < 2.6 * found.error  # 99 % of placebos; a fixed seed makes it repeatable
    assert found.uniformity > 0.01
    with pytest.raises(InputError, match="runs must be at least 2, got 1"):
        placebo(panel, split, config, runs=1)
