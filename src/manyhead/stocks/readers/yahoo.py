"""Prices by ticker from Yahoo Finance through the yfinance package; needs a network."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl

from manyhead.errors import InputError, optional
from manyhead.stocks.readers.rows import Rows

_FIELDS = {"Open": "open", "High": "high", "Low": "low", "Close": "close", "Volume": "volume"}


def fetch(
    tickers: list[str], start: date | None, end: date | None, *, client: Any = None, name: str = "yfinance"
) -> Rows:
    """Fetch adjusted daily prices.

    Args:
        tickers: as Yahoo spells them.
        start: first day; the whole history if None.
        end: last day, included; until today if None.
        client: what has yfinance's `download`; the package itself if None.
        name: the source, for messages.

    Raises:
        InputError: if the package is absent, fetching fails, or nothing comes back.
    """
    if not tickers:
        raise InputError(f"{name}: names no ticker; yfinance:AAPL,MSFT for example is accepted")
    client = client or optional("yfinance", "stocks")
    span: dict[str, str] = {"period": "max"} if start is None and end is None else {}
    if span == {}:
        span["start"] = str(start or date(1927, 1, 1))
        if end is not None:
            span["end"] = str(end + timedelta(days=1))  # Yahoo leaves the last day out
    try:
        frame = client.download(
            tickers, auto_adjust=True, progress=False, group_by="column", multi_level_index=True, **span
        )
    except Exception as error:  # the client raises whatever its network layer does
        raise InputError(f"{name}: fetching failed: {type(error).__name__}: {error}") from error
    if frame is None or len(frame) == 0:
        raise InputError(
            f"{name}: nothing came back for {', '.join(tickers[:5])}; check tickers, dates and network"
        )
    pieces, absent = [], []
    days = frame.index.to_numpy().astype("datetime64[D]")
    for ticker in tickers:
        here = {
            field: frame[column, ticker].to_numpy(dtype=np.float64)
            for column, field in _FIELDS.items()
            if (column, ticker) in frame.columns
        }
        if "close" not in here or np.isnan(here["close"]).all():
            absent.append(ticker)
            continue
        table = pl.DataFrame({"date": days, "symbol": [ticker] * len(days), **here})
        pieces.append(table.filter(pl.col("close").is_not_nan()))
    if not pieces:
        raise InputError(f"{name}: no prices came back for {', '.join(tickers[:5])}")
    warnings = [
        "survivorship: tickers that no longer trade cannot be fetched, so that the list is of survivors"
    ]
    if absent:
        warnings.append(f"not-fetched: nothing came back for {', '.join(absent)}")
    return Rows(pl.concat(pieces, how="diagonal"), tuple(warnings))
