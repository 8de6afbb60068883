"""A folder of tables: one file a symbol, or one long table in pieces."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from manyhead.errors import InputError
from manyhead.stocks.readers import columns
from manyhead.stocks.readers.rows import Rows, combine, interpret
from manyhead.stocks.readers.tables import CSV_ENDINGS, PARQUET_ENDINGS, is_table, read_table


def read_folder(folder: Path, chosen: Mapping[str, str] | None, date_format: str | None) -> Rows:
    """Read every CSV and Parquet file of a folder.

    A file without a column of symbols is one symbol, named by the file; a file with one is a piece of a
    long table.

    Raises:
        InputError: if no file is there, or one cannot be read.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    tables = [path for path in files if is_table(path)]
    if not tables:
        raise InputError(
            f"{folder}: the folder has no file of prices"
            f" (names ending in {', '.join(CSV_ENDINGS + PARQUET_ENDINGS)} are read)"
        )
    warnings: list[str] = []
    if len(tables) < len(files):
        other = [path.name for path in files if not is_table(path)]
        warnings.append(f"ignored-file: {folder} also holds {columns.listed(other, 3)}, not read")
    frames: list[pl.DataFrame] = []
    for path in tables:
        raw, origin = read_table(path)
        found = columns.assign(raw.columns, chosen, origin.name)
        symbol = None if "symbol" in found else _stem(path)
        if raw.is_empty():
            warnings.append(f"empty-symbol: {path} has a header and no rows; it is left out")
            continue
        rows = interpret(raw, origin, chosen=chosen, date_format=date_format, symbol=symbol)
        frames.append(rows.frame)
        warnings.extend(rows.warnings)
    return combine(frames, warnings, str(folder))


def _stem(path: Path) -> str:
    ending = next(
        end for end in (".csv.gz", *CSV_ENDINGS, *PARQUET_ENDINGS) if path.name.lower().endswith(end)
    )
    return path.name[: -len(ending)]
