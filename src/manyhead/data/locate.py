"""Where a data set is, and getting it from there."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from manyhead.data.catalogue import DATASETS
from manyhead.data.dataset import DataSet
from manyhead.errors import InputError

VARIABLE = "MANYHEAD_DATA"


def folder() -> Path | None:
    """Return the folder that MANYHEAD_DATA names, or None.

    Raises:
        InputError: if it names something that is no folder.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if not named:
        return None
    place = Path(named).expanduser()
    if not place.is_dir():
        raise InputError(f"{VARIABLE}: {named!r} is no folder; name the folder of data sets, or unset it")
    return place


def cache() -> Path:
    """Return the folder of fetched data sets where MANYHEAD_DATA is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "manyhead"


def present(name: str) -> str | None:
    """Say where a data set lies on this machine: a folder or a package; None if it would be fetched."""
    entry = _entry(name)
    place = _place(entry)
    if place is not None:
        return str(place)
    if entry.shipped is not None and find_spec(entry.shipped[0]) is not None:
        return "Python" if entry.shipped[0] == "sysconfig" else entry.shipped[0]
    return None


def path(name: str, *, fetch: bool = True) -> Path:
    """Return the (first) file of a data set that is kept in files, fetched if need be.

    Raises:
        InputError: as `load`.
    """
    entry = _entry(name)
    if not entry.files:
        raise InputError(f"data set {name!r} is no file; it comes with {(entry.shipped or ('?',))[0]}")
    return _obtain(entry, fetch) / entry.files[0]


def load(name: str, *, fetch: bool = True) -> Any:
    """Return a data set in the form that its entry in `DATASETS` describes.

    Args:
        name: one of `DATASETS`.
        fetch: may it be fetched over the network, where it is not on this machine and has a client?

    Raises:
        InputError: if the name is unknown, the set cannot be had (the message says how to get it), or
            its files cannot be read.
    """
    entry = _entry(name)
    if entry.bundled is not None and _place(entry) is None:
        return entry.bundled()
    place = _obtain(entry, fetch)
    assert entry.read is not None
    try:
        return entry.read(*(place / file for file in entry.files))
    except InputError:
        raise
    except Exception as error:  # every reader fails in its own way
        raise InputError(
            f"data set {name!r}: {place / entry.files[0]} cannot be read: {error}; get it again: {entry.how}"
        ) from error


def describe(name: str) -> str:
    """Return what is known of a data set, a line a thing."""
    entry = _entry(name)
    return "\n".join(
        [
            f"{entry.name}: {entry.description}",
            f"  license  {entry.license}",
            f"  size     {entry.size}",
            f"  gives    {entry.form}",
            f"  present  {present(name) or 'no'}",
            f"  to get   {entry.how}",
        ]
    )


def _entry(name: str) -> DataSet:
    if name not in DATASETS:
        raise InputError(f"there is no data set {name!r}; there are {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def _place(entry: DataSet) -> Path | None:
    """Return the folder that holds all files of a set."""
    if not entry.files:
        return None
    places = [place for place in (folder(), cache()) if place is not None]
    return next((place for place in places if all((place / file).is_file() for file in entry.files)), None)


def _obtain(entry: DataSet, fetch: bool) -> Path:
    place = _place(entry)
    if place is not None:
        return place
    what = f"data set {entry.name!r} is not on this machine"
    advice = f"set {VARIABLE} to a folder that has {', '.join(entry.files)}. To get it: {entry.how}"
    if entry.fetch is None or entry.client is None:
        raise InputError(f"{what}; {advice}")
    if not fetch:
        raise InputError(f"{what} and fetching was not allowed; {advice}")
    place = folder() or cache()
    try:
        place.mkdir(parents=True, exist_ok=True)
        entry.fetch(place)
    except Exception as error:  # the client raises whatever its network layer does
        raise InputError(f"{what}, and {entry.client} could not fetch it: {error}; {advice}") from error
    return place
