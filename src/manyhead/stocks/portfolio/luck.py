"""How much of a result is luck: trials counted, overfitting measured, the sample that would be needed.

- Bailey and Lopez de Prado, 'The Sharpe Ratio Efficient Frontier', Journal of Risk 15(2), 2012:
  probabilistic Sharpe ratio and minimum track record length.
- Bailey and Lopez de Prado, 'The Deflated Sharpe Ratio', Journal of Portfolio Management 40(5), 2014.
- Bailey, Borwein, Lopez de Prado and Zhu, 'Pseudo-Mathematics and Financial Charlatanism', Notices of
  the AMS 61(5), 2014: minimum back-test length.
- The same four, 'The Probability of Backtest Overfitting', Journal of Computational Finance 20(4), 2017.

Sharpe ratios here are per period (daily for daily returns) unless the name says annual; kurtosis is 3
for a normal distribution.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb, e, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyhead.errors import InputError

EULER = 0.5772156649015329
NORMAL = NormalDist()
Series = NDArray[np.float64]


@dataclass(frozen=True)
class DeflatedSharpe:
    """Result of `deflated_sharpe`.

    Attributes:
        sharpe: observed, per period.
        expected_maximum: what the best of so many trials reaches by luck, per period.
        probability: that the true Sharpe ratio exceeds that of luck; the deflated Sharpe ratio.
        trials, variance: number of trials and variance of their Sharpe ratios.
        skewness, kurtosis, days: of the returns.
    """

    sharpe: float
    expected_maximum: float
    probability: float
    trials: int
    variance: float
    skewness: float
    kurtosis: float
    days: int


def sharpe_error(sharpe: float, days: int, skewness: float = 0.0, kurtosis: float = 3.0) -> float:
    """Return the standard error of a Sharpe ratio estimated from `days` returns (2012, equation 4)."""
    if days < 2:
        raise InputError(f"a Sharpe ratio needs at least 2 returns, got {days}")
    variance = 1 - skewness * sharpe + (kurtosis - 1) / 4 * sharpe**2
    return sqrt(max(variance, 0.0) / (days - 1))


def probabilistic_sharpe(
    sharpe: float, days: int, skewness: float = 0.0, kurtosis: float = 3.0, benchmark: float = 0.0
) -> float:
    """Return the probability that the true Sharpe ratio exceeds `benchmark` (2012, equation 5)."""
    error = sharpe_error(sharpe, days, skewness, kurtosis)
    if error == 0:
        return float(sharpe > benchmark)
    return float(NORMAL.cdf((sharpe - benchmark) / error))


def expected_maximum_sharpe(trials: int, variance: float) -> float:
    """Return the expected largest Sharpe ratio of `trials` independent ones of mean 0 (2014, equation 1)."""
    if trials < 1:
        raise InputError(f"trials must be at least 1, got {trials}")
    if not variance >= 0:
        raise InputError(f"the variance of the trials' Sharpe ratios must be at least 0, got {variance}")
    if trials == 1:
        return 0.0
    quantiles = (1 - EULER) * NORMAL.inv_cdf(1 - 1 / trials) + EULER * NORMAL.inv_cdf(1 - 1 / (trials * e))
    return float(sqrt(variance) * quantiles)


def deflated_sharpe(
    returns: ArrayLike, trials: int | None = None, sharpes: ArrayLike | None = None
) -> DeflatedSharpe:
    """Return the probability that a strategy beats the best of as many trials without skill.

    Args:
        returns: (days,) net returns of the chosen strategy; gaps left out.
        trials: how many configurations were evaluated on these data; counted from `sharpes` if None.
        sharpes: per-period Sharpe ratios of the trials, for their variance. Without them the variance
            is that of the estimate without skill, 1 / (days - 1).

    Raises:
        InputError: if there are fewer than 3 returns, they do not vary, or no trial is counted.
    """
    r = _returns(returns)
    deviation = float(r.std(ddof=1))
    sharpe = float(r.mean()) / deviation
    centred = (r - r.mean()) / r.std()
    skewness, kurtosis = float((centred**3).mean()), float((centred**4).mean())
    tried = None if sharpes is None else np.asarray(sharpes, np.float64)
    if tried is not None and not (tried.ndim == 1 and np.isfinite(tried).all()):
        raise InputError("sharpes must be a series of finite numbers, one a trial")
    count = trials if trials is not None else (len(tried) if tried is not None else 0)
    if count < 1:
        raise InputError("deflated_sharpe needs the number of trials, or the Sharpe ratio of each")
    enough = tried is not None and len(tried) >= 2
    variance = float(tried.var(ddof=1)) if enough and tried is not None else 1 / (len(r) - 1)
    best = expected_maximum_sharpe(count, variance)
    probability = probabilistic_sharpe(sharpe, len(r), skewness, kurtosis, best)
    return DeflatedSharpe(sharpe, best, probability, count, variance, skewness, kurtosis, len(r))


def minimum_track_record(
    sharpe: float,
    benchmark: float = 0.0,
    skewness: float = 0.0,
    kurtosis: float = 3.0,
    confidence: float = 0.95,
) -> float:
    """Return how many returns show a Sharpe ratio above `benchmark` at a confidence (2012, equation 11).

    Infinite where the observed ratio does not exceed the benchmark.
    """
    _share("confidence", confidence)
    if sharpe <= benchmark:
        return float("inf")
    variance = max(1 - skewness * sharpe + (kurtosis - 1) / 4 * sharpe**2, 0.0)
    return float(1 + variance * (NORMAL.inv_cdf(confidence) / (sharpe - benchmark)) ** 2)


def minimum_backtest_years(trials: int, annual_sharpe: float = 1.0) -> float:
    """Return the years below which `trials` strategies without skill are expected to reach a yearly ratio.

    Bailey et al. 2014 (Notices of the AMS), theorem 3.2.
    """
    if not annual_sharpe > 0:
        raise InputError(f"annual_sharpe must be above 0, got {annual_sharpe}")
    return (expected_maximum_sharpe(trials, 1.0) / annual_sharpe) ** 2


def smallest_sample(
    daily: ArrayLike, confidence: float = 0.95, power: float = 0.8, lags: int | None = 0
) -> float:
    """Return how many days would have shown a mean like that of `daily`, one-sided.

    n = ((z_confidence + z_power) * deviation / mean)^2, the deviation inflated for autocorrelation.

    Args:
        daily: (days,) daily ICs or excess returns; gaps left out.
        confidence: of the one-sided test against 0.
        power: probability with which the test then finds the effect.
        lags: autocorrelations that count, 0 for none, None for a rule by length; see
            `manyhead.stocks.intervals.standard_error`.

    Returns:
        Days; infinite where the mean is not positive.
    """
    from manyhead.stocks.intervals import standard_error

    _share("confidence", confidence)
    _share("power", power)
    values = np.asarray(daily, np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 3:
        raise InputError(f"smallest_sample needs at least 3 days, got {len(values)}")
    mean = float(values.mean())
    if mean <= 0:
        return float("inf")
    deviation = float(standard_error(values, lags)) * sqrt(len(values))
    return float(((NORMAL.inv_cdf(confidence) + NORMAL.inv_cdf(power)) * deviation / mean) ** 2)


def break_even_cost(gross: ArrayLike, turnover: ArrayLike, benchmark: ArrayLike | float = 0.0) -> float:
    """Return the cost per value traded, in basis points, at which nothing is left.

    The mean of gross - benchmark - cost * turnover is zero at mean(gross - benchmark) / mean(turnover).

    Args:
        gross: (days,) returns before costs: a back-test's `return`.
        turnover: (days,) value traded, purchases and sales, as a share of the account: its `turnover`.
        benchmark: (days,) returns or a number to be beaten.

    Returns:
        Basis points a side; negative where nothing was left even without costs, infinite without trades.
    """
    earned, traded = np.asarray(gross, np.float64), np.asarray(turnover, np.float64)
    if earned.ndim != 1 or earned.shape != traded.shape:
        raise InputError(f"gross and turnover must be series alike, got {earned.shape} and {traded.shape}")
    excess = float((earned - np.asarray(benchmark, np.float64)).mean())
    if traded.mean() <= 0:
        return float("inf") if excess > 0 else float("nan")
    return excess / float(traded.mean()) * 1e4


def placebo_p_value(observed: float, placebo: ArrayLike) -> float:
    """Return the share of placebo results at least as good as the observed, itself counted in."""
    values = np.asarray(placebo, np.float64)
    values = values[~np.isnan(values)]
    return float((1 + np.count_nonzero(values >= observed)) / (1 + len(values)))


@dataclass(frozen=True)
class Overfitting:
    """Result of `probability_of_overfitting`.

    Attributes:
        probability: share of the splits in which the best in sample falls below the median out of it.
        logits: (splits,) ln(rank / (1 - rank)) of the best in sample, among all out of sample.
        in_sample, out_of_sample: (splits,) the chosen configuration's performance.
        slope: of out_of_sample on in_sample; negative where choosing by performance misleads.
        probability_of_loss: share of the splits in which the chosen one loses out of sample.
    """

    probability: float
    logits: Series
    in_sample: Series
    out_of_sample: Series
    slope: float
    probability_of_loss: float


def probability_of_overfitting(
    returns: ArrayLike, blocks: int = 16, measure: Literal["sharpe", "mean"] = "sharpe"
) -> Overfitting:
    """Estimate the probability of back-test overfitting by combinatorially symmetric cross-validation.

    Bailey et al. 2017, section 4. The days are cut into blocks; for every half of the blocks the
    configuration that is best there is looked up among all on the other half.

    Args:
        returns: (days, configurations) daily returns of everything that was tried.
        blocks: even number of blocks; 16 give 12,870 splits.
        measure: performance, 'sharpe' or 'mean'.

    Raises:
        InputError: if the table has fewer than 2 configurations, fewer than 2 days a block, gaps, or
            the number of blocks is odd or above 20.
    """
    table = np.asarray(returns, np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise InputError(
            f"returns must be (days, configurations) with at least 2 configurations, got {table.shape}"
        )
    if blocks % 2 or not 2 <= blocks <= 20:
        raise InputError(f"blocks must be even and between 2 and 20, got {blocks}")
    if len(table) < 2 * blocks:
        raise InputError(f"{blocks} blocks need at least {2 * blocks} days, got {len(table)}")
    if not np.isfinite(table).all():
        raise InputError("returns have gaps or infinite numbers; every configuration needs every day")
    if measure not in ("sharpe", "mean"):
        raise InputError(f"measure must be 'sharpe' or 'mean', got {measure!r}")
    parts = np.array_split(table - table.mean(), blocks)  # centred for accuracy of the squares
    count = np.array([len(part) for part in parts], np.float64)
    sums = np.stack([part.sum(axis=0) for part in parts])  # (blocks, configurations)
    squares = np.stack([(part**2).sum(axis=0) for part in parts])
    chosen = np.zeros((comb(blocks, blocks // 2), blocks))
    for row, half in enumerate(combinations(range(blocks), blocks // 2)):
        chosen[row, list(half)] = 1.0
    shift = float(table.mean())
    inside = _measure(chosen, count, sums, squares, shift, measure)
    outside = _measure(1 - chosen, count, sums, squares, shift, measure)
    best = inside.argmax(axis=1)
    rows = np.arange(len(chosen))
    mine = outside[rows, best]
    below = (outside < mine[:, None]).sum(axis=1)
    equal = (outside == mine[:, None]).sum(axis=1)
    rank = (below + (equal + 1) / 2) / (table.shape[1] + 1)
    logits = np.log(rank / (1 - rank))
    first = inside[rows, best]
    spread = float(first.var())
    slope = float(((first - first.mean()) * (mine - mine.mean())).mean() / spread) if spread > 0 else 0.0
    return Overfitting(float((logits <= 0).mean()), logits, first, mine, slope, float((mine < 0).mean()))


def _measure(
    chosen: Series, count: Series, sums: Series, squares: Series, shift: float, measure: str
) -> Series:
    """Return the performance of every configuration on every choice of blocks, (choices, configurations)."""
    days = (chosen @ count)[:, None]
    mean = (chosen @ sums) / days
    if measure == "mean":
        return np.asarray(mean + shift)
    variance = np.maximum((chosen @ squares) / days - mean**2, 0.0) * days / (days - 1)
    deviation = np.sqrt(variance)
    flat = deviation < 1e-15
    return np.asarray(np.where(flat, 0.0, (mean + shift) / np.where(flat, 1.0, deviation)))


def _returns(values: ArrayLike) -> Series:
    r = np.asarray(values, np.float64)
    if r.ndim != 1:
        raise InputError(f"returns must be a series of shape (days,), got {r.shape}")
    r = r[~np.isnan(r)]
    if len(r) < 3:
        raise InputError(f"at least 3 returns are needed, got {len(r)}")
    if not np.isfinite(r).all() or r.std() <= 1e-15:
        raise InputError("the returns are not finite or do not vary: they have no Sharpe ratio")
    return r


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be between 0 and 1, got {value}")
