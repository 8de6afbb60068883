"""Factors of daily prices: Alpha360, Alpha158, users' own, and the sources that hand them out."""

from manyhead.stocks.factors.alpha158 import RollingAlpha158, alpha158
from manyhead.stocks.factors.alpha360 import LaggedAlpha360, alpha360
from manyhead.stocks.factors.names import factor_names
from manyhead.stocks.factors.plugins import extra_factors
from manyhead.stocks.factors.source import (
    Chosen,
    Factors,
    FactorSource,
    Joined,
    Stretch,
    join,
    store,
    stretch,
)

__all__ = [
    "Chosen",
    "FactorSource",
    "Factors",
    "Joined",
    "LaggedAlpha360",
    "RollingAlpha158",
    "Stretch",
    "alpha158",
    "alpha360",
    "extra_factors",
    "factor_names",
    "join",
    "store",
    "stretch",
]
