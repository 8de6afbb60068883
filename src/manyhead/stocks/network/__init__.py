"""Stockformer's network, one mechanism per file; `reference.py` is the yardstick of the fast path."""

from manyhead.stocks.network.official import load_official, official_parameter_count, official_state_dict
from manyhead.stocks.network.stockformer import Forecast, Stockformer

__all__ = ["Forecast", "Stockformer", "load_official", "official_parameter_count", "official_state_dict"]
