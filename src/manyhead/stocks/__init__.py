"""The flagship: daily prices in, an honest walk-forward stock-selection result out."""

from importlib import import_module
from typing import Any

# name -> module; loaded at first use, so that a part can be imported without the rest
_HOMES = {
    "Config": "manyhead.stocks.config",
    "build": "manyhead.stocks.config",
    "read_toml": "manyhead.stocks.config",
    "Panel": "manyhead.stocks.panel",
    "read_prices": "manyhead.stocks.prices",
    "Result": "manyhead.stocks.result",
    "run": "manyhead.stocks.pipeline",
    "collect": "manyhead.stocks.result",
    "summarise": "manyhead.stocks.summary",
    "predict": "manyhead.stocks.scoring",
    "update": "manyhead.stocks.live.update",
    "backtest": "manyhead.stocks.portfolio",
    "backtest_files": "manyhead.stocks.portfolio",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'manyhead.stocks' has no attribute {name!r}")
