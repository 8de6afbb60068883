"""Malformed prices, one row of the table each: one clear message, or a named warning and a known result.

Every case starts from the same good file, three symbols over thirty weekdays, and spoils one thing.
"""

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.checks import CODES
from manyhead.stocks.panel import Panel
from manyhead.stocks.prices import read_prices

HEADER = "date,symbol,open,high,low,close,volume"
DAYS = [
    date(2020, 1, 1) + timedelta(days=d)
    for d in range(42)
    if (date(2020, 1, 1) + timedelta(days=d)).weekday() < 5
]
TODAY = date(2024, 1, 1)


def bar(symbol: str, day: int) -> list[str]:
    """Prices that wander a little, none like another."""
    close = 50 + 10 * ord(symbol[0]) % 17 + 3 * np.sin(day + ord(symbol[0]))
    return [f"{close * f:.4f}" for f in (0.99, 1.02, 0.97, 1.0)] + [str(1000 + 10 * day)]


def lines() -> list[str]:
    """The good file: line 2 is A on the first day, line 32 is B on the first day."""
    rows = [HEADER]
    for symbol in ("A", "B", "C"):
        rows += [",".join([str(DAYS[d]), symbol, *bar(symbol, d)]) for d in range(30)]
    return rows


def edited(line: int, column: str, cell: str) -> str:
    """The good file with one cell changed."""
    rows = lines()
    cells = rows[line - 1].split(",")
    cells[HEADER.split(",").index(column)] = cell
    rows[line - 1] = ",".join(cells)
    return "\n".join(rows) + "\n"


def mapped(change: Callable[[list[str]], list[str]], header: str = HEADER) -> str:
    """The good file with every row changed."""
    return "\n".join([header, *(",".join(change(row.split(","))) for row in lines()[1:])]) + "\n"


def good() -> str:
    return "\n".join(lines()) + "\n"


def swapped() -> str:
    rows = lines()
    rows[4], rows[9] = rows[9], rows[4]
    return "\n".join(rows)


def jump(spike: bool) -> str:
    def change(cells: list[str]) -> list[str]:
        late = cells[0] == str(DAYS[15]) if spike else cells[0] >= str(DAYS[15])
        if cells[1] == "B" and late:
            cells[2:6] = [str(float(cell) * 100) for cell in cells[2:6]]
        return cells

    return mapped(change)


def columns_dropped(*names: str) -> str:
    keep = [i for i, name in enumerate(HEADER.split(",")) if name not in names]
    return mapped(lambda cells: [cells[i] for i in keep], ",".join(HEADER.split(",")[i] for i in keep))


def dates_as(change: Callable[[date], str]) -> str:
    return mapped(lambda cells: [change(date.fromisoformat(cells[0])), *cells[1:]])


# name, text or bytes of prices.csv, arguments, what the message must say
REFUSED: list[tuple[str, str | bytes, dict, str]] = [
    (
        "text in a price",
        edited(5, "close", "abc"),
        {},
        r"prices.csv, line 5, column 'close': got 'abc'; a number",
    ),
    ("text in volume", edited(40, "volume", "lots"), {}, r"line 40, column 'volume': got 'lots'"),
    ("thousands separator", edited(5, "close", '"1,000.5"'), {}, r"line 5.*'1,000.5'.*thousands"),
    ("currency sign", edited(5, "open", "$50"), {}, r"line 5, column 'open': got '\$50'"),
    ("decimal comma", good().replace(",", ";").replace(".", ","), {}, r"line 2, column 'open'.*number"),
    (
        "no date column",
        columns_dropped("date"),
        {},
        r"no column for 'date' \(accepted names: date, .*there are 'symbol'",
    ),
    ("no symbol column", columns_dropped("symbol"), {}, r"no column for 'symbol'.*put them into a folder"),
    ("no close column", columns_dropped("close"), {}, r"no column for 'close'"),
    ("no header", "\n".join(lines()[1:]), {}, r"no column for 'date'"),
    ("one column", "\n".join(row.split(",")[0] for row in lines()), {}, r"the header has one column, 'date'"),
    (
        "divided by spaces",
        good().replace(",", " "),
        {},
        r"one column.*divided by a comma, semicolon, tab or bar",
    ),
    ("empty file", b"", {}, r"prices.csv: the file is empty"),
    ("blank lines only", "\n\n  \n", {}, r"the file is empty"),
    ("header only", HEADER + "\n", {}, r"there are no rows of prices"),
    (
        "duplicated column",
        good().replace("open,high", "close,high", 1),
        {},
        r"names the column 'close' twice",
    ),
    (
        "same column in two cases",
        good().replace("open,high", "Close,high", 1),
        {},
        r"column 'close' is there twice",
    ),
    (
        "cell too many",
        good().replace("\n", "\n", 1) + "2020-03-02,A,1,2,3,4,5,6\n",
        {},
        r"line 92: has 8 cells, the header 7",
    ),
    ("cell too few", good() + "2020-03-02\n", {}, r"line 92, column 'symbol': the symbol is empty"),
    ("no UTF-8", good().encode().replace(b",B,", b",B\xe9,", 1), {}, r"line 32: the byte 0xe9 is not UTF-8"),
    ("UTF-16", good().encode("utf-16"), {}, r"UTF-16"),
    ("zero bytes", good().encode().replace(b",B,", b",\0,", 1), {}, r"line 32: holds a zero byte"),
    ("Parquet called CSV", b"PAR1" + b"x" * 40, {}, r"Parquet file, though its name says CSV"),
    ("open quote", good() + '2020-03-02,"A,1,2,3,4,5\n', {}, r"prices.csv"),
    ("no date", edited(7, "date", ""), {}, r"line 7, column 'date': the date is missing"),
    (
        "text for a date",
        edited(7, "date", "yesterday"),
        {},
        r"line 7, column 'date': got 'yesterday'; dates such as 2020",
    ),
    (
        "no such day",
        edited(7, "date", "2020-02-30"),
        {},
        r"line 7.*'2020-02-30'; the calendar has no such day",
    ),
    ("year 0020", edited(7, "date", "0020-01-08"), {}, r"line 7.*1900 to 2100"),
    (
        "mixed date formats",
        edited(9, "date", "31.01.2020"),
        {},
        r"line 9.*'31.01.2020'.*one date format a file",
    ),
    (
        "day or month first",
        mapped(lambda c: ["0" + c[0][-1] + "/02/2020", *c[1:]]),
        {},
        r"line 2.*date_format",
    ),
    (
        "both orders",
        mapped(lambda c: [["13/01/2020", "01/13/2020"][c[1] == "C"], *c[1:]]),
        {},
        r"one order a file",
    ),
    (
        "two-digit year",
        dates_as(lambda d: d.strftime("%d/%m/%y")),
        {},
        r"line 2, column 'date': got '01/01/20'",
    ),
    (
        "Excel's day number",
        dates_as(lambda d: str((d - date(1899, 12, 30)).days)),
        {},
        r"got '43831'; dates such as",
    ),
    (
        "date_format that does not fit",
        good(),
        {"date_format": "%d.%m.%Y"},
        r"line 2.*date_format '%d.%m.%Y' does not",
    ),
    ("empty symbol", edited(33, "symbol", "  "), {}, r"line 33, column 'symbol': the symbol is empty"),
    (
        "same day, other price",
        good() + ",".join([str(DAYS[0]), "A", *bar("B", 3)]),
        {},
        r"line 92.*A on 2020-01-01.*in line 2, with other",
    ),
    (
        "intraday",
        mapped(lambda c: [c[0] + " 09:30:00", *c[1:]]) + "2020-01-01 09:31:00,A,1,1,1,1,1\n",
        {},
        r"line 92.*not intraday",
    ),
    (
        "changes for prices",
        mapped(lambda c: [*c[:2], *(str(float(x) - 60) for x in c[2:6]), c[6]]),
        {},
        r"zero or negative.*not changes",
    ),
    ("every close missing", mapped(lambda c: [*c[:5], "", c[6]]), {}, r"close: no price is left"),
    (
        "one day",
        "\n".join(row for row in lines() if "2020-01-02" in row or "date" in row),
        {},
        r"cover 1 day \(2020-01-02\)",
    ),
    (
        "start after end",
        good(),
        {"start": "2020-02-01", "end": "2020-01-01"},
        r"start 2020-02-01 lies after end",
    ),
    (
        "start after the data",
        good(),
        {"start": "2021-01-01"},
        r"between 2021-01-01 and the end; they cover 2020-01-01",
    ),
    (
        "start that is no day",
        good(),
        {"start": "last year"},
        r"start: got 'last year'; a day such as 2020-01-31",
    ),
    ("symbol that is not there", good(), {"symbols": ["A", "ZZ"]}, r"no 'ZZ' \(1 of 2 absent\)"),
    ("column that is not there", good(), {"columns": {"close": "PX"}}, r"no column 'PX'; there are 'date'"),
    ("field that is none", good(), {"columns": {"klose": "close"}}, r"'klose' is not a field"),
    ("jump refused", jump(False), {"jumps": "refuse"}, r"close jumps: B on 2020-01-22 \(.* to .*\)"),
    ("unknown choice for jumps", good(), {"jumps": "ignore"}, r"jumps: got 'ignore'; 'suspend'"),
]


@pytest.mark.parametrize(
    ("content", "arguments", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused_with_one_message_that_says_where(
    tmp_path: Path, content: str | bytes, arguments: dict, message: str
) -> None:
    path = tmp_path / "prices.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as raised:
        read_prices(path, today=TODAY, **arguments)
    assert re.search(message, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


def value(panel: Panel, field: str, symbol: str, day: int) -> float:
    row = int(np.searchsorted(panel.dates, np.datetime64(DAYS[day])))
    return float(panel[field][row, panel.symbols.index(symbol)])


def missing(field: str, symbol: str, day: int) -> Callable[[Panel], bool]:
    return lambda panel: bool(np.isnan(value(panel, field, symbol, day)))


def kept(field: str, symbol: str, day: int) -> Callable[[Panel], bool]:
    """The cell is what the good file says."""
    number = float(bar(symbol, day)[["open", "high", "low", "close", "volume"].index(field)])
    return lambda panel: value(panel, field, symbol, day) == number


def both(*conditions: Callable[[Panel], bool]) -> Callable[[Panel], bool]:
    return lambda panel: all(condition(panel) for condition in conditions)


def flat_without_volume() -> str:
    rows = lines()
    close = rows[3].split(",")[5]  # A on the third day
    rows[4] = ",".join([str(DAYS[3]), "A", close, close, close, close, "0"])
    return "\n".join(rows)


# name, text, code of the warning, what must hold of the panel
WARNED: list[tuple[str, str | bytes, str, Callable[[Panel], bool]]] = [
    ("rows out of order", swapped(), "unsorted", both(kept("close", "A", 3), kept("close", "A", 8))),
    ("row given twice", good() + lines()[1] + "\n", "duplicate", kept("close", "A", 0)),
    (
        "negative price",
        edited(5, "low", "-3"),
        "negative-price",
        both(missing("low", "A", 3), kept("close", "A", 3)),
    ),
    (
        "zero price",
        edited(5, "close", "0"),
        "zero-price",
        both(missing("close", "A", 3), kept("open", "A", 3)),
    ),
    ("infinite price", edited(5, "high", "inf"), "infinite", missing("high", "A", 3)),
    ("infinite volume", edited(5, "volume", "-inf"), "infinite", missing("volume", "A", 3)),
    ("negative volume", edited(5, "volume", "-5"), "negative-volume", missing("volume", "A", 3)),
    (
        "zero volume",
        edited(5, "volume", "0"),
        "zero-volume",
        both(missing("volume", "A", 3), kept("close", "A", 3)),
    ),
    (
        "filled bar",
        flat_without_volume(),
        "suspended",
        both(missing("close", "A", 3), missing("open", "A", 3)),
    ),
    (
        "high below low",
        edited(5, "high", "1"),
        "contradiction",
        both(missing("low", "A", 3), kept("close", "A", 3)),
    ),
    ("close above high", edited(5, "close", "99"), "contradiction", missing("high", "A", 3)),
    (
        "open below low",
        edited(5, "open", "9"),
        "contradiction",
        both(missing("open", "A", 3), kept("close", "A", 3)),
    ),
    (
        "100-fold jump that stays",
        jump(False),
        "jump",
        both(kept("close", "B", 14), missing("close", "B", 15), missing("volume", "B", 29)),
    ),
    ("100-fold spike", jump(True), "jump", both(missing("close", "B", 15), kept("close", "B", 16))),
    (
        "four-fold move",
        mapped(
            lambda c: [
                *c[:2],
                *(str(float(x) * (4 if c[0] > "2020-01-20" and c[1] == "C" else 1)) for x in c[2:6]),
                c[6],
            ]
        ),
        "large-move",
        lambda p: value(p, "close", "C", 29) > 100,
    ),
    (
        "symbol without prices",
        mapped(lambda c: c if c[1] != "B" else [*c[:2], *[""] * 5]),
        "empty-symbol",
        lambda p: p.symbols == ("A", "C"),
    ),
    (
        "day without prices",
        mapped(lambda c: c if c[0] != str(DAYS[4]) else [*c[:2], *["nan"] * 5]),
        "empty-day",
        lambda p: p.days == 29,
    ),
    ("one symbol", "\n".join(lines()[:31]), "one-symbol", lambda p: p.symbols == ("A",)),
    ("UTC dates", mapped(lambda c: [c[0] + "T00:00:00Z", *c[1:]]), "timezone", kept("close", "C", 29)),
    (
        "New York dates",
        mapped(lambda c: [c[0] + " 00:00:00-05:00", *c[1:]]),
        "timezone",
        kept("close", "C", 29),
    ),
    ("future day", good() + "2030-01-02,A,50,51,49,50,9\n", "future-date", lambda p: p.days == 31),
    ("Sunday", good() + "2020-01-05,A,50,51,49,50,9\n", "weekend", lambda p: p.days == 31),
    ("hole in the calendar", good() + "2020-09-01,A,50,51,49,50,9\n", "calendar-gap", lambda p: p.days == 31),
    ("unfinished last day", good() + "2020-02-12,A,50,51,49,50,9\n", "thin-day", lambda p: p.days == 31),
    (
        "same series twice",
        good() + "".join(row.replace(",A,", ",D,") + "\n" for row in lines()[1:31]),
        "identical",
        lambda p: len(p.symbols) == 4,
    ),
    (
        "closes only",
        columns_dropped("open", "high", "low", "volume"),
        "few-fields",
        lambda p: list(p.fields) == ["close"],
    ),
    (
        "no vwap and no money",
        good(),
        "vwap",
        lambda p: np.isclose(value(p, "vwap", "A", 0), np.mean([float(x) for x in bar("A", 0)[1:4]])),
    ),
    (
        "money in other units",
        mapped(
            lambda c: [*c, str(float(c[5]) * float(c[6]) * (1 if c[1] == "A" else 1000))], HEADER + ",amount"
        ),
        "vwap",
        lambda p: (
            np.isclose(value(p, "vwap", "A", 0), value(p, "close", "A", 0)) and value(p, "vwap", "B", 0) < 100
        ),
    ),
    (
        "close and adjusted close",
        mapped(lambda c: [*c, str(float(c[5]) / 2)], HEADER + ",Adj Close"),
        "adjusted",
        lambda p: (
            value(p, "factor", "A", 0) == 0.5
            and np.isclose(value(p, "open", "B", 5), float(bar("B", 5)[0]) / 2)
        ),
    ),
]


@pytest.mark.parametrize(
    ("content", "code", "holds"), [case[1:] for case in WARNED], ids=[c[0] for c in WARNED]
)
def test_read_on_with_a_named_warning(
    tmp_path: Path, content: str | bytes, code: str, holds: Callable[[Panel], bool]
) -> None:
    path = tmp_path / "prices.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    panel = read_prices(path, today=TODAY)
    codes = [warning.split(":")[0] for warning in panel.warnings]
    assert code in codes
    assert set(codes) <= set(CODES)
    assert holds(panel)


def test_a_good_file_warns_of_nothing_but_the_missing_vwap(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text(good())
    panel = read_prices(tmp_path / "prices.csv", today=TODAY)
    assert [warning.split(":")[0] for warning in panel.warnings] == ["vwap"]
    assert panel.symbols == ("A", "B", "C")
    assert panel.days == 30


ACCEPTED: list[tuple[str, str | bytes]] = [
    ("byte-order mark", b"\xef\xbb\xbf" + good().encode()),
    ("Windows line ends", good().replace("\n", "\r\n")),
    ("blank lines", "\n\n" + good().replace("\n", "\n\n", 3) + "\n\n"),
    ("semicolons", good().replace(",", ";")),
    ("tabs", good().replace(",", "\t")),
    ("quoted cells", "\n".join(",".join(f'"{cell}"' for cell in row.split(",")) for row in lines())),
    ("spaces around cells", good().replace(",", " , ")),
    ("names in capitals", good().replace(HEADER, "Date,TICKER,Open,High,Low,Close,Vol.")),
    ("columns in another order", mapped(lambda c: c[::-1], ",".join(HEADER.split(",")[::-1]))),
    ("further columns", mapped(lambda c: [*c, "x,"[0]], HEADER + ",note")),
    ("dates as 20200102", dates_as(lambda d: d.strftime("%Y%m%d"))),
    ("dates as 2020/1/2", dates_as(lambda d: f"{d.year}/{d.month}/{d.day}")),
    ("dates as 02-Jan-2020", dates_as(lambda d: d.strftime("%d-%b-%Y"))),
    ("dates as January 2, 2020", mapped(lambda c: [f'"{date.fromisoformat(c[0]):%B %d, %Y}"', *c[1:]])),
    ("dates as 31.01.2020", dates_as(lambda d: d.strftime("%d.%m.%Y"))),
    ("dates as 01/31/2020", dates_as(lambda d: d.strftime("%m/%d/%Y"))),
    ("dates as 31/01/2020", dates_as(lambda d: d.strftime("%d/%m/%Y"))),
    ("a time of day", dates_as(lambda d: f"{d} 16:00:00")),
]


@pytest.mark.parametrize("content", [case[1] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
def test_harmless_variants_give_the_same_panel(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "good.csv").write_text(good())
    path = tmp_path / "prices.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    one, other = read_prices(tmp_path / "good.csv", today=TODAY), read_prices(path, today=TODAY)
    assert one.symbols == other.symbols
    assert (one.dates == other.dates).all()
    for name in one.fields:
        np.testing.assert_array_equal(one[name], other[name])


def test_missing_cells_and_days_stay_missing(tmp_path: Path) -> None:
    rows = [row for row in lines() if not row.startswith(f"{DAYS[3]},B")]
    text = "\n".join(rows).replace(bar("A", 6)[3], "N/A", 1)
    (tmp_path / "prices.csv").write_text(text)
    panel = read_prices(tmp_path / "prices.csv", today=TODAY)
    assert missing("close", "B", 3)(panel)
    assert missing("volume", "B", 3)(panel)
    assert missing("close", "A", 6)(panel)
    assert int(np.isnan(panel["close"]).sum()) == 2


@pytest.mark.parametrize("size", [0, 3, 4, 100, 500, -8, -1])
def test_a_parquet_file_cut_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "prices.parquet"
    pl.read_csv(good().encode()).write_parquet(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        InputError, match=r"prices\.parquet: (the file is empty|this is no Parquet|the Parquet file is)"
    ):
        read_prices(path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series("close", [[1.0]] * 90), "column 'close': holds List"),
        (pl.Series("close", [True] * 90), "column 'close': holds Boolean"),
        (pl.Series("symbol", [1.5] * 90), "column 'symbol': holds Float64"),
        (pl.Series("date", [1.5] * 90), "column 'date': holds Float64"),
        (pl.Series("date", [1577836800000] * 90), "row 1, column 'date': got '1577836800000'"),
        (pl.Series("date", [timedelta(1)] * 90), "column 'date': holds Duration"),
    ],
)
def test_parquet_columns_of_another_type_are_refused(tmp_path: Path, column: pl.Series, message: str) -> None:
    path = tmp_path / "prices.parquet"
    pl.read_csv(good().encode()).with_columns(column).write_parquet(path)
    with pytest.raises(InputError, match=re.escape(message)):
        read_prices(path)


def test_typed_dates_of_parquet_files(tmp_path: Path) -> None:
    """A date as Date, as Datetime, as an integer, and as Datetime of a zone (its wall clock) are one day."""
    table = pl.read_csv(good().encode(), try_parse_dates=True)
    stamp = pl.col("date").cast(pl.Datetime("us"))
    forms = {
        "date": pl.col("date"),
        "datetime": stamp,
        "integer": pl.col("date").dt.strftime("%Y%m%d").cast(pl.Int64),
        "zone": stamp.dt.replace_time_zone("Asia/Shanghai"),
    }
    first = None
    for name, form in forms.items():
        table.with_columns(form.alias("date")).write_parquet(tmp_path / f"{name}.parquet")
        panel = read_prices(tmp_path / f"{name}.parquet", today=TODAY)
        first = panel if first is None else first
        assert (panel.dates == first.dates).all(), name
        assert any(w.startswith("timezone") for w in panel.warnings) == (name == "zone")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.csv", "no such file or folder"),
        ("prices.xlsx", "cannot tell what this file is"),
        ("folder", "has no file of prices"),
        ("directory.csv", "has no file of prices"),
    ],
)
def test_paths_that_are_no_table(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "prices.xlsx").write_bytes(b"PK")
    for folder in ("folder", "directory.csv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "readme.md").write_text("nothing")
    with pytest.raises(InputError, match=message):
        read_prices(tmp_path / name)


@pytest.mark.parametrize("source", [None, 3, ["prices.csv"], datetime(2020, 1, 1)])
def test_sources_that_are_none(source: object) -> None:
    with pytest.raises(InputError, match=r"a path, 'skfolio', 'yfinance:[.]+' or a table"):
        read_prices(source)
