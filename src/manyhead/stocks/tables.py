"""Tables for people and files: printed, or written as CSV or Parquet."""

from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from manyhead.errors import InputError
from manyhead.files import atomic
from manyhead.stocks.config import Config
from manyhead.stocks.portfolio import Backtest

# days of factors laid out as long rows at a time
BLOCK = 64


def print_table(table: pl.DataFrame, title: str) -> None:
    """Print a table."""
    shown = Table(*table.columns, title=title)
    for row in table.iter_rows():
        shown.add_row(*(f"{cell:+.4f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(shown)


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write CSV or Parquet, by the file's ending.

    Raises:
        InputError: for another ending.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: the file must end in .csv or .parquet")
    with atomic(path) as stream:
        if path.suffix == ".csv":
            table.write_csv(stream)
        else:
            table.write_parquet(stream)


def write_factors(config: Config, path: Path, clean: bool) -> list[str]:
    """Compute the factors of a configuration for all days and write them: date, symbol, one column a factor.

    Args:
        config: settings; the universe is that of the last day.
        path: Parquet file.
        clean: as models see them (scalers fitted on all but the last split's validation and test days).

    Returns:
        what to tell the user, line by line.
    """
    from manyhead.stocks.pipeline import load_panel
    from manyhead.stocks.prepare import choose_universe, raw_factors, standardise
    from manyhead.stocks.preprocess import dead_inputs
    from manyhead.stocks.splits import Split, choose_splits

    if path.suffix != ".parquet":
        raise InputError(f"--out {path}: the file must end in .parquet")
    panel, sectors = load_panel(config)
    days = panel.days
    if clean:
        split = max(choose_splits(config, days).items())[1]
    else:
        split = Split(0, days, days, days)
    symbols, warnings = choose_universe(panel, split, config)
    panel = panel.select(symbols)
    source = raw_factors(panel, config)
    report = dead_inputs(source, range(0, split.train_end))
    if clean:
        source = standardise(source, panel, split, config, sectors)
    pieces = []
    for start in range(0, days, BLOCK):
        values = source.rows(start, min(start + BLOCK, days))
        flat = values.reshape(-1, len(source.names))
        long = pl.DataFrame(
            {
                "date": np.repeat(panel.dates[start : start + len(values)], len(symbols)),
                "symbol": list(symbols) * len(values),
            }
        ).with_columns(pl.col("date").cast(pl.Date))
        pieces.append(pl.concat([long, pl.DataFrame(flat, schema=list(source.names))], how="horizontal"))
    table = pl.concat(pieces)
    write_table(table, path)
    lines = [
        f"{len(source.names)} factors, {days} days, {len(symbols)} symbols: {path}",
        *panel.warnings,
        *warnings,
    ]
    return [*lines, *report.sentences()]


def backtest_summary(result: Backtest) -> str:
    """A back-test in ten lines."""
    measures = result.metrics
    lines = [
        f"{result.dates[0]} to {result.dates[-1]}: {len(result.dates)} days, {measures['orders']:.0f} orders "
        f"({measures['orders_blocked']:.0f} blocked)",
        f"return a year    {measures['annual_return']:+8.2%}   equal weight "
        f"{measures['benchmark_annual']:+.2%}",
        f"volatility       {measures['volatility']:8.2%}   Sharpe {measures['sharpe']:.2f}",
        f"deepest drawdown {measures['max_drawdown']:+8.2%}   "
        f"information ratio {measures['information_ratio']:.2f}",
        f"turnover a day   {measures['daily_turnover']:8.2%}   costs a year {measures['annual_cost']:.2%}",
    ]
    return "\n".join([*lines, *(f"note: {warning}" for warning in result.warnings)])
