"""Score tables: laid over the panel whatever their order, and refused with a message that says why."""

from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.portfolio import align, read_scores
from tests.stocks.portfolio.markets import smooth_panel

PANEL = smooth_panel(0, 6, 3)  # 2021-01-04 is a Monday
DAYS = [day.astype(object) for day in PANEL.dates]


def table(**changes: Any) -> pl.DataFrame:
    columns = {"date": DAYS[:3], "symbol": ["S00", "S01", "S02"], "score": [1.0, 2.0, 3.0]} | changes
    return pl.DataFrame({name: values for name, values in columns.items() if values is not None})


def test_rows_in_any_order_land_in_their_cells() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 3))
    values[2, 1] = np.nan
    day, column = np.indices(values.shape).reshape(2, -1)
    order = rng.permutation(18)
    shuffled = pl.DataFrame(
        {
            "date": PANEL.dates[day[order]],
            "symbol": np.array(PANEL.symbols)[column[order]],
            "score": values[day[order], column[order]],
        }
    )
    laid, warnings = align(PANEL, shuffled)
    np.testing.assert_array_equal(laid, values)
    assert not warnings
    np.testing.assert_array_equal(align(PANEL, values)[0], values)


def test_what_the_prices_lack_is_left_out_and_said() -> None:
    later = table(date=[DAYS[0], DAYS[1], date(2030, 1, 1)], symbol=["S00", "NEW", "S01"])
    laid, warnings = align(PANEL, later)
    assert np.count_nonzero(~np.isnan(laid)) == 1
    assert any("NEW" in text for text in warnings)
    assert any("2030-01-01" in text for text in warnings)
    with pytest.raises(InputError, match="NEW"):
        align(PANEL, later, unknown="error")


@pytest.mark.parametrize(
    "same",
    [
        table(date=["2021-01-04", "2021-01-05", "2021-01-06"]),
        table(date=[datetime.combine(day, datetime.min.time()) for day in DAYS[:3]]),
        table(date=None, datetime=DAYS[:3], symbol=None, instrument=["S00", "S01", "S02"]),
        table(score=[1, 2, 3]),
        table(symbol=pl.Series(["S00", "S01", "S02"], dtype=pl.Categorical)),
    ],
    ids=["text dates", "midnights", "other names", "whole numbers", "categories"],
)
def test_tables_that_mean_the_same(same: pl.DataFrame) -> None:
    np.testing.assert_array_equal(align(PANEL, same)[0], align(PANEL, table())[0])


def test_a_pandas_table_is_understood() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"date": DAYS[:3], "symbol": ["S00", "S01", "S02"], "score": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(align(PANEL, frame)[0], align(PANEL, table())[0])
    frame["date"] = pandas.to_datetime(frame["date"])
    np.testing.assert_array_equal(align(PANEL, frame)[0], align(PANEL, table())[0])


BAD = {
    "no score column": (table(score=None), "no column 'score'.*have date, symbol"),
    "no symbol column": (table(symbol=None), "no column 'symbol'"),
    "no rows": (table(date=[], symbol=[], score=[]).cast({"date": pl.Date}), "no rows"),
    "text score": (table(score=["1", "x", "3"]), "row 2 has 'x'"),
    "flags as score": (table(score=[True, False, True]), "must hold numbers, got Boolean"),
    "infinite": (table(score=[1.0, np.inf, 2.0]), "infinite.*S01 on 2021-01-05"),
    "all missing": (table(score=[np.nan, None, np.nan]), "every score is missing"),
    "duplicate": (table(date=[DAYS[0]] * 3, symbol=["S00", "S01", "S00"]), "S00 on 2021-01-04"),
    "no symbol known": (table(symbol=["X", "Y", "Z"]), "no symbol of the scores"),
    "no date known": (
        table(date=[date(2030, 1, day) for day in (1, 2, 3)]),
        "no date.*2030-01-01.*2021-01-04",
    ),
    "no row known": (
        table(date=[DAYS[0], date(2030, 1, 1), date(2030, 1, 1)], symbol=["X", "S00", "S01"]),
        "no row of the scores",
    ),
    "empty symbol": (table(symbol=["S00", None, "S02"]), "'symbol'.*empty in row 2"),
    "empty date": (table(date=[DAYS[0], None, DAYS[2]]), "'date'.*empty in row 2"),
    "other date format": (table(date=["04/01/2021", "05/01/2021", "06/01/2021"]), "row 1 has '04/01/2021'"),
    "numbers as dates": (table(date=[20210104, 20210105, 20210106]), "must hold dates, got Int64"),
    "time zone": (
        table(date=[datetime(2021, 1, day, tzinfo=timezone.utc) for day in (4, 5, 6)]),  # noqa: UP017
        "time zone UTC",
    ),
    "time of day": (
        table(date=[datetime(2021, 1, 4, hour) for hour in (9, 10, 11)]),
        "times of day",
    ),
    "array shape": (np.zeros((3, 3)), r"shape \(6, 3\), got \(3, 3\)"),
    "array of text": (np.full((6, 3), "a"), "array of numbers"),
    "infinite array": (np.full((6, 3), -np.inf), "18 scores are infinite"),
    "missing array": (np.full((6, 3), np.nan), "every score is missing"),
    "a word": ("scores.csv", "must be a table"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_cannot_be_used_is_refused_by_name(case: str) -> None:
    scores, message = BAD[case]
    with pytest.raises(InputError, match=message):
        align(PANEL, scores)


def test_files(tmp_path: Path) -> None:
    table().write_csv(tmp_path / "scores.csv")
    np.testing.assert_array_equal(
        align(PANEL, read_scores(tmp_path / "scores.csv"))[0], align(PANEL, table())[0]
    )
    with pytest.raises(InputError, match="no score file"):
        read_scores(tmp_path / "absent.csv")
    (tmp_path / "scores.txt").write_text("date")
    with pytest.raises(InputError, match="must end in"):
        read_scores(tmp_path / "scores.txt")
    for name in ("empty.csv", "empty.parquet"):
        (tmp_path / name).write_text("")
        with pytest.raises(InputError, match="cannot be read"):
            read_scores(tmp_path / name)
    table().write_parquet(tmp_path / "scores.parquet")
    whole = (tmp_path / "scores.parquet").read_bytes()
    (tmp_path / "scores.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_scores(tmp_path / "scores.parquet")
    (tmp_path / "codes.csv").write_text("date,symbol,score\n2021-01-04,000001,1\n")
    assert read_scores(tmp_path / "codes.csv")["symbol"].to_list() == ["000001"]
