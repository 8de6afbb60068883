"""What is known about a data set before it is opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["prices", "table", "images", "graph", "ratings", "text", "sound"]


@dataclass(frozen=True)
class DataSet:
    """One data set and how to come by it.

    Args:
        name: by which `manyhead.data.load` knows it.
        kind: what it holds.
        description: one sentence: what, how many, with which bias.
        license: terms under which its owners let it be used.
        size: of its files, in words.
        form: what `load` returns, with shapes and types.
        how: how to get it by hand, for the error where nothing else works.
        files: names in the folder of data sets; empty for sets that a dependency ships.
        read: turns the paths of `files` into what `form` says.
        shipped: (package, extra) that carries it, and `bundled` loads it from there.
        bundled: loads it from a dependency.
        client: package that fetches it.
        fetch: writes `files` into a folder by means of that client.
    """

    name: str
    kind: Kind
    description: str
    license: str
    size: str
    form: str
    how: str
    files: tuple[str, ...] = ()
    read: Callable[..., Any] | None = None
    shipped: tuple[str, str] | None = None
    bundled: Callable[[], Any] | None = None
    client: str | None = None
    fetch: Callable[[Path], None] | None = None
