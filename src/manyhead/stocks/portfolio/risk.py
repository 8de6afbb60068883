"""Return and risk of a daily return series: Qlib's risk analysis and the common measures.

`risk_analysis` reproduces Qlib's (Microsoft, MIT license, `qlib/contrib/evaluate.py`), which counts 238
trading days a year and adds returns up by default.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyhead.errors import InputError

KEYS = ("mean", "std", "annualized_return", "information_ratio", "max_drawdown")


def risk_analysis(returns: ArrayLike, mode: str = "sum", periods: float = 238) -> dict[str, float]:
    """Summarise a return series as Qlib does.

    Args:
        returns: (days,) returns, gaps (NaN) left out.
        mode: 'sum' adds returns up: arithmetic mean, drawdown of the cumulative sum. 'product'
            compounds them: geometric mean, deviation of log returns, drawdown of the curve.
        periods: days in a year.

    Returns:
        mean, std, annualized_return, information_ratio and max_drawdown (negative).

    Raises:
        InputError: if the mode is neither, or a compounded return is -100 % or less.
    """
    r = _series(returns)
    nothing = dict.fromkeys(KEYS, float("nan"))
    if mode not in ("sum", "product"):
        raise InputError(f"mode must be 'sum' or 'product', got {mode!r}")
    if len(r) == 0:
        return nothing
    if mode == "sum":
        mean = float(r.mean())
        deviation = _deviation(r)
        annual = mean * periods
        total = np.cumsum(r)
        drawdown = float((total - np.maximum.accumulate(total)).min())
    else:
        if (r <= -1).any():
            raise InputError("returns of -100 % or less cannot be compounded; use mode='sum'")
        curve = np.cumprod(1 + r)
        mean = float(curve[-1] ** (1 / len(r)) - 1)
        deviation = _deviation(np.log1p(r))
        annual = float(curve[-1] ** (periods / len(r)) - 1)
        drawdown = float((curve / np.maximum.accumulate(curve) - 1).min())
    ratio = mean / deviation * np.sqrt(periods) if deviation > 0 else float("nan")
    return dict(zip(KEYS, (mean, deviation, annual, float(ratio), drawdown), strict=True))


def performance(
    returns: ArrayLike, benchmark: ArrayLike | None = None, periods: float = 252, risk_free: float = 0.0
) -> dict[str, float]:
    """Summarise a net return series, alone and against a benchmark.

    Args:
        returns: (days,) returns after costs.
        benchmark: (days,) returns of the benchmark.
        periods: days in a year.
        risk_free: yearly rate taken off for the Sharpe ratio.

    Returns:
        total_return, annual_return (compounded), volatility, sharpe (arithmetic), max_drawdown of the
        compounded curve from its start (negative), calmar, best_day, worst_day, positive_days; with a
        benchmark also excess_annual (difference of the compounded), tracking_error, information_ratio,
        beta.
    """
    r = _series(returns, keep_gaps=True)
    curve = np.cumprod(1 + np.nan_to_num(r))
    peak = np.maximum.accumulate(np.concatenate(([1.0], curve)))[1:]
    total = float(curve[-1]) if len(curve) else float("nan")
    annual = _compound(total, len(r), periods)
    volatility = _deviation(r) * np.sqrt(periods)
    drawdown = float((curve / peak - 1).min()) if len(curve) else float("nan")
    measures = {
        "total_return": total - 1,
        "annual_return": annual,
        "volatility": float(volatility),
        "sharpe": float((r.mean() * periods - risk_free) / volatility) if volatility > 0 else float("nan"),
        "max_drawdown": drawdown,
        "calmar": annual / -drawdown if drawdown < 0 else float("nan"),
        "best_day": float(r.max()) if len(r) else float("nan"),
        "worst_day": float(r.min()) if len(r) else float("nan"),
        "positive_days": float((r > 0).mean()) if len(r) else float("nan"),
    }
    if benchmark is not None and len(r):
        b = _series(benchmark, keep_gaps=True)
        if len(b) != len(r):
            raise InputError(f"the benchmark has {len(b)} days, the returns have {len(r)}")
        excess = r - b
        error = _deviation(excess) * np.sqrt(periods)
        spread = float(np.var(b))
        measures |= {
            "benchmark_annual": _compound(float(np.prod(1 + b)), len(b), periods),
            "excess_annual": annual - _compound(float(np.prod(1 + b)), len(b), periods),
            "tracking_error": float(error),
            "information_ratio": float(excess.mean() * periods / error) if error > 0 else float("nan"),
            "beta": float(np.mean((r - r.mean()) * (b - b.mean())) / spread) if spread > 0 else float("nan"),
        }
    return measures


def _compound(growth: float, days: int, periods: float) -> float:
    if days == 0 or not growth > 0:
        return float("nan") if days == 0 else -1.0
    return float(growth ** (periods / days) - 1)


def _deviation(r: NDArray[np.float64]) -> float:
    """Sample deviation; exactly 0 where only rounding differs."""
    if len(r) < 2:
        return float("nan")
    deviation = float(r.std(ddof=1))
    return deviation if deviation > 1e-15 * max(1.0, float(np.abs(r).max())) else 0.0


def _series(values: Any, keep_gaps: bool = False) -> NDArray[np.float64]:
    r = np.asarray(values, np.float64)
    if r.ndim != 1:
        raise InputError(f"returns must be a series of shape (days,), got {r.shape}")
    if np.isinf(r).any():
        raise InputError("returns hold an infinite number")
    if keep_gaps:
        if np.isnan(r).any():
            raise InputError("returns have gaps (NaN); fill or drop them first")
        return r
    return r[~np.isnan(r)]
