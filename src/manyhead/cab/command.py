"""`manyhead bench cab`: read the options, run, print the table."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from manyhead.cab.budgets import BUDGETS, Budget
from manyhead.cab.page import COLUMNS, cells
from manyhead.cab.pieces import Sources
from manyhead.cab.run import Settings, run_cab
from manyhead.cab.tasks import TASKS
from manyhead.demonstration import parse_seeds
from manyhead.errors import InputError
from manyhead.mixers.catalogue import NAMES, uses_of

# what fits a terminal of 80 columns, under shorter names; the page has all of `COLUMNS`
SHORT = {
    "composite index": "index",
    "step time": "step",
    "time": "time",
    "cheaper in time from": "faster from",
    "memory": "memory",
}


def choose_budget(name: str, **sizes: int | None) -> Budget:
    """A named budget, with some of its sizes replaced.

    Raises:
        InputError: if there is no such budget, or a size cannot be.
    """
    if name not in BUDGETS:
        raise InputError(f"--budget is one of {', '.join(BUDGETS)}; got {name!r}")
    for option, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"--{option} takes a number above zero, got {size}")
    given = {option: size for option, size in sizes.items() if size is not None}
    budget = replace(BUDGETS[name], **given)  # type: ignore[arg-type]
    if budget.channels % budget.heads:
        raise InputError(f"--heads must divide --channels, got {budget.heads} and {budget.channels}")
    if budget.length < 16:
        raise InputError(f"--length is at least 16, got {budget.length}")
    return budget


def choose_mixers(names: str, own: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """Mixers by name, or all that have a form for one of the tasks, and a user's own.

    Raises:
        InputError: if a name is unknown.
    """
    if names == "all":
        wanted = {TASKS[name].use for name in tasks if name in TASKS}
        listed = [name for name in NAMES if wanted & uses_of(name)]
    else:
        listed = [name.strip() for name in names.split(",") if name.strip()]
        for name in listed:
            if name not in NAMES:
                raise InputError(
                    f"--mixers takes 'all' or names of {', '.join(NAMES)}; got {name!r} "
                    "(your own goes by --mixer package.Class)"
                )
    if "vanilla" not in listed:
        listed.insert(0, "vanilla")  # costs and indices are against it
    return (*listed, *own)


def run_command(
    tasks: str,
    mixers: str,
    own: Sequence[str],
    budget: str,
    seeds: str,
    output: str,
    *,
    text: str | None,
    series: str | None,
    workers: int,
    ray: str | None,
    as_json: bool,
    **sizes: int | None,
) -> None:
    """Carry out `manyhead bench cab`."""
    wanted = tuple(name.strip() for name in tasks.split(",") if name.strip())
    settings = Settings(
        wanted,
        choose_mixers(mixers, own, wanted),
        choose_budget(budget, **sizes),
        tuple(parse_seeds(seeds)),
        Sources(text, series),
    )
    result = run_cab(settings, output, workers=workers, ray=ray)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    console = Console()
    for name, task in result["tasks"].items():
        console.print(_table(name, task))
    console.print(f"{Path(output) / 'cab.html'}, {Path(output) / 'cab.json'}")


def _table(name: str, task: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: {task['use']}", box=SIMPLE, padding=(0, 1), collapse_padding=True)
    table.add_column("mixer", no_wrap=True)
    for heading in (*task["metrics"], *SHORT.values()):
        table.add_column(heading, justify="right")
    columns = (*task["metrics"], *COLUMNS)
    shown = [n for n, column in enumerate(columns) if column in task["metrics"] or column in SHORT]
    for mixer, row in task["mixers"].items():
        found = cells(row)
        table.add_row(mixer.rpartition(".")[2], *(found[n] for n in shown))
    return table
