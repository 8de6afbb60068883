"""Whatever bytes come, reading prices gives a panel or an InputError, never another exception."""

import io
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.prices import read_prices

TEXTS = ["", "1", "2.5", "-1", "0", "nan", "inf", "-inf", "1e308", "1e-320", "-", "1_0", "0x1", "9" * 30]
TEXTS += ["A", "B", '"', "'", "\\", "x\ny", "x\ry", '"x\ny"', "\ufeff", "2020-01-02", "2020-01-03"]
TEXTS += ["20200106", "31.01.2020", "01/02/2020", "2020-01-02T00:00:00Z"]
CELLS = st.one_of(
    st.sampled_from(TEXTS),
    st.text(max_size=6),
    st.floats().map(repr),
    st.dates().map(str),
)
NAMES = st.sampled_from(
    ["date", "symbol", "open", "high", "low", "close", "volume", "vwap", "money", "factor"]
)
HEADERS = st.lists(st.one_of(NAMES, st.text(max_size=4)), max_size=8)


def survives(content: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"prices{ending}"
        path.write_bytes(content)
        try:
            panel = read_prices(path, today=date(2024, 1, 1))
        except InputError:
            return
    assert isinstance(panel, Panel)
    prices = np.stack([panel[name] for name in ("open", "high", "low", "close") if name in panel])
    assert not np.isinf(prices).any()
    assert not (prices <= 0).any()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".csv", ".parquet", ".csv.gz"]))
def test_random_bytes(content: bytes, ending: str) -> None:
    survives(content, ending)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
def test_random_bytes_in_the_frame_of_a_parquet_file(content: bytes) -> None:
    survives(b"PAR1" + content + b"PAR1", ".parquet")


@settings(max_examples=150, deadline=None)
@given(HEADERS, st.lists(st.lists(CELLS, max_size=8), max_size=6), st.sampled_from([",", ";", "\t"]))
def test_random_tables(header: list[str], rows: list[list[str]], separator: str) -> None:
    text = "\n".join(separator.join(row) for row in [header, *rows])
    survives(text.encode("utf-8", errors="surrogatepass"), ".csv")


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_good_table_with_some_cells_spoilt(data: st.DataObject) -> None:
    """Most of the table can be read, so that the checks behind the reader are reached as well."""
    rows = [
        [f"2020-01-{day:02}", symbol, "10", "12", "9", f"{10 + day / 10}", "100", "1000"]
        for symbol in "AB"
        for day in range(2, 9)
    ]
    for _ in range(data.draw(st.integers(0, 4))):
        row = data.draw(st.integers(0, len(rows) - 1))
        rows[row][data.draw(st.integers(0, 7))] = data.draw(CELLS).replace("\n", " ").replace('"', "")
    header = ["date", "symbol", "open", "high", "low", "close", "volume", "money"]
    survives("\n".join(",".join(row) for row in [header, *rows]).encode("utf-8", errors="replace"), ".csv")


def test_a_parquet_file_cut_at_any_length() -> None:
    """Flipped bits are another matter: polars trusts the sizes that a file states and may abort."""
    content = _parquet()
    for size in range(0, len(content), 7):
        with pytest.raises(InputError):
            _read(content[:size])


def _read(content: bytes) -> Panel:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prices.parquet").write_bytes(content)
        return read_prices(Path(folder) / "prices.parquet")


def _parquet() -> bytes:
    stream = io.BytesIO()
    days = pl.Series("date", [date(2020, 1, day) for day in range(2, 9)] * 2)
    symbol = pl.Series("symbol", ["A"] * 7 + ["B"] * 7)
    close = pl.Series("close", np.arange(10.0, 24.0))
    pl.DataFrame([days, symbol, close]).write_parquet(stream)
    return stream.getvalue()
