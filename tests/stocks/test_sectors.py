"""Sectors: numbers and dummies by definition, unknown symbols reported, malformed files refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.sectors import read_sectors

TEXT = """Symbol,Security,GICS Sector,GICS Sub-Industry
A,Aa,Tech,Chips
B,Bb,Energy,Oil
C,Cc,Tech,Code
BRK.B,Bk,Money,
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "sectors.csv").write_text(TEXT)
    return tmp_path / "sectors.csv"


def test_sector_of_a_symbol(path: Path) -> None:
    sectors = read_sectors(path)
    assert dict(sectors) == {"A": "Tech", "B": "Energy", "C": "Tech", "BRK.B": "Money"}
    assert sectors["BRK-B"] == sectors["brk/b"] == "Money"
    assert sectors.get("ZZ") is None
    assert sectors.names == ("Energy", "Money", "Tech")


def test_codes_and_dummies(path: Path) -> None:
    sectors = read_sectors(path, "GICS Sector")
    np.testing.assert_array_equal(sectors.codes(["C", "ZZ", "B"]), [2, -1, 0])
    np.testing.assert_array_equal(sectors.dummies(["C", "B", "A"]), [[0, 1], [1, 0], [0, 1]])
    dummies = sectors.dummies(["C", "ZZ", "B", "YY"])
    np.testing.assert_array_equal(dummies, [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]])
    assert (dummies.sum(axis=1) == 1).all()


def test_unknown_symbols_are_reported(path: Path) -> None:
    sectors = read_sectors(path)
    assert sectors.warnings(["A", "B"]) == []
    assert "2 of 3 symbols have no sector: 'ZZ', 'YY'" in sectors.warnings(["ZZ", "A", "YY"])[0]


def test_another_column_whose_empty_cells_are_left_out(path: Path) -> None:
    sectors = read_sectors(path, "gics sub-industry")
    assert sectors["A"] == "Chips"
    assert sectors.unknown(["A", "BRK.B"]) == ["BRK.B"]


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        (TEXT, "Sektor", "no column 'Sektor'; there are 'Symbol', 'Security'"),
        ("Security,Sector\nAa,Tech\n", None, "no column of symbols"),
        ("Symbol,Colour\nA,red\n", None, "no column of sectors; name it"),
        (
            "Symbol,Sector\nA,Tech\nB,Oil\nA,Oil\n",
            None,
            "line 4, column 'Sector': A is in 'Oil', a row before says 'Tech'",
        ),
        ("Symbol,Sector\nA,\n", None, "no row has a sector"),
        ("Symbol,Sector\n,Tech\n", None, "line 2, column 'Symbol': the symbol is empty"),
        ("", None, "the file is empty"),
        ("Symbol\nA\n", None, "one column"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, column: str | None, message: str) -> None:
    path = tmp_path / "sectors.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_sectors(path, column)


@pytest.mark.data
def test_the_sp500_sectors() -> None:
    path = Path(os.environ.get("MANYHEAD_DATA", "")) / "sp500_sectors.csv"
    if not path.is_file():
        pytest.skip("MANYHEAD_DATA names no folder with sp500_sectors.csv")
    sectors = read_sectors(path)
    assert len(sectors.names) == 11  # GICS has eleven sectors
    assert sectors["AAPL"] == "Information Technology"
    assert sectors["BRK-B"] == "Financials"
