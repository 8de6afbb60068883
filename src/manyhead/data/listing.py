"""The table of data sets that `manyhead data` prints."""

from rich.console import Console
from rich.table import Table

from manyhead.data.catalogue import DATASETS
from manyhead.data.locate import describe, present


def print_data(name: str | None = None) -> None:
    """Print every data set and where it is, or all that is known of one.

    Raises:
        InputError: if there is no such data set.
    """
    if name is not None:
        print(describe(name))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "kind", "size", "here", "what"):
        table.add_column(heading, no_wrap=heading in ("name", "kind", "what"), overflow="ellipsis")
    for entry in DATASETS.values():
        by_fetching = f"no; {entry.client} fetches it" if entry.client else "no"
        table.add_row(
            entry.name, entry.kind, entry.size, present(entry.name) or by_fetching, entry.description
        )
    Console().print(table)
