"""Daily metrics against SciPy day by day, closed forms, and intervals that cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from manyhead.errors import InputError
from manyhead.stocks.intervals import block_length, bootstrap, ratio, standard_error
from manyhead.stocks.metrics import (
    daily_ic,
    daily_rank_ic,
    direction_accuracy,
    errors,
    group_returns,
    information_ratio,
    majority_rate,
    official_errors,
    ranks,
    skill,
)


def table(seed: int, days: int = 30, symbols: int = 12, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((days, symbols))
    if ties:
        scores = np.round(scores)
    returns = 0.3 * scores + generator.standard_normal((days, symbols))
    scores[generator.random(scores.shape) < 0.2] = np.nan
    returns[generator.random(scores.shape) < 0.1] = np.nan
    return scores, returns


@given(st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_daily_coefficients_equal_scipy_day_by_day(seed: int) -> None:
    scores, returns = table(seed)
    pearson, spearman = daily_ic(scores, returns), daily_rank_ic(scores, returns)
    for day in range(len(scores)):
        both = np.isfinite(scores[day]) & np.isfinite(returns[day])
        x, y = scores[day, both], returns[day, both]
        if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
            assert np.isnan(pearson[day])
            assert np.isnan(spearman[day])
        else:
            assert pearson[day] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
            assert spearman[day] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_ranks_share_ties_and_keep_gaps() -> None:
    values = np.array([[3.0, 1.0, 3.0, np.nan, 2.0], [5.0, 5.0, 5.0, 5.0, np.nan]])
    np.testing.assert_array_equal(ranks(values), [[3.5, 1, 3.5, np.nan, 2], [2.5, 2.5, 2.5, 2.5, np.nan]])


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9, -1e-9])
def test_a_constant_score_has_no_coefficient(constant: float) -> None:
    returns = table(1)[1]
    assert np.isnan(daily_ic(np.full_like(returns, constant), returns)).all()
    assert np.isnan(daily_rank_ic(np.full_like(returns, constant), returns)).all()


def test_tiny_returns_keep_their_coefficient() -> None:
    scores, returns = table(2, ties=False)
    np.testing.assert_allclose(daily_ic(scores, 1e-12 * returns), daily_ic(scores, returns), atol=1e-9)


def test_coefficients_do_not_depend_on_order_or_scale() -> None:
    scores, returns = table(3)
    order = np.random.default_rng(0).permutation(scores.shape[1])
    np.testing.assert_allclose(daily_ic(scores[:, order], returns[:, order]), daily_ic(scores, returns))
    np.testing.assert_allclose(daily_ic(3 * scores + 1, returns), daily_ic(scores, returns))
    np.testing.assert_allclose(daily_rank_ic(scores**3, returns), daily_rank_ic(scores, returns))
    np.testing.assert_allclose(daily_ic(-scores, returns), -daily_ic(scores, returns))


def test_information_ratio_uses_the_population_spread_of_known_days() -> None:
    assert information_ratio(np.array([1.0, np.nan, 3.0])) == 2.0
    assert np.isnan(information_ratio(np.array([1.0, 1.0])))


def test_directions_count_known_cells_only() -> None:
    returns = np.array([[0.1, -0.1, np.nan, 0.0], [0.2, 0.3, -0.4, np.nan]])
    predicted = np.array([[1, 1, 1, 0], [1, -1, 0, 1]])
    assert direction_accuracy(predicted, returns) == 4 / 5
    assert majority_rate(returns) == 0.5
    assert majority_rate(-np.abs(returns)) == 1.0


def test_percentage_error_is_positive_where_the_official_one_is_not() -> None:
    returns = np.array([[-0.1, -0.2, 0.0, np.nan]])
    predicted = np.array([[0.1, 0.0, 5.0, 5.0]])
    ours = errors(predicted, returns)
    assert ours.mape == pytest.approx((2 + 1) / 2)
    assert ours.mae == pytest.approx((0.2 + 0.2 + 5) / 3)  # a true zero return counts
    logits, classes = np.zeros((1, 4, 2)), np.zeros((1, 4), dtype=int)
    accuracy, mae, _, mape = official_errors(predicted, np.nan_to_num(returns), logits, classes)
    assert accuracy == 1
    assert mae == pytest.approx(0.2)
    assert mape == pytest.approx(-1.5)


def test_group_returns_are_means_of_equal_groups() -> None:
    scores = np.arange(20.0)[None, ::-1]
    returns = scores / 100
    np.testing.assert_allclose(group_returns(scores, returns)[0], (np.arange(10) * 2 + 0.5) / 100)
    scores, returns = table(5, symbols=40, ties=False)
    grouped = group_returns(scores, returns, 4)
    for day in range(len(scores)):
        both = np.flatnonzero(np.isfinite(scores[day]) & np.isfinite(returns[day]))
        ordered = both[np.argsort(scores[day, both])]
        place = np.arange(len(ordered)) + 0.5
        for group in range(4):
            members = ordered[np.floor(place / len(ordered) * 4) == group]
            assert grouped[day, group] == pytest.approx(returns[day, members].mean())


def test_tied_scores_share_a_group_whatever_the_column_order() -> None:
    returns = np.arange(10.0)[None]
    grouped = group_returns(np.zeros((1, 10)), returns, 5)
    assert np.isfinite(grouped).sum() == 1
    assert np.nanmax(grouped) == 4.5


def test_the_summary_agrees_with_its_parts() -> None:
    scores, returns = table(7)
    summary = skill(scores, returns)
    pearson = daily_ic(scores, returns)
    assert summary.days == np.isfinite(pearson).sum()
    assert summary.ic == pytest.approx(np.nanmean(pearson))
    assert summary.ic_se == pytest.approx(np.nanstd(pearson, ddof=1) / np.sqrt(summary.days))
    assert summary.icir == pytest.approx(information_ratio(pearson))
    assert 0 <= summary.accuracy <= 1
    assert 0.5 <= summary.majority <= 1


def test_independent_days_give_the_textbook_standard_error() -> None:
    daily = np.random.default_rng(0).standard_normal(50)
    assert standard_error(daily) == pytest.approx(daily.std(ddof=1) / np.sqrt(50))
    assert np.isnan(standard_error(daily[:1]))


def autoregressive(days: int, memory: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(days + 200)
    series = np.zeros(days + 200)
    for day in range(1, days + 200):
        series[day] = memory * series[day - 1] + noise[day]
    return series[200:]


def test_newey_west_widens_for_persistent_days_and_narrows_for_alternating_ones() -> None:
    persistent, alternating = autoregressive(500, 0.6, 1), autoregressive(500, -0.6, 1)
    assert standard_error(persistent, None) > 1.4 * standard_error(persistent)
    assert standard_error(alternating, None) < 0.8 * standard_error(alternating)
    # one lag by hand: gamma0 + gamma1, with weight 1/2 counted on both sides
    centred = persistent - persistent.mean()
    variance = (centred @ centred + centred[1:] @ centred[:-1]) / 499
    assert standard_error(persistent, 1) == pytest.approx(np.sqrt(variance / 500))


def test_blocks_grow_with_the_memory_of_the_series() -> None:
    lengths = [
        np.mean([block_length(autoregressive(400, memory, s)) for s in range(10)]) for memory in (0, 0.5, 0.9)
    ]
    assert lengths[0] < lengths[1] < lengths[2]
    # optimum of an AR(1) with coefficient r: (2 g^2 / d)^(1/3) n^(1/3), g = 2 sum k r^k, d = 2 (sum r^|k|)^2
    slope, level = 2 * 0.5 / 0.25, (1 + 0.5) / 0.5
    best = (2 * slope**2 / (2 * level**2)) ** (1 / 3) * 400 ** (1 / 3)
    assert 0.5 * best < lengths[1] < 1.8 * best


@pytest.mark.parametrize("kind", ["stationary", "moving"])
def test_intervals_of_dependent_days_cover_their_mean(kind: str) -> None:
    covered = naive = 0
    for seed in range(100):
        daily = autoregressive(300, 0.5, seed)
        interval = bootstrap(daily, kind=kind, resamples=300, seed=seed)  # type: ignore[arg-type]
        covered += interval.low <= 0 <= interval.high
        naive += abs(daily.mean()) <= 1.96 * standard_error(daily)
    assert covered >= 86
    assert naive < covered - 5  # independent days would claim too much


def test_intervals_repeat_under_a_seed_and_leave_out_unknown_days() -> None:
    daily = autoregressive(100, 0.3, 4)
    with_gaps = np.insert(daily, [5, 50], np.nan)
    first = bootstrap(daily, ratio, seed=3)
    assert first == bootstrap(with_gaps, ratio, seed=3)
    assert first != bootstrap(daily, ratio, seed=4)
    assert first.low < first.estimate < first.high
    assert first.estimate == pytest.approx(information_ratio(daily))
    constant = bootstrap(np.full(40, 0.25))
    assert (constant.low, constant.estimate, constant.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: daily_ic(np.zeros((2, 3)), np.zeros((3, 2))), "scores and returns"),
        (lambda: group_returns(np.zeros((2, 3)), np.zeros((2, 3)), 1), "groups"),
        (lambda: bootstrap(np.zeros(5), level=1.0), "level"),
        (lambda: bootstrap(np.zeros(5), kind="other"), "kind"),  # type: ignore[arg-type]
        (lambda: bootstrap(np.zeros(5), resamples=0), "resamples"),
        (lambda: standard_error(np.zeros(5), -1), "lags"),
    ],
)
def test_wrong_arguments_are_named(call: object, names: str) -> None:
    with pytest.raises(InputError, match=names):
        call()  # type: ignore[operator]
