"""Tables of prices on disk: CSV in any of its dialects, and Parquet."""

import csv
import gzip
import io
import zlib
from pathlib import Path

import polars as pl

from manyhead.errors import InputError
from manyhead.stocks.readers.cells import Origin

CSV_ENDINGS = (".csv", ".csv.gz", ".tsv", ".txt")
PARQUET_ENDINGS = (".parquet", ".pq")
_TROUBLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, OverflowError)


def is_table(path: Path) -> bool:
    """Tell whether the name ends like a table that can be read."""
    return path.name.lower().endswith(CSV_ENDINGS + PARQUET_ENDINGS)


def read_table(path: Path) -> tuple[pl.DataFrame, Origin]:
    """Read a CSV file as text, or a Parquet file as it is typed.

    Returns:
        The columns, and how to name a row of the file: CSV lines are counted with the header as line 1.

    Raises:
        InputError: if the file is absent, empty, cut short, of another kind than its name says, or its
            rows have different numbers of cells.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    name = path.name.lower()
    if name.endswith(PARQUET_ENDINGS):
        return read_parquet(path)
    if name.endswith(CSV_ENDINGS):
        return read_csv(path)
    raise InputError(
        f"{path}: cannot tell what this file is; names ending in"
        f" {', '.join(CSV_ENDINGS + PARQUET_ENDINGS)} are accepted, and folders of such files"
    )


def read_parquet(path: Path) -> tuple[pl.DataFrame, Origin]:
    """Read a Parquet file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not start:
        raise InputError(f"{path}: the file is empty")
    if start != b"PAR1":
        raise InputError(f"{path}: this is no Parquet file, though its name says so")
    try:
        return pl.read_parquet(path), Origin(str(path), "row", 1)
    except _TROUBLE as error:
        why = (str(error).splitlines() or ["?"])[0][:120]
        raise InputError(f"{path}: the Parquet file is damaged or cut short ({why})") from error


def read_csv(path: Path) -> tuple[pl.DataFrame, Origin]:
    """Read a CSV file: comma, semicolon, tab or bar between cells; UTF-8 with or without a mark."""
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return parse_csv(content, str(path))


def parse_csv(content: bytes, name: str) -> tuple[pl.DataFrame, Origin]:
    """Read the bytes of a CSV file.

    Raises:
        InputError: as `read_table`.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name}: the text is UTF-16; save it as UTF-8")
    if content.startswith(b"PAR1"):
        raise InputError(f"{name}: this is a Parquet file, though its name says CSV; rename it to .parquet")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{name}, line {line}: holds a zero byte, so this is no text file")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    # blank lines before the header are skipped, and counted so that messages name the right line
    if b"\n" not in content:  # line ends of old Macs
        content = content.replace(b"\r", b"\n")
    body = content.lstrip(b"\r\n")
    skipped = content[: len(content) - len(body)].count(b"\n")
    if not body.strip():
        raise InputError(f"{name}: the file is empty")
    header_line = body.split(b"\n", 1)[0].decode().rstrip("\r")
    separator = max(",;\t|", key=header_line.count)
    try:
        header = next(csv.reader([header_line], delimiter=separator), [])
    except csv.Error as error:
        raise InputError(f"{name}, line {skipped + 1}: the header cannot be read: {error}") from error
    if len(header) < 2:
        raise InputError(
            f"{name}: the header has one column, {header_line[:60]!r}; at least date, symbol and close are"
            " needed, divided by a comma, semicolon, tab or bar"
        )
    repeated = next((column for column in header if column and header.count(column) > 1), None)
    if repeated is not None:
        raise InputError(f"{name}: the header names the column {repeated!r} twice")
    try:
        table = pl.read_csv(io.BytesIO(body), infer_schema=False, separator=separator, raise_if_empty=False)
    except _TROUBLE as error:
        raise _ragged(body, separator, len(header), name, skipped, error) from error
    if table.width != len(header):
        raise InputError(f"{name}, line {skipped + 1}: the header cannot be read; one line is accepted")
    table.columns = [column.strip() or f"column {index + 1}" for index, column in enumerate(header)]
    return table, Origin(name, "line", skipped + 2)


def _ragged(
    body: bytes, separator: str, width: int, name: str, skipped: int, error: BaseException
) -> InputError:
    """Find the line on which reading stopped."""
    reader = csv.reader(io.StringIO(body.decode(), newline=""), delimiter=separator)
    try:
        for row in reader:
            if len(row) > width:
                return InputError(
                    f"{name}, line {reader.line_num + skipped}: has {len(row)} cells, the header {width};"
                    " every row must have as many cells as the header"
                )
    except csv.Error as broken:
        return InputError(f"{name}, line {reader.line_num + skipped}: {broken}")
    why = (str(error).splitlines() or ["?"])[0][:120]
    return InputError(f"{name}: cannot be read as CSV ({why})")
