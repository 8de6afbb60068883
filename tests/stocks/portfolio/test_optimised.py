"""Books from skfolio: scores move the weights, covariances restrain them, failures trade nothing."""

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import Optimised, Rebalance, backtest, exchange
from tests.stocks.portfolio.markets import business_days

optimization = pytest.importorskip("skfolio.optimization", reason="skfolio is not installed")


@pytest.fixture(scope="module")
def panel() -> Panel:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.01, (80, 1))
    own = rng.normal(0, 1, (80, 8)) * np.array([0.005, 0.005, 0.01, 0.01, 0.02, 0.02, 0.03, 0.03])
    close = 20 * np.cumprod(1 + common + own, axis=0)
    return Panel(business_days(80), tuple(f"S{i}" for i in range(8)), {"close": close})


def test_weights_are_those_of_the_closed_form(panel: Panel) -> None:
    # without bounds on a name, max mu'w - a w'Cw with sum w = 1 has a linear solution
    free = optimization.MeanRisk(
        objective_function=optimization.ObjectiveFunction.MAXIMIZE_UTILITY,
        risk_aversion=10,
        min_weights=-5,
        max_weights=5,
    )
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(80, 8))
    book = Optimised(free, candidates=8, window=40, ic=0.05)
    result = backtest(panel, scores, Rebalance(book), exchange("free", short=True), start=panel.dates[60])
    returns = panel["close"][20:60] / panel["close"][19:59] - 1  # the 40 days up to the score of row 59
    standard = (scores[59] - scores[59].mean()) / scores[59].std()
    mu = 0.05 * returns.std(axis=0, ddof=1) * standard
    from skfolio.moments import LedoitWolf

    covariance = LedoitWolf().fit(returns).covariance_
    inverse = np.linalg.inv(covariance)
    ones = np.ones(8)
    multiplier = (ones @ inverse @ mu - 2 * 10) / (ones @ inverse @ ones)
    expected = inverse @ (mu - multiplier * ones) / (2 * 10)
    np.testing.assert_allclose(result.weights[0], expected, atol=2e-3)


def test_default_book_is_long_only_bounded_and_prefers_high_scores(panel: Panel) -> None:
    scores = np.tile(np.array([0.0, 1.0] * 4), (80, 1))  # pairs of the same volatility
    book = Optimised(window=40, max_weight=0.3)
    weights = backtest(panel, scores, Rebalance(book, 10), "free", start=panel.dates[60]).weights[0]
    assert weights.min() >= 0
    assert weights.max() <= 0.3 + 1e-6
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights[1::2].sum() > 0.7
    few = Rebalance(Optimised(window=40, candidates=3), 10)
    assert np.count_nonzero(backtest(panel, scores, few, "free", start=panel.dates[60]).amounts[0]) <= 3


def test_other_optimisers_take_the_same_place(panel: Panel) -> None:
    scores = np.random.default_rng(2).normal(size=(80, 8))
    book = Optimised(optimization.InverseVolatility(), window=40, candidates=8)
    weights = backtest(panel, scores, Rebalance(book, 10), "free", start=panel.dates[60]).weights[0]
    assert weights.argmin() >= 6  # the two most volatile
    assert weights.argmax() <= 1


def test_an_infeasible_problem_trades_nothing_and_says_so(panel: Panel) -> None:
    impossible = optimization.MeanRisk(max_weights=0.01)  # eight names cannot hold 100 %
    scores = np.random.default_rng(2).normal(size=(80, 8))
    result = backtest(
        panel, scores, Rebalance(Optimised(impossible, window=40)), "free", start=panel.dates[77]
    )
    assert result.orders.height == 0
    assert any("optimiser failed" in warning for warning in result.warnings)


def test_wrong_arguments_are_named() -> None:
    for arguments in ({"candidates": 1}, {"window": 5}, {"risk_aversion": 0}, {"max_weight": 0}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            Optimised(**arguments)  # type: ignore[arg-type]
