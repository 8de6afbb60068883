"""Small random markets that the tests of the portfolio share."""

import numpy as np

from manyhead.stocks.panel import Panel


def random_panel(
    seed: int, days: int = 40, symbols: int = 8, gaps: float = 0.05, wild: float = 0.08
) -> Panel:
    """Prices with suspended days, limit moves, and lots that do not fit."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(0.0005, 0.02, (days, symbols))
    jumps = rng.random((days, symbols)) < wild
    moves[jumps] = rng.choice([-0.1, 0.1], jumps.sum())
    close = rng.uniform(5, 60, symbols) * np.cumprod(1 + moves, axis=0)
    opening = close * np.exp(rng.normal(0, 0.01, (days, symbols)))
    factor = np.broadcast_to(rng.uniform(0.5, 3, symbols), close.shape).copy()
    suspended = rng.random((days, symbols)) < gaps
    suspended[0] = False
    fields = {"close": close, "open": opening, "factor": factor}
    for values in fields.values():
        values[suspended] = np.nan
    return Panel(business_days(days), tuple(f"S{column:02d}" for column in range(symbols)), fields)


def business_days(count: int) -> np.ndarray:
    return np.busday_offset("2021-01-04", np.arange(count))


def smooth_panel(seed: int = 0, days: int = 60, symbols: int = 10) -> Panel:
    """Prices without gaps or limits, and fractions of shares."""
    panel = random_panel(seed, days, symbols, gaps=0, wild=0)
    return Panel(panel.dates, panel.symbols, {"close": panel["close"], "open": panel["open"]})
