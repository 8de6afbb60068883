"""The panel: daily fields on a calendar of dates by symbols, missing days left missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError

Dates = NDArray[np.datetime64]
Values = NDArray[np.floating]

# canonical names of fields; a panel holds those that its source has, and always `close`
FIELDS = ("open", "high", "low", "close", "vwap", "volume", "money", "factor")


@dataclass(frozen=True)
class Panel:
    """Daily fields of many symbols on one calendar.

    Args:
        dates: (days,) strictly increasing, dtype datetime64[D].
        symbols: one name a column.
        fields: name -> (days, symbols) floating point; NaN where a symbol did not trade.
        warnings: what a reader of the results must know about these data, in sentences.
    """

    dates: Dates
    symbols: tuple[str, ...]
    fields: dict[str, Values]
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        shape = (len(self.dates), len(self.symbols))
        if "close" not in self.fields:
            raise InputError(f"a panel needs the field 'close', got {sorted(self.fields)}")
        for name, values in self.fields.items():
            if values.shape != shape:
                raise InputError(f"field {name!r} has shape {values.shape}, the panel is {shape}")
        if len(self.dates) > 1 and not (np.diff(self.dates) > np.timedelta64(0, "D")).all():
            raise InputError("the dates of a panel must be strictly increasing")
        if len(set(self.symbols)) != len(self.symbols):
            raise InputError("the symbols of a panel must differ from each other")

    def __getitem__(self, name: str) -> Values:
        try:
            return self.fields[name]
        except KeyError:
            raise InputError(
                f"these prices have no field {name!r}; they have {', '.join(sorted(self.fields))}"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    @property
    def days(self) -> int:
        """Number of dates."""
        return len(self.dates)

    def rows(self, start: int, stop: int) -> "Panel":
        """Return the days of rows `start` up to but not including `stop`."""
        cut = {name: values[start:stop] for name, values in self.fields.items()}
        return Panel(self.dates[start:stop], self.symbols, cut, self.warnings)

    def between(self, start: date | str | None = None, end: date | str | None = None) -> "Panel":
        """Return the days from `start` to `end`, both included; None leaves that side open."""
        first = 0 if start is None else int(np.searchsorted(self.dates, np.datetime64(start, "D")))
        last = (
            self.days
            if end is None
            else int(np.searchsorted(self.dates, np.datetime64(end, "D"), side="right"))
        )
        return self.rows(first, last)

    def select(self, symbols: Sequence[str]) -> "Panel":
        """Return the named symbols, in the order given.

        Raises:
            InputError: if a symbol is not in the panel.
        """
        column = {symbol: index for index, symbol in enumerate(self.symbols)}
        absent = [symbol for symbol in symbols if symbol not in column]
        if absent:
            raise InputError(
                f"these prices have no symbol {absent[0]!r} ({len(absent)} of {len(symbols)} absent)"
            )
        chosen = [column[symbol] for symbol in symbols]
        cut = {name: values[:, chosen] for name, values in self.fields.items()}
        return Panel(self.dates, tuple(symbols), cut, self.warnings)
