"""A company keeps its history through changes of its symbol, and no other company's prices are mixed in."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyhead.errors import InputError
from manyhead.stocks.prices import read_prices
from manyhead.stocks.renames import read_renames, renamed_rows, renamed_symbols

DAYS = np.busday_offset("2022-01-03", np.arange(12), roll="forward")


def prices(spans: dict[str, range]) -> pl.DataFrame:
    """One row for each day of each symbol's span; the close names the row and the symbol."""
    rows = [
        {"date": DAYS[row].item(), "symbol": symbol, "close": 100.0 * (place + 1) + row}
        for place, (symbol, span) in enumerate(spans.items())
        for row in span
    ]
    return pl.DataFrame(rows)


def table(folder: Path, *changes: tuple[str, str, int]) -> Path:
    path = folder / "renames.csv"
    lines = [f"{old},{new},{DAYS[row]}" for old, new, row in changes]
    path.write_text("\n".join(["old,new,date", *lines]) + "\n")
    return path


def test_a_chain_of_changes_is_one_company_and_a_recycled_symbol_is_another(tmp_path: Path) -> None:
    # A became B on day 4 and C on day 8; another company took the symbol A over on day 6
    source = prices({"A": range(0, 4), "B": range(4, 8), "C": range(8, 12), "X": range(0, 12)})
    taken = prices({"skip": range(0), "A": range(6, 12)}).with_columns(pl.lit("A").alias("symbol"))
    renames = table(tmp_path, ("B", "C", 8), ("A", "B", 4))
    panel = read_prices(pl.concat([source, taken]), renames=renames)
    assert panel.symbols == ("A", "C", "X")
    company = panel["close"][:, 1]
    assert company.tolist() == [
        *(100.0 + r for r in range(4)),
        *(200.0 + r for r in range(4, 8)),
        *(300.0 + r for r in range(8, 12)),
    ]
    assert np.array_equal(np.isfinite(panel["close"][:, 0]), np.arange(12) >= 6)
    assert any(w.startswith("renamed: 2 changes") for w in panel.warnings)


def test_a_symbol_that_another_company_had_before_is_refused(tmp_path: Path) -> None:
    source = prices({"FB": range(0, 6), "META": range(0, 3)})
    with pytest.raises(InputError, match="META has 3 prices from before, the last of 2022-01-05"):
        read_prices(source, renames=table(tmp_path, ("FB", "META", 6)))
    both = table(tmp_path, ("META", "METV", 4), ("FB", "META", 6))
    assert read_prices(source, renames=both).symbols == ("META", "METV")


def test_a_change_that_no_price_shows_is_said(tmp_path: Path) -> None:
    panel = read_prices(prices({"A": range(5)}), renames=table(tmp_path, ("GONE", "NEW", 3)))
    assert any(warning.startswith("rename-unseen: 1 changes") for warning in panel.warnings)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("old,date\nA,2022-01-05", "no column 'new'"),
        ("old,new,date\nA,A,2022-01-05", "line 2.*becomes itself"),
        ("old,new,date\nA,B,2022-01-05\nA,C,2022-01-05", "line 3.*A changes twice"),
        ("old,new,date\nA,B,soon", "line 2"),
        ("old,new,date\nA,,2022-01-05", "line 2.*empty"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_line(lines: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "renames.csv").write_text(lines + "\n")
    with pytest.raises(InputError, match=words):
        read_renames(tmp_path / "renames.csv")


def test_names_of_a_day_are_carried_to_the_end(tmp_path: Path) -> None:
    renames = read_renames(table(tmp_path, ("A", "B", 4), ("B", "C", 8)))
    assert renamed_symbols(["A", "X"], renames, DAYS[2]) == ["C", "X"]
    assert renamed_symbols(["A", "B"], renames, DAYS[5]) == ["A", "C"]
    rows = pl.DataFrame({"date": [DAYS[2].item(), DAYS[5].item()], "symbol": ["A", "A"], "score": [1.0, 2.0]})
    assert renamed_rows(rows, renames)["symbol"].to_list() == ["C", "A"]
