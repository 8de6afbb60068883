"""Alpha360 and Alpha158 by pandas, slowly: the readable twin that the fast code is tied to.

Each formula is written as Qlib writes it; `rolling(d, min_periods=1)` is Qlib's rolling operator.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from manyhead.stocks.panel import Panel

WINDOWS = (5, 10, 20, 30, 60)


def alpha360(panel: Panel) -> dict[str, np.ndarray]:
    """Name -> (days, symbols), in Qlib's order."""
    found = {}
    for name in ("close", "open", "high", "low", "vwap", "volume"):
        values = pd.DataFrame(panel[name]).astype(np.float32)
        by = pd.DataFrame(panel["close"]).astype(np.float32) if name != "volume" else values + 1e-12
        for lag in range(59, -1, -1):
            found[f"{name.upper()}{lag}"] = (values.shift(lag) / by).to_numpy(np.float32)
    return found


def alpha158(panel: Panel, windows: tuple[int, ...] = WINDOWS) -> dict[str, np.ndarray]:
    """Name -> (days, symbols); a symbol's series begins with its first price."""
    columns = []
    for symbol in range(len(panel.symbols)):
        prices = pd.DataFrame({name: panel[name][:, symbol] for name in panel.fields}, dtype=np.float32)
        first = prices.notna().any(axis=1).idxmax()
        factors = pd.DataFrame(_symbol(prices.loc[first:], windows)).astype(np.float32)
        columns.append(factors.reindex(prices.index))
    return {
        name: np.stack([column[name].to_numpy() for column in columns], axis=1) for name in columns[0].columns
    }


def _symbol(prices: pd.DataFrame, windows: tuple[int, ...]) -> dict[str, pd.Series]:
    o, h, l, c = (prices[name] for name in ("open", "high", "low", "close"))  # noqa: E741
    v, w = prices["volume"], prices["vwap"]
    e = 1e-12
    top, bottom = np.maximum(o, c), np.minimum(o, c)
    found = {
        "KMID": (c - o) / o,
        "KLEN": (h - l) / o,
        "KMID2": (c - o) / (h - l + e),
        "KUP": (h - top) / o,
        "KUP2": (h - top) / (h - l + e),
        "KLOW": (bottom - l) / o,
        "KLOW2": (bottom - l) / (h - l + e),
        "KSFT": (2 * c - h - l) / o,
        "KSFT2": (2 * c - h - l) / (h - l + e),
        "OPEN0": o / c,
        "HIGH0": h / c,
        "LOW0": l / c,
        "VWAP0": w / c,
    }
    c1, v1 = c.shift(1), v.shift(1)
    dc, dv = c - c1, v - v1
    swing = (c / c1 - 1).abs() * v
    ratio, volume_ratio, log_volume = c / c1, np.log(v / v1 + 1), np.log(v + 1)
    for d in windows:

        def roll(x: pd.Series, d: int = d) -> "pd.core.window.Rolling":
            return x.rolling(d, min_periods=1)

        lowest, highest = roll(l).min(), roll(h).max()
        peak = roll(h).apply(lambda x: x.argmax() + 1, raw=True)
        trough = roll(l).apply(lambda x: x.argmin() + 1, raw=True)
        flat = np.isclose(roll(c).std(), 0, atol=2e-5)
        found |= {
            f"ROC{d}": c.shift(d) / c,
            f"MA{d}": roll(c).mean() / c,
            f"STD{d}": roll(c).std() / c,
            f"BETA{d}": _regression(c, d, lambda x, y: np.polyfit(x, y, 1)[0]) / c,
            f"RSQR{d}": _regression(c, d, lambda x, y: np.corrcoef(x, y)[0, 1] ** 2).mask(flat),
            f"RESI{d}": (c - _regression(c, d, lambda x, y, d=d: np.polyval(np.polyfit(x, y, 1), d))) / c,
            f"MAX{d}": highest / c,
            f"MIN{d}": lowest / c,
            f"QTLU{d}": roll(c).quantile(0.8) / c,
            f"QTLD{d}": roll(c).quantile(0.2) / c,
            f"RANK{d}": roll(c).rank(pct=True),
            f"RSV{d}": (c - lowest) / (highest - lowest + e),
            f"IMAX{d}": peak / d,
            f"IMIN{d}": trough / d,
            f"IMXD{d}": (peak - trough) / d,
            f"CORR{d}": _correlation(c, log_volume, d),
            f"CORD{d}": _correlation(ratio, volume_ratio, d),
            f"CNTP{d}": roll((c > c1).astype(float)).mean(),
            f"CNTN{d}": roll((c < c1).astype(float)).mean(),
            f"CNTD{d}": roll((c > c1).astype(float)).mean() - roll((c < c1).astype(float)).mean(),
            f"VMA{d}": roll(v).mean() / (v + e),
            f"VSTD{d}": roll(v).std() / (v + e),
            f"WVMA{d}": roll(swing).std() / (roll(swing).mean() + e),
        }
        for name, move in {"SUM": dc, "VSUM": dv}.items():
            up, down = roll(move.clip(lower=0)).sum(), roll((-move).clip(lower=0)).sum()
            whole = roll(move.abs()).sum() + e
            found |= {f"{name}P{d}": up / whole, f"{name}N{d}": down / whole}
            found[f"{name}D{d}"] = (up - down) / whole
    return found


def _regression(series: pd.Series, d: int, of: Callable[[np.ndarray, np.ndarray], float]) -> pd.Series:
    """A function of (position in the window, today = d; value) over days that exist; NaN below two."""
    values = series.to_numpy(float)
    found = np.full(len(values), np.nan)
    for last in range(len(values)):
        window = values[max(0, last - d + 1) : last + 1]
        position = np.arange(d - len(window) + 1, d + 1)
        known = np.isfinite(window)
        # a window without spread has no correlation; `mask(flat)` says so where Qlib does
        if known.sum() >= 2:
            with np.errstate(invalid="ignore", divide="ignore"):
                found[last] = of(position[known], window[known])
    return pd.Series(found, series.index)


def _correlation(x: pd.Series, y: pd.Series, d: int) -> pd.Series:
    result = x.rolling(d, min_periods=1).corr(y)
    still = [np.isclose(s.rolling(d, min_periods=1).std(), 0, atol=2e-5) for s in (x, y)]
    return result.mask(still[0] | still[1])
