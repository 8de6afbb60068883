"""Sources of prices: each gives the numbers that went in, on one calendar, nothing filled."""

import os
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.prices import read_prices

TODAY = date(2024, 1, 1)
DATA = Path(os.environ.get("MANYHEAD_DATA", "")) / "sp500.parquet"


def random_table(symbols: str = "ABCD", days: int = 40, seed: int = 0) -> pl.DataFrame:
    """A long table with holes, rows in random order."""
    rng = np.random.default_rng(seed)
    dates = np.arange(np.datetime64("2021-03-01"), np.datetime64("2021-03-01") + days)
    dates = dates[np.is_busday(dates)]
    rows = [(day, symbol) for symbol in symbols for day in dates if rng.random() > 0.1]
    close = rng.uniform(20, 30, len(rows))
    table = pl.DataFrame(
        {
            "date": np.array([day for day, _ in rows]),
            "symbol": [symbol for _, symbol in rows],
            "open": close * 0.999,
            "high": close * 1.01,
            "low": close * 0.98,
            "close": close,
            "volume": rng.integers(1, 10**6, len(rows)).astype(float),
        }
    )
    return table.sample(fraction=1.0, shuffle=True, seed=seed)


def assert_same(one: Panel, other: Panel, exact: bool = True) -> None:
    assert one.symbols == other.symbols
    assert (one.dates == other.dates).all()
    assert set(one.fields) == set(other.fields)
    for name in one.fields:
        np.testing.assert_allclose(one[name], other[name], rtol=0 if exact else 1e-6)


def test_every_cell_is_where_its_date_and_symbol_say() -> None:
    """Brute force: look each row up in the panel; what no row names is NaN."""
    table = random_table()
    panel = read_prices(table, today=TODAY)
    row = {day: index for index, day in enumerate(panel.dates)}
    seen = np.zeros((panel.days, 4), bool)
    for cells in table.iter_rows(named=True):
        at = row[np.datetime64(cells["date"])], panel.symbols.index(cells["symbol"])
        seen[at] = True
        assert all(panel[name][at] == cells[name] for name in ("open", "high", "low", "close", "volume"))
        assert panel["vwap"][at] == pytest.approx((cells["high"] + cells["low"] + cells["close"]) / 3)
    assert all(np.isnan(values[~seen]).all() for values in panel.fields.values())
    assert (~seen).any()


def test_file_folder_and_frames_agree(tmp_path: Path) -> None:
    table = random_table()
    table.write_csv(tmp_path / "long.csv")
    table.write_parquet(tmp_path / "long.parquet")
    (tmp_path / "by_symbol").mkdir()
    (tmp_path / "pieces").mkdir()
    for symbol in "ABCD":
        one = table.filter(pl.col("symbol") == symbol)
        one.drop("symbol").write_csv(tmp_path / "by_symbol" / f"{symbol}.csv")
        one.write_parquet(tmp_path / "pieces" / f"part-{symbol}.parquet")
    frame = pd.DataFrame({name: table[name].to_list() for name in table.columns})
    frame["date"] = pd.to_datetime(frame["date"])
    whole = read_prices(table, today=TODAY)
    sources = [
        tmp_path / "long.csv",
        tmp_path / "long.parquet",
        tmp_path / "by_symbol",
        tmp_path / "pieces",
        table.lazy(),
        frame,
        frame.set_index("date"),
        frame.set_index(["date", "symbol"]),
    ]
    for source in sources:
        assert_same(whole, read_prices(source, today=TODAY))


def test_a_folder_says_what_it_did_not_read(tmp_path: Path) -> None:
    table = random_table("AB")
    for symbol in "AB":
        table.filter(pl.col("symbol") == symbol).drop("symbol").write_csv(tmp_path / f"{symbol}.csv")
    (tmp_path / "C.csv").write_text("date,close\n")
    (tmp_path / "notes.md").write_text("hello")
    panel = read_prices(tmp_path, today=TODAY)
    assert panel.symbols == ("A", "B")
    text = " ".join(panel.warnings)
    assert "ignored-file" in text
    assert "notes.md" in text
    assert "empty-symbol" in text
    assert "C.csv" in text


def test_two_files_of_a_folder_may_not_contradict_each_other(tmp_path: Path) -> None:
    table = random_table("A")
    table.write_csv(tmp_path / "one.csv")
    table.with_columns(pl.col("close") * 1.001).write_csv(tmp_path / "two.csv")
    with pytest.raises(InputError, match=r"A on 2021-03-.. was given before"):
        read_prices(tmp_path)


def test_an_error_in_a_folder_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "A.csv").write_text("date,close\n2020-01-02,1\n2020-01-03,x\n")
    with pytest.raises(InputError, match=r"A\.csv, line 3, column 'close': got 'x'"):
        read_prices(tmp_path)


def test_a_span_and_a_choice_of_symbols() -> None:
    table = random_table()
    whole = read_prices(table, today=TODAY)
    part = read_prices(table, start="2021-03-10", end=date(2021, 3, 20), symbols=["C", "A"], today=TODAY)
    assert part.symbols == ("C", "A")
    assert_same(part, whole.between("2021-03-10", "2021-03-20").select(["C", "A"]))


def test_vwap_from_money_where_it_lies_in_the_bar() -> None:
    table = random_table().with_columns(money=pl.col("volume") * (pl.col("low") + 0.1))
    panel = read_prices(table, today=TODAY)
    np.testing.assert_allclose(panel["vwap"], panel["low"] + 0.1)
    assert not any(warning.startswith("vwap") for warning in panel.warnings)


def test_a_given_vwap_and_factor_are_kept() -> None:
    table = random_table().with_columns(VWAP=pl.col("close") * 0.99, Adj_Factor=pl.lit(2.0))
    panel = read_prices(table, today=TODAY)
    np.testing.assert_allclose(panel["vwap"], panel["close"] * 0.99)
    assert set(np.unique(panel["factor"][~np.isnan(panel["factor"])])) == {2.0}


def test_columns_by_name_and_dates_by_format() -> None:
    table = (
        random_table()
        .rename({"close": "PX", "date": "when"})
        .with_columns(pl.col("when").dt.strftime("%d|%m|%y"))
    )
    panel = read_prices(table, columns={"close": "PX", "date": "when"}, date_format="%d|%m|%y", today=TODAY)
    assert_same(panel, read_prices(random_table(), today=TODAY))


def test_skfolio_gives_closes_only() -> None:
    pytest.importorskip("skfolio", reason="skfolio is not installed")
    panel = read_prices("skfolio", start="2015-01-01", end="2019-12-31")
    assert list(panel.fields) == ["close"]
    assert len(panel.symbols) == 20
    assert panel.days == 1258  # trading days of New York in these five years
    assert "close-only" in " ".join(panel.warnings)


class Client:
    """What yfinance's `download` gives: a pandas table with (field, ticker) columns, dates as index."""

    def __init__(self, table: pl.DataFrame, fails: Exception | None = None) -> None:
        self.table, self.fails, self.asked = table, fails, {}

    def download(self, tickers: list[str], **arguments: object) -> pd.DataFrame | None:
        self.asked = arguments
        if self.fails:
            raise self.fails
        days = np.unique(self.table["date"].to_numpy()) if len(self.table) else np.array([], "datetime64[D]")
        frame = {}
        for field in ("Close", "High", "Low", "Open", "Volume"):
            for ticker in tickers:
                one = self.table.filter(pl.col("symbol") == ticker)
                known = dict(zip(one["date"].to_list(), one[field.lower()].to_list(), strict=True))
                frame[field, ticker] = [known.get(day.astype(date), np.nan) for day in days]
        index = pd.DatetimeIndex(days.astype("datetime64[s]"), name="Date")
        return pd.DataFrame(frame, index=index, columns=pd.MultiIndex.from_tuples(frame))


def test_yahoo_by_ticker() -> None:
    table = random_table()
    client = Client(table)
    panel = read_prices(
        "yfinance:A, B,ZZ,A", start="2021-03-01", end="2021-03-31", client=client, today=TODAY
    )
    assert_same(
        panel, read_prices(table.filter(pl.col("symbol").is_in(["A", "B"])), end="2021-03-31", today=TODAY)
    )
    assert client.asked["start"] == "2021-03-01"
    assert client.asked["end"] == "2021-04-01"  # Yahoo leaves the last day out
    assert client.asked["auto_adjust"] is True
    assert "not-fetched: nothing came back for ZZ" in panel.warnings


@pytest.mark.parametrize(
    ("source", "client", "message"),
    [
        (
            "yfinance:A",
            Client(random_table(), ConnectionError("no route")),
            "fetching failed: ConnectionError: no route",
        ),
        ("yfinance:ZZ", Client(random_table()), "no prices came back for ZZ"),
        ("yfinance:A", Client(random_table()[:0]), "nothing came back for A; check"),
        ("yfinance:A", SimpleNamespace(download=lambda *_, **__: None), "nothing came back for A"),
        ("yfinance: ,", Client(random_table()), "names no ticker"),
    ],
)
def test_yahoo_failing(source: str, client: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prices(source, client=client)


def write_qlib(folder: Path, table: pl.DataFrame, before: int = 3) -> None:
    """Lay a table out as Qlib does, each symbol's file from its first to its last day."""
    days = np.unique(table["date"].to_numpy())
    early = days[0] - np.arange(before, 0, -1)
    calendar = np.concatenate([early, days])
    (folder / "calendars").mkdir(parents=True)
    (folder / "calendars" / "day.txt").write_text("\n".join(map(str, calendar)))
    (folder / "instruments").mkdir()
    listing = []
    for (symbol,), one in table.sort("date").group_by("symbol", maintain_order=True):
        home = folder / "features" / str(symbol).lower()
        home.mkdir(parents=True)
        at = np.searchsorted(calendar, one["date"].to_numpy())
        for field in ("open", "high", "low", "close", "volume"):
            values = np.full(at[-1] - at[0] + 1, np.nan, "<f4")
            values[at - at[0]] = one[field].to_numpy()
            np.concatenate([np.array([at[0]], "<f4"), values]).tofile(home / f"{field}.day.bin")
        listing.append(f"{symbol}\t{calendar[at[0]]}\t{calendar[at[-1]]}")
    (folder / "instruments" / "all.txt").write_text("\n".join(listing) + "\n")


def test_qlib_folder(tmp_path: Path) -> None:
    table = random_table()
    write_qlib(tmp_path, table)
    assert_same(read_prices(table, today=TODAY), read_prices(tmp_path, today=TODAY), exact=False)
    assert_same(read_prices(f"qlib:{tmp_path}", today=TODAY), read_prices(tmp_path, today=TODAY))


def test_qlib_spans_of_the_list_are_obeyed(tmp_path: Path) -> None:
    write_qlib(tmp_path, random_table())
    (tmp_path / "instruments" / "all.txt").write_text(
        "A\t2021-03-01\t2021-03-05\nA\t2021-03-20\t2021-04-30\nB\t2021-01-01\t2022-01-01\nQ\t2021-01-01\t2022-01-01\n"
    )
    panel = read_prices(tmp_path, today=TODAY)
    assert panel.symbols == ("A", "B")
    inside = (panel.dates <= np.datetime64("2021-03-05")) | (panel.dates >= np.datetime64("2021-03-20"))
    assert np.isnan(panel.select(["A"])["close"][~inside]).all()
    assert not np.isnan(panel.select(["A"])["close"][inside]).all()
    assert any("Q" in warning and "without features" in warning for warning in panel.warnings)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("calendars/day.txt", b"2021-03-02\n2021-03-01\n", "day.txt: the days must be there and increase"),
        ("calendars/day.txt", b"yesterday\n", "day.txt: Invalid isoformat"),
        ("features/a/close.day.bin", b"12345", "close.day.bin: has 5 bytes"),
        (
            "features/a/close.day.bin",
            np.array([5000, 1], "<f4").tobytes(),
            "starts at row 5000.0 with 1 values",
        ),
        ("instruments/all.txt", b"A 2021-03-01\n", "all.txt, line 1: got 'A 2021-03-01'; symbol, first day"),
    ],
)
def test_qlib_malformed(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    write_qlib(tmp_path, random_table())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prices(tmp_path)


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_file(), reason="MANYHEAD_DATA names no folder with sp500.parquet")
def test_the_sp500_file_cell_by_cell() -> None:
    table = pl.read_parquet(DATA)
    panel = read_prices(DATA)
    assert panel.symbols == tuple(sorted(table["symbol"].unique()))
    close = table.pivot(on="symbol", index="date", values="close").sort("date")
    ours, theirs = panel["close"], close.select(panel.symbols).to_numpy().astype(np.float64)
    gone = np.isnan(ours) & ~np.isnan(theirs)
    np.testing.assert_array_equal(np.where(gone, np.nan, theirs), ours)
    suspended = next(warning for warning in panel.warnings if warning.startswith("suspended"))
    assert int(suspended.split()[1]) == gone.sum()  # nothing else was taken away


def test_prices_by_the_name_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_table().write_parquet(tmp_path / "sp500.parquet")
    monkeypatch.setenv("MANYHEAD_DATA", str(tmp_path))
    assert_same(read_prices("sp500", today=TODAY), read_prices(tmp_path / "sp500.parquet", today=TODAY))
    with pytest.raises(InputError, match="sp501: there is no such file or folder"):
        read_prices("sp501")
