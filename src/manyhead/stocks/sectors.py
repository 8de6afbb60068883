"""Sector of each symbol, for neutralisation and sector-neutral books."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.readers import cells
from manyhead.stocks.readers.columns import ALIASES, listed, normal
from manyhead.stocks.readers.tables import read_table

# names under which files carry the sector, the preferred one first
COLUMNS = ("sector", "gicssector", "industry", "gicsindustry", "industrycode", "sectorcode", "group")


class Sectors(Mapping[str, str]):
    """Symbol -> sector; BRK.B, BRK-B and BRK/B are one symbol."""

    def __init__(self, sector: Mapping[str, str]) -> None:
        self._sector = {_plain(symbol): name for symbol, name in sector.items()}

    def __getitem__(self, symbol: str) -> str:
        return self._sector[_plain(symbol)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sector)

    def __len__(self) -> int:
        return len(self._sector)

    @property
    def names(self) -> tuple[str, ...]:
        """The sectors, by name; their order numbers them."""
        return tuple(sorted(set(self._sector.values())))

    def codes(self, symbols: Sequence[str]) -> NDArray[np.int64]:
        """Return (symbols,) numbers of the sectors in `names`; -1 where a symbol is not listed."""
        number = {name: index for index, name in enumerate(self.names)}
        return np.array([number.get(self.get(symbol, ""), -1) for symbol in symbols], np.int64)

    def dummies(self, symbols: Sequence[str]) -> NDArray[np.float64]:
        """Return (symbols, sectors) with a one where the symbol is of the sector.

        Sectors without any of these symbols have no column; symbols that are not listed form a sector of
        their own, the last column.
        """
        codes = self.codes(symbols)
        codes = np.where(codes < 0, len(self.names), codes)
        return np.asarray(codes[:, None] == np.unique(codes), np.float64)

    def unknown(self, symbols: Sequence[str]) -> list[str]:
        """Return the symbols that are not listed."""
        return [symbol for symbol in symbols if symbol not in self]

    def warnings(self, symbols: Sequence[str]) -> list[str]:
        """Say which symbols are not listed, in a sentence."""
        absent = self.unknown(symbols)
        if not absent:
            return []
        return [
            f"sectors: {len(absent)} of {len(symbols)} symbols have no sector: {listed(absent, 5)}; they form"
            " one of their own"
        ]


def read_sectors(path: str | Path, column: str | None = None) -> Sectors:
    """Read the sector of each symbol from a CSV or Parquet file.

    Args:
        path: a table with a column of symbols and one of sectors.
        column: the column of sectors; found by name if None ('Sector', 'GICS Sector', 'Industry' ...).

    Returns:
        Symbol -> sector. Symbols whose sector is empty are left out.

    Raises:
        InputError: if a column is missing, a symbol is empty or has two sectors, or no row has a sector.
    """
    raw, origin = read_table(Path(path))
    by_name = {normal(name): name for name in reversed(raw.columns)}
    symbol_column = next((by_name[name] for name in ALIASES["symbol"] if name in by_name), None)
    if symbol_column is None:
        raise InputError(
            f"{origin.name}: there is no column of symbols (Symbol, Ticker); there are {listed(raw.columns)}"
        )
    if column is None:
        column = next((by_name[name] for name in COLUMNS if name in by_name), None)
        if column is None:
            raise InputError(
                f"{origin.name}: there is no column of sectors; name it, there are {listed(raw.columns)}"
            )
    chosen = column if column in raw.columns else by_name.get(normal(column))
    if chosen is None:
        raise InputError(f"{origin.name}: there is no column {column!r}; there are {listed(raw.columns)}")
    kind = raw[chosen].dtype
    if not (kind == pl.String or kind.is_integer() or kind in (pl.Categorical, pl.Enum)):
        raise InputError(f"{origin.name}, column {chosen!r}: holds {kind}; sectors are text or integers")
    symbols = cells.symbols(raw[symbol_column], pl.int_range(len(raw), eager=True), origin)
    found: dict[str, str] = {}
    for index, (symbol, cell) in enumerate(zip(symbols, raw[chosen].cast(pl.String), strict=True)):
        sector = (cell or "").strip()
        if not sector:
            continue
        before = found.setdefault(_plain(symbol), sector)
        if before != sector:
            raise InputError(
                f"{origin.at(index, chosen)}: {symbol} is in {sector!r}, a row before says {before!r}"
            )
    if not found:
        raise InputError(f"{origin.name}, column {chosen!r}: no row has a sector")
    return Sectors(found)


def _plain(symbol: str) -> str:
    return symbol.strip().upper().replace("-", ".").replace("/", ".")
