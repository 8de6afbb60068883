"""Daily prices from the forms in which people keep them, as one panel."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from manyhead.errors import InputError, optional
from manyhead.stocks import checks
from manyhead.stocks.actions import adjust, read_events
from manyhead.stocks.jumps import Jumps
from manyhead.stocks.panel import Panel
from manyhead.stocks.readers import qlib
from manyhead.stocks.readers.columns import listed
from manyhead.stocks.readers.folders import read_folder
from manyhead.stocks.readers.frames import closing_prices, is_frame, read_frame
from manyhead.stocks.readers.rows import Rows, interpret, to_panel
from manyhead.stocks.readers.tables import read_table
from manyhead.stocks.readers.yahoo import fetch
from manyhead.stocks.renames import apply_renames, read_renames
from manyhead.stocks.sessions import session_warnings


def read_prices(
    source: Any,
    *,
    start: date | str | None = None,
    end: date | str | None = None,
    symbols: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    date_format: str | None = None,
    splits: str | Path | None = None,
    dividends: str | Path | None = None,
    renames: str | Path | None = None,
    exchange: str | None = None,
    jumps: Jumps = "suspend",
    minimum_days: int = 2,
    today: date | None = None,
    client: Any = None,
) -> Panel:
    """Read daily prices into a panel, checked.

    Columns are found by name, whatever the case (`manyhead.stocks.readers.columns.ALIASES`): date,
    symbol and close must be there; open, high, low, volume, vwap, money and factor are used where they
    are; a column of adjusted closes scales the whole bar. Days that a symbol lacks stay NaN and nothing
    is filled. Volume 0 becomes NaN, because factors that divide by it explode and drown every ordinary
    value when they are scaled. What else is checked is listed in `manyhead.stocks.checks.CODES`; what was
    found is in the panel's warnings.

    Args:
        source: a CSV or Parquet file with one row a date and symbol; a folder of such files, or of files
            of one symbol each, named by the symbol; a folder in Qlib's binary format; 'skfolio', the
            closing prices of 20 S&P 500 members that come with that package; 'yfinance:AAPL,MSFT';
            'sp500' or another data set of prices known to `manyhead.data`; a polars or pandas table.
        start: first day, '2016-01-01' or a date.
        end: last day, included.
        symbols: take these only, in this order.
        columns: field -> column of the source, where names do not tell.
        date_format: strptime format of dates, where the cells do not tell (01/02/2020).
        splits: a file of symbol, date, ratio, where the prices are raw; see `manyhead.stocks.actions`.
        dividends: a file of symbol, date, amount, likewise.
        renames: a file of old, new, date: changes of symbols, see `manyhead.stocks.renames`.
        exchange: 'XNYS' for example: report sessions that the prices lack and days that were none.
        jumps: what to do with a close 50 times the last one, see `manyhead.stocks.checks.clean`.
        minimum_days: fewer days are an error.
        today: days after it are reported; the system's date if None.
        client: stands in for the yfinance package.

    Returns:
        The panel, fields in float64, symbols in order of name unless `symbols` says otherwise.

    Raises:
        InputError: if the source cannot be read, with file, row and column; or no day is left.
    """
    rows = read_rows(
        source,
        start=start,
        end=end,
        symbols=symbols,
        columns=columns,
        date_format=date_format,
        renames=renames,
        client=client,
    )
    panel = panel_of(
        rows,
        splits=splits,
        dividends=dividends,
        exchange=exchange,
        jumps=jumps,
        minimum_days=minimum_days,
        today=today,
    )
    if symbols is None:
        return panel
    return panel.select([symbol for symbol in dict.fromkeys(symbols) if symbol in set(panel.symbols)])


def read_rows(
    source: Any,
    *,
    start: date | str | None = None,
    end: date | str | None = None,
    symbols: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    date_format: str | None = None,
    renames: str | Path | None = None,
    client: Any = None,
) -> Rows:
    """Read daily prices as their source gives them: no cell is judged yet; arguments as in `read_prices`.

    Raises:
        InputError: if the source cannot be read, with file, row and column; or no day is left.
    """
    first, last = _day(start, "start"), _day(end, "end")
    if first is not None and last is not None and first > last:
        raise InputError(f"start {first} lies after end {last}")
    rows = _read(source, columns, date_format, first, last, client)
    if renames is not None:
        rows = apply_renames(rows, read_renames(renames))
    if symbols is not None:
        rows = _only(rows, symbols)
    return Rows(_between(rows.frame, first, last), rows.warnings)


def panel_of(
    rows: Rows,
    *,
    splits: str | Path | None = None,
    dividends: str | Path | None = None,
    exchange: str | None = None,
    jumps: Jumps = "suspend",
    minimum_days: int = 2,
    today: date | None = None,
) -> Panel:
    """Adjust and check rows, and lay them out as a panel; arguments as in `read_prices`.

    Raises:
        InputError: if an event cannot be applied, or no price is left.
    """
    raw = to_panel(rows)
    if splits is not None or dividends is not None:
        raw = adjust(
            raw,
            splits=None if splits is None else read_events(splits, "split"),
            dividends=None if dividends is None else read_events(dividends, "dividend"),
        )
    panel = checks.clean(raw, jumps=jumps, today=today, minimum_days=minimum_days)
    if exchange is not None:
        panel = replace(panel, warnings=(*panel.warnings, *session_warnings(panel, exchange)))
    return panel


def _read(
    source: Any,
    columns: Mapping[str, str] | None,
    date_format: str | None,
    first: date | None,
    last: date | None,
    client: Any,
) -> Rows:
    if is_frame(source):
        raw, origin = read_frame(source)
        return interpret(raw, origin, chosen=columns, date_format=date_format)
    if not isinstance(source, str | Path):
        raise InputError(
            f"prices: got {type(source).__name__}; a path, 'skfolio', 'yfinance:...' or a table is accepted"
        )
    text = str(source)
    if text == "skfolio":
        wide = optional("skfolio.datasets", "stocks").load_sp500_dataset()
        return closing_prices(wide, "skfolio's S&P 500 set")
    if text.startswith("yfinance:"):
        tickers = [ticker.strip() for ticker in text.removeprefix("yfinance:").split(",")]
        return fetch([t for t in dict.fromkeys(tickers) if t], first, last, client=client, name=text)
    path = Path(text.removeprefix("qlib:"))
    if text.startswith("qlib:") or qlib.is_qlib(path):
        return qlib.read_qlib(path)
    if path.is_dir():
        return read_folder(path, columns, date_format)
    if not path.exists() and path.suffix == "":
        from manyhead import data

        if text in data.DATASETS and data.DATASETS[text].kind == "prices":
            return interpret(*read_table(data.path(text)))
    raw, origin = read_table(path)
    return interpret(raw, origin, chosen=columns, date_format=date_format)


def _day(value: date | str | None, name: str) -> date | None:
    if value is None or isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: got {value!r}; a day such as 2020-01-31 is accepted") from None


def _between(frame: pl.DataFrame, first: date | None, last: date | None) -> pl.DataFrame:
    kept = frame
    if first is not None:
        kept = kept.filter(pl.col("date") >= first)
    if last is not None:
        kept = kept.filter(pl.col("date") <= last)
    if kept.is_empty():
        raise InputError(
            f"no day of the prices lies between {first or 'the start'} and {last or 'the end'};"
            f" they cover {min(frame['date'])} to {max(frame['date'])}"
        )
    return kept


def _only(rows: Rows, symbols: Sequence[str]) -> Rows:
    known = set(rows.frame["symbol"].unique())
    absent = [symbol for symbol in symbols if symbol not in known]
    if absent:
        raise InputError(
            f"symbols: these prices have no {listed(absent, 5)} ({len(absent)} of {len(symbols)} absent)"
        )
    return Rows(rows.frame.filter(pl.col("symbol").is_in(list(symbols))), rows.warnings)
