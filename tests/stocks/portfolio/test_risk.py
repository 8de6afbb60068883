"""Measures of return and risk against closed forms and brute force."""

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.portfolio import performance, risk_analysis, simple_topk


def test_both_modes_by_hand() -> None:
    r = np.array([0.1, -0.05, 0.02])
    added = risk_analysis(r, "sum", periods=100)
    assert added["mean"] == pytest.approx(0.07 / 3)
    assert added["annualized_return"] == pytest.approx(7 / 3)
    assert added["max_drawdown"] == pytest.approx(-0.05)
    assert added["information_ratio"] == pytest.approx(added["mean"] / r.std(ddof=1) * 10)
    compounded = risk_analysis(r, "product", periods=100)
    growth = 1.1 * 0.95 * 1.02
    assert compounded["mean"] == pytest.approx(growth ** (1 / 3) - 1)
    assert compounded["std"] == pytest.approx(np.log([1.1, 0.95, 1.02]).std(ddof=1))
    assert compounded["annualized_return"] == pytest.approx(growth ** (100 / 3) - 1)
    assert compounded["max_drawdown"] == pytest.approx(-0.05)
    assert risk_analysis([np.nan, *r]) == risk_analysis(r)  # gaps are left out


def test_edges() -> None:
    assert np.isnan(risk_analysis([])["mean"])
    assert np.isnan(risk_analysis([0.01] * 5)["information_ratio"])
    with pytest.raises(InputError, match="'sum' or 'product'"):
        risk_analysis([0.1], "log")
    with pytest.raises(InputError, match="-100 %"):
        risk_analysis([0.1, -1.0], "product")
    with pytest.raises(InputError, match="gaps"):
        performance([np.nan])
    with pytest.raises(InputError, match="benchmark has 1 days"):
        performance([0.1, 0.2], [0.1])
    with pytest.raises(InputError, match=r"shape \(days,\)"):
        performance(np.zeros((2, 2)))


def test_performance_against_a_benchmark() -> None:
    rng = np.random.default_rng(0)
    bench = rng.normal(0.0004, 0.01, 500)
    measures = performance(2 * bench, bench)
    assert measures["beta"] == pytest.approx(2)
    assert measures["information_ratio"] == pytest.approx(bench.mean() / bench.std(ddof=1) * np.sqrt(252))
    assert measures["sharpe"] == pytest.approx(measures["information_ratio"])
    assert performance(bench, risk_free=0.02)["sharpe"] == pytest.approx(
        (bench.mean() * 252 - 0.02) / (bench.std(ddof=1) * np.sqrt(252))
    )
    # a loss on the first day is a drawdown from the money put in
    assert performance([-0.5, 0.1])["max_drawdown"] == pytest.approx(-0.5)


def test_simple_topk_by_hand() -> None:
    close = np.array([[10.0, 10, 10], [11, 10, 9], [11, 12, 9]])
    score = np.array([[3.0, 2, 1], [1, np.nan, 2], [0, 0, 0]])
    result = simple_topk(close, score, k=2, fee=0.01)
    # day 0 buys A and B (turnover 1); day 1 holds 0.55 and 0.5 of them and wants A and C
    assert result.turnover.tolist() == pytest.approx([1, 0.05 + 0.5 + 0.5, 1])
    assert result.nav.tolist() == pytest.approx([1, 0.99 * 1.05, 0.99 * 1.05 * (1 - 0.01 * 1.05)])
    assert result.metrics["total_return"] == pytest.approx(result.nav[-1] - 1)
    with pytest.raises(InputError, match="k must"):
        simple_topk(close, score, 0)
    with pytest.raises(InputError, match="fee"):
        simple_topk(close, score, 1, 1.0)
    with pytest.raises(InputError, match="must both be"):
        simple_topk(close, score[:2])
