"""Which column of a source is which field: names are compared without case, spaces or punctuation."""

import re
from collections.abc import Mapping, Sequence

from manyhead.errors import InputError

# field -> the names under which files carry it, the preferred one first
ALIASES: dict[str, tuple[str, ...]] = {
    "date": ("date", "datetime", "tradedate", "tradingdate", "tradingday", "day", "timestamp", "time"),
    "symbol": ("symbol", "ticker", "tic", "instrument", "tscode", "code", "stock", "asset", "secid", "name"),
    "open": ("open", "openprice", "openingprice", "o"),
    "high": ("high", "highprice", "h"),
    "low": ("low", "lowprice", "l"),
    "close": ("close", "closeprice", "closingprice", "last", "lastprice", "pxlast", "price", "c"),
    "adj_close": ("adjclose", "adjustedclose", "adjcloseprice", "closeadj", "adjustedcloseprice"),
    "volume": ("volume", "vol", "tradedvolume", "v"),
    "vwap": ("vwap", "averageprice", "avgprice"),
    "money": ("money", "amount", "dollarvolume", "tradedvalue", "tradingvalue"),
    "factor": ("factor", "adjfactor", "adjustmentfactor"),
}


def normal(name: str) -> str:
    """Return a column's name in lower case, letters and digits only."""
    return re.sub(r"[\W_]+", "", name.casefold())


def assign(names: Sequence[str], chosen: Mapping[str, str] | None, where: str) -> dict[str, str]:
    """Find the source's column of every field.

    Args:
        names: the columns of the source.
        chosen: field -> column, where the caller names it.
        where: the source, for messages.

    Returns:
        field -> column, for the fields that the source has. Where two columns could be one field, the
        name that stands first in `ALIASES` is taken.

    Raises:
        InputError: if a column's name occurs twice, or `chosen` names a field or column that is not there.
    """
    first: dict[str, str] = {}
    for name in names:
        key = normal(name)
        if key and key in first and any(key in aliases for aliases in ALIASES.values()):
            raise InputError(f"{where}: the column {name!r} is there twice; each field may come once")
        first.setdefault(key, name)
    found: dict[str, str] = {}
    for field, column in (chosen or {}).items():
        if field not in ALIASES:
            raise InputError(f"columns: {field!r} is not a field; fields are {', '.join(ALIASES)}")
        if column not in names:
            raise InputError(f"{where}: there is no column {column!r}; there are {listed(names)}")
        found[field] = column
    for field, aliases in ALIASES.items():
        here = [first[alias] for alias in aliases if alias in first]
        if field not in found and here:
            found[field] = here[0]
    return found


def require(found: Mapping[str, str], fields: Sequence[str], names: Sequence[str], where: str) -> None:
    """Raise InputError if one of `fields` has no column."""
    for field in fields:
        if field in found or (field == "close" and "adj_close" in found):
            continue
        advice = ""
        if field == "symbol":
            advice = (
                "; prices are read in long form, one row a date and symbol"
                " (files of one symbol each: put them into a folder and name the folder)"
            )
        raise InputError(
            f"{where}: there is no column for {field!r} (accepted names: {', '.join(ALIASES[field])});"
            f" there are {listed(names)}{advice}"
        )


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return names for a message, cut after `most`."""
    shown = ", ".join(repr(name[:40]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
