"""Back-test a score file on price files: what `manyhead stocks backtest` does."""

from pathlib import Path
from typing import Any

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio.backtest import Backtest, backtest
from manyhead.stocks.portfolio.exchange import Exchange
from manyhead.stocks.portfolio.scores import read_scores
from manyhead.stocks.portfolio.strategy import Strategy


def backtest_files(
    scores: str | Path,
    prices: Any,
    strategy: Strategy | None = None,
    exchange: Exchange | str = "us",
    *,
    out: str | Path | None = None,
    **options: Any,
) -> Backtest:
    """Read scores and prices, back-test, and save the tables.

    Args:
        scores: a .parquet or .csv file with the columns date, symbol, score.
        prices: a `Panel`, or anything that `manyhead.stocks.prices.read_prices` reads.
        strategy: as in `backtest`.
        exchange: as in `backtest`.
        out: folder for report.parquet, positions.parquet and orders.parquet.
        **options: the other arguments of `backtest`: account, benchmark, start, end, lag, unknown.

    Raises:
        InputError: if a file or an argument cannot be used; `out` is checked before anything runs.
    """
    from manyhead.stocks.prices import read_prices

    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"out must be a folder, {out} is a file")
    table = read_scores(scores)
    panel = prices if isinstance(prices, Panel) else read_prices(prices)
    result = backtest(panel, table, strategy, exchange, **options)
    if out is not None:
        result.save(out)
    return result
