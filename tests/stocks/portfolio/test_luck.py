"""Counting luck: published numbers, closed forms, and simulations in which the truth is known."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from manyhead.errors import InputError
from manyhead.stocks.portfolio import (
    Costs,
    Exchange,
    TopkDropout,
    backtest,
    break_even_cost,
    count_luck,
    deflated_sharpe,
    expected_maximum_sharpe,
    minimum_backtest_years,
    minimum_track_record,
    placebo_p_value,
    probabilistic_sharpe,
    probability_of_overfitting,
    smallest_sample,
)
from tests.stocks.portfolio.markets import smooth_panel


def test_the_example_of_the_deflated_sharpe_paper() -> None:
    # yearly ratio 2.5 over 1,250 days of 250 a year, skewness -3, kurtosis 10, variance 1/2 a year
    best = expected_maximum_sharpe(100, 0.5 / 250)
    assert best == pytest.approx(0.1132, abs=5e-5)
    observed = 2.5 / np.sqrt(250)
    assert probabilistic_sharpe(observed, 1250, -3, 10, best) == pytest.approx(0.9004, abs=5e-5)
    fewer = expected_maximum_sharpe(46, 0.5 / 250)
    assert probabilistic_sharpe(observed, 1250, -3, 10, fewer) == pytest.approx(0.9505, abs=5e-4)


def test_the_example_of_the_track_record_paper() -> None:
    # a yearly ratio of 2 against 1, daily normal returns: 2.73 years
    days = minimum_track_record(2 / np.sqrt(252), 1 / np.sqrt(252))
    assert days / 252 == pytest.approx(2.73, abs=0.005)
    # at that length, and only from it on, the probability reaches the confidence
    assert probabilistic_sharpe(0.1, 100, benchmark=0.1) == pytest.approx(0.5)
    length = minimum_track_record(0.1, 0.02, -1, 6, 0.9)
    assert probabilistic_sharpe(0.1, int(length) + 1, -1, 6, 0.02) >= 0.9
    assert probabilistic_sharpe(0.1, int(length) - 1, -1, 6, 0.02) < 0.9
    assert minimum_track_record(0.1, 0.1) == np.inf


def test_the_expected_maximum_is_that_of_a_simulation() -> None:
    rng = np.random.default_rng(0)
    for trials in (5, 50, 500):
        simulated = rng.normal(0, 0.3, (4000, trials)).max(axis=1).mean()
        assert expected_maximum_sharpe(trials, 0.09) == pytest.approx(simulated, rel=0.05)
    assert expected_maximum_sharpe(1, 1.0) == 0
    # five years allow about 45 trials before a yearly ratio of 1 is expected by luck alone
    assert minimum_backtest_years(45) == pytest.approx(5, abs=0.15)


def test_luck_is_discounted_and_skill_is_not() -> None:
    rng = np.random.default_rng(1)
    trials = rng.normal(0, 0.01, (200, 750))  # nobody has skill
    sharpes = trials.mean(axis=1) / trials.std(axis=1, ddof=1)
    lucky = trials[sharpes.argmax()]
    naive, honest = deflated_sharpe(lucky, trials=1), deflated_sharpe(lucky, sharpes=sharpes)
    assert naive.probability > 0.99
    assert honest.probability < 0.8
    assert honest.trials == 200
    assert honest.variance == pytest.approx(sharpes.var(ddof=1))
    skilled = deflated_sharpe(rng.normal(0.003, 0.01, 750), sharpes=sharpes)
    assert skilled.probability > 0.99
    assert skilled.sharpe == pytest.approx(0.3, abs=0.1)
    assert skilled.kurtosis == pytest.approx(3, abs=0.6)


def slow_overfitting(table: np.ndarray, blocks: int) -> float:
    parts = np.array_split(np.arange(len(table)), blocks)
    below = []
    for half in combinations(range(blocks), blocks // 2):
        inside = np.concatenate([parts[block] for block in half])
        outside = np.setdiff1d(np.arange(len(table)), inside)
        first = table[inside].mean(axis=0) / table[inside].std(axis=0, ddof=1)
        second = table[outside].mean(axis=0) / table[outside].std(axis=0, ddof=1)
        rank = rankdata(second)[first.argmax()] / (table.shape[1] + 1)
        below.append(np.log(rank / (1 - rank)) <= 0)
    return float(np.mean(below))


@pytest.mark.parametrize(("days", "configurations", "blocks"), [(60, 7, 6), (83, 12, 8), (41, 2, 4)])
def test_overfitting_equals_the_definition(days: int, configurations: int, blocks: int) -> None:
    table = np.random.default_rng(days).normal(0.0005, 0.01, (days, configurations))
    result = probability_of_overfitting(table, blocks)
    assert result.probability == slow_overfitting(table, blocks)


def test_overfitting_of_noise_of_skill_and_of_a_trap() -> None:
    rng = np.random.default_rng(3)
    noise = [probability_of_overfitting(rng.normal(0, 0.01, (400, 20)), 10).probability for _ in range(30)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.12)
    one_is_good = rng.normal(0, 0.01, (400, 20))
    one_is_good[:, 7] += 0.004
    skill = probability_of_overfitting(one_is_good)
    assert skill.probability < 0.01
    assert len(skill.logits) == 12870
    # what is won in one half is lost in the other: choosing always misleads
    trap = np.concatenate([np.full((100, 2), [0.01, -0.01]), np.full((100, 2), [-0.01, 0.01])])
    trap += rng.normal(0, 1e-4, trap.shape)
    caught = probability_of_overfitting(trap, 2, "mean")
    assert caught.probability == 1
    assert caught.probability_of_loss == 1
    ranked = probability_of_overfitting(rng.normal(0, 0.01, (400, 20)) + np.linspace(0, 0.02, 20))
    assert ranked.probability == 0
    # with the whole of every configuration at zero, what is won in sample is lost out of it
    level = rng.normal(0, 0.01, (400, 20))
    assert probability_of_overfitting(level - level.mean(axis=0), 10, "mean").slope == pytest.approx(-1)


def test_the_break_even_cost_leaves_nothing() -> None:
    panel, rng = smooth_panel(3, 200, 12), np.random.default_rng(3)
    close = panel["close"]
    scores = np.zeros(close.shape)
    scores[:-2] = close[2:] / close[1:-1] - 1
    scores += rng.normal(0, 0.05, scores.shape)  # a little skill
    free = backtest(panel, scores, TopkDropout(3, 1), "free")
    points = break_even_cost(free.report["return"], free.report["turnover"])
    assert 1 < points < 1000
    rate = points / 1e4
    costly = backtest(panel, scores, TopkDropout(3, 1), Exchange(Costs(rate, rate, 0)))
    # fees shrink the purchases a little, which the formula leaves out
    assert abs(costly.net_returns.mean()) < 0.03 * free.net_returns.mean()
    assert break_even_cost([0.01, 0.03], [0.5, 0.5], 0.01) == pytest.approx(200)
    assert break_even_cost([0.01, 0.01], [0.0, 0.0]) == np.inf
    assert break_even_cost([-0.01, 0.0], [1.0, 1.0]) == pytest.approx(-50)


def test_one_table_holds_every_count() -> None:
    panel, rng = smooth_panel(3, 200, 12), np.random.default_rng(3)
    result = backtest(panel, rng.normal(size=(200, 12)), TopkDropout(3, 1), "us")
    sharpes = rng.normal(0, 0.05, 40)
    tried = rng.normal(0, 0.01, (199, 40))
    verdict = count_luck(result, sharpes=sharpes, tried=tried, daily_ic=rng.normal(0.03, 0.1, 198))
    assert verdict.days == result.report.height
    assert verdict.trials == 40
    assert verdict.sharpe == pytest.approx(result.metrics["sharpe"])
    best = expected_maximum_sharpe(40, sharpes.var(ddof=1))
    assert verdict.sharpe_of_luck == pytest.approx(best * np.sqrt(252))
    assert verdict.overfitting == probability_of_overfitting(tried).probability
    assert 20 < verdict.sample_ic < 1000
    alone = count_luck(result)
    assert alone.trials == 1
    assert alone.sharpe_of_luck == 0
    assert alone.deflated_sharpe > verdict.deflated_sharpe
    assert np.isnan([alone.overfitting, alone.sample_ic]).all()


def test_the_smallest_sample_has_the_power_it_promises() -> None:
    rng = np.random.default_rng(5)
    long = rng.normal(0.02, 0.1, 100_000)
    days = smallest_sample(long)
    expected = ((norm.ppf(0.95) + norm.ppf(0.8)) * 0.1 / 0.02) ** 2
    assert days == pytest.approx(expected, rel=0.05)
    samples = rng.normal(0.02, 0.1, (4000, round(days)))
    found = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / np.sqrt(round(days))) > norm.ppf(0.95)
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    # days that repeat the last one carry less: pairs of equal days need twice as many
    doubled = np.repeat(rng.normal(0.02, 0.1, 50_000), 2)
    assert smallest_sample(doubled, lags=20) == pytest.approx(2 * expected, rel=0.1)
    assert smallest_sample(-long) == np.inf


def test_placebo_p_values_are_uniform_without_skill() -> None:
    assert placebo_p_value(3, [1, 2, 3, 4]) == pytest.approx(3 / 5)
    rng = np.random.default_rng(6)
    values = [placebo_p_value(rng.normal(), rng.normal(size=99)) for _ in range(2000)]
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.015)
    assert min(values) >= 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deflated_sharpe([0.1, 0.2]), "at least 3"),
        (lambda: deflated_sharpe([0.1] * 10, 2), "do not vary"),
        (lambda: deflated_sharpe([0.1, 0.2, 0.1]), "number of trials"),
        (lambda: deflated_sharpe([0.1, 0.2, 0.1], sharpes=[np.nan]), "finite"),
        (lambda: expected_maximum_sharpe(0, 1), "trials"),
        (lambda: expected_maximum_sharpe(3, -1), "variance"),
        (lambda: minimum_track_record(1, confidence=1), "confidence"),
        (lambda: minimum_backtest_years(3, 0), "annual_sharpe"),
        (lambda: smallest_sample([0.1]), "at least 3"),
        (lambda: break_even_cost([0.1], [0.1, 0.2]), "series alike"),
        (lambda: probability_of_overfitting(np.zeros((100, 1))), "2 configurations"),
        (lambda: probability_of_overfitting(np.zeros((100, 3)), 5), "even"),
        (lambda: probability_of_overfitting(np.zeros((20, 3)), 16), "at least 32 days"),
        (lambda: probability_of_overfitting(np.full((100, 3), np.nan)), "gaps"),
        (lambda: probability_of_overfitting(np.zeros((100, 3)), 4, "ic"), "measure"),
        (lambda: probabilistic_sharpe(0.1, 1), "at least 2"),
    ],
)
def test_what_cannot_be_counted_is_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]
