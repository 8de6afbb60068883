"""What `manyhead compare` does: parse, compare, print, and write table, JSON and page."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from manyhead.comparison.compare import DEFAULT, compare
from manyhead.comparison.page import comparison_page
from manyhead.comparison.report import Report, as_dict, report, table
from manyhead.demonstration import machine
from manyhead.errors import InputError
from manyhead.files import write_text


def parse_counted_seeds(text: str) -> list[int]:
    """'3' is seeds 0, 1 and 2; '0,5' and '7,' are lists.

    Raises:
        InputError: if it is neither.
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip() or "," not in text]
    except ValueError:
        raise InputError(f"--seeds takes a count such as 3, or a list such as 0,5; got {text!r}") from None
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise InputError(f"--seeds takes a count of at least 1, got {text!r}")
    return list(range(numbers[0]))


def parse_rates(text: str) -> list[float]:
    """Learning rates separated by commas.

    Raises:
        InputError: if a part is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--rates takes numbers separated by commas, got {text!r}") from None


def run_compare(
    data: str,
    balancers: str,
    seeds: str,
    budget: str,
    *,
    epochs: int | None,
    rates: str | None,
    interference: bool,
    workers: int,
    threads: int,
    out: str,
    as_json: bool,
) -> None:
    """Carry out `manyhead compare`."""
    started = time.perf_counter()
    names = [part for part in balancers.split(",") if part.strip()]
    found = compare(
        data,
        names or DEFAULT,
        seeds=parse_counted_seeds(seeds),
        budget=budget,
        epochs=epochs,
        rates=None if rates is None else parse_rates(rates),
        interference=interference,
        workers=workers,
        threads=threads,
        folder=out,
    )
    result = report(found, data)
    command = f"manyhead compare --data {data} --balancers {balancers} --seeds {seeds} --budget {budget}"
    for option, value in {"epochs": epochs, "rates": rates}.items():
        command += "" if value is None else f" --{option} {value}"
    command += (" --interference" if interference else "") + f" --workers {workers}"
    plain = as_dict(result, command, machine())
    plain["wall_seconds_of_this_call"] = time.perf_counter() - started
    folder = Path(out)
    write_text(folder / "result.json", json.dumps(plain, indent=1) + "\n")
    page = comparison_page(result, command, machine()).save(folder / "page.html")
    write_text(folder / "table.md", markdown(result, command))
    if as_json:
        print(json.dumps(plain, indent=1))
        return
    show(result, page)


def show(found: Report, page: Path) -> None:
    """Print what was gained at what price, the scores behind it, and the recommendation."""
    console = Console()
    headings, rows = table(found)
    tasks = found.comparison.tasks
    changes = [3 + 2 * place for place in range(len(tasks))]
    named = headings.copy()
    for place, task in zip(changes, tasks, strict=True):
        named[place] = f"{task} %"
    last = len(headings)
    seeds = f"{len(found.comparison.seeds)} seeds"
    for title, columns in (
        (f"{found.comparison.data}: change on test, {seeds}", [0, *changes, last - 5, last - 4, last - 3]),
        ("test scores", [0, 1, *(place - 1 for place in changes), last - 2, last - 1]),
    ):
        shown = Table(title=title)
        for place in columns:
            shown.add_column(named[place], justify="left" if place == 0 else "right")
        for row in rows:
            shown.add_row(*(row[place] for place in columns))
        console.print(shown)
    for sentence in found.advice:
        console.print(f"- {sentence}", highlight=False)
    console.print(f"page: {page}", highlight=False)


def markdown(found: Report, command: str) -> str:
    """The table for a document."""
    headings, rows = table(found)
    lines = [f"`{command}`", "", _row(headings), "|" + "---|" * len(headings), *map(_row, rows), ""]
    return "\n".join([*lines, *(f"- {sentence}" for sentence in found.advice), ""])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
