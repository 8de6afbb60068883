"""Random panels with the blemishes of real ones."""

import numpy as np

from manyhead.stocks.panel import Panel

FIELDS = ("open", "high", "low", "close", "vwap", "volume")


def random_panel(days: int, symbols: int, seed: int = 0, gaps: float = 0.0, float64: bool = False) -> Panel:
    """Random walks; with gaps: suspended days, a late listing, a delisting, flat stretches and ties.

    Args:
        days: rows.
        symbols: columns.
        seed: of everything.
        gaps: share of stock-days that are suspended.
        float64: keep prices in float64.
    """
    random = np.random.default_rng(seed)
    shape = (days, symbols)
    close = 40 * np.exp(np.cumsum(random.normal(0, 0.02, shape), axis=0))
    if gaps:
        close[:, ::3] = np.round(close[:, ::3])  # ties
        close[days // 3 : days // 2, -1] = close[days // 3, -1]  # a flat stretch
    opened = close * np.exp(random.normal(0, 0.01, shape))
    high = np.maximum(opened, close) * np.exp(np.abs(random.normal(0, 0.005, shape)))
    low = np.minimum(opened, close) * np.exp(-np.abs(random.normal(0, 0.005, shape)))
    volume = np.round(np.exp(random.normal(11, 0.6, shape)))
    fields = dict(zip(FIELDS, (opened, high, low, close, (high + low + close) / 3, volume), strict=True))
    if gaps:
        suspended = random.random(shape) < gaps
        suspended[: days // 4, 0] = True  # listed late
        suspended[-days // 4 :, 1 % symbols] = True  # delisted
        for values in fields.values():
            values[suspended] = np.nan
        fields["volume"][random.random(shape) < gaps / 2] = np.nan  # a price without a volume
    kind = np.float64 if float64 else np.float32
    dates = np.datetime64("2020-01-01") + np.arange(days)
    names = tuple(f"S{index}" for index in range(symbols))
    return Panel(dates, names, {name: values.astype(kind) for name, values in fields.items()})


def altered_after(panel: Panel, row: int, seed: int = 7) -> Panel:
    """Every price and volume after a row changed, some of them to missing."""
    random = np.random.default_rng(seed)
    fields = {}
    for name, values in panel.fields.items():
        changed = values.copy()
        later = changed[row + 1 :]
        later *= random.uniform(0.3, 3.0, later.shape).astype(values.dtype)
        later[random.random(later.shape) < 0.1] = np.nan
        fields[name] = changed
    return Panel(panel.dates, panel.symbols, fields)
