"""Run a system's demonstration over seeds, judge it, print it and write its page."""

import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from manyhead import __version__
from manyhead.catalogue import load, systems
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.system import Finding, Measurement, System, judge
from manyhead.work import run_items

# what a person wrote below this line of a system's page survives its regeneration
BY_HAND = "<!-- written by hand below this line -->"


@dataclass(frozen=True)
class Demonstration:
    """The result of one demonstration: findings over seeds, the raw runs, and how they came about."""

    slug: str
    seeds: list[int]
    seconds: float
    command: str
    machine: str
    findings: list[Finding]
    runs: list[list[Measurement]]


def parse_seeds(text: str) -> list[int]:
    """Turn '0,1,2' into a list.

    Raises:
        InputError: if a part is not a whole number at or above zero, or one comes twice.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--seeds takes whole numbers separated by commas, such as 0,1,2; got {text!r}"
        ) from None
    if min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds takes different numbers at or above zero, got {text!r}")
    return seeds


def demonstrate(
    system: System,
    seeds: Sequence[int],
    budget: float | None = None,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Demonstration:
    """Run a system's demonstration once per seed and join the runs by quantity.

    Args:
        system: what to demonstrate.
        seeds: of the runs.
        budget: seconds a seed may take; the system's own if left out.
        workers: local processes, a torch thread each, that take seeds side by side.
        progress: show on a terminal which seeds are done.

    Raises:
        InputError: if `workers` is below one.
    """
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        run_items(
            partial(_one_seed, system.demo, budget or system.budget, folder),
            list(seeds),
            workers=workers,
            threads=_threads() if workers == 1 else 1,
            title=system.slug,
            progress=progress,
        )
        kept = [json.loads((Path(folder) / f"{seed}.json").read_text("utf-8")) for seed in seeds]
    runs = [[Measurement(**measured) for measured in run] for run in kept]
    by_quantity: dict[str, list[Measurement]] = defaultdict(list)
    for run in runs:
        for measurement in run:
            by_quantity[measurement.what].append(measurement)
    listed = ",".join(map(str, seeds))
    limit = f" --budget {budget:g}" if budget else ""
    limit += f" --workers {workers}" if workers > 1 else ""
    return Demonstration(
        slug=system.slug,
        seeds=list(seeds),
        seconds=time.perf_counter() - started,
        command=f"manyhead demo {system.slug} --seeds {listed}{limit}",
        machine=machine(workers),
        findings=[judge(found) for found in by_quantity.values()],
        runs=runs,
    )


def _one_seed(demo: Callable[[int, float], list[Measurement]], budget: float, folder: str, seed: int) -> None:
    """Run one seed and leave what it measured in a file, where other processes find it."""
    measured = [asdict(measurement) for measurement in demo(seed, budget)]
    write_text(Path(folder) / f"{seed}.json", json.dumps(measured))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def machine(workers: int = 1) -> str:
    """Describe what the numbers were measured on; workers have a torch thread each."""
    import torch

    threads = _threads() if workers == 1 else workers
    return (
        f"{os.cpu_count()} cores {platform.machine()}, {threads} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, manyhead {__version__}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _span(finding: Finding) -> str:
    return "" if finding.interval is None else f"[{finding.interval[0]:.3g}, {finding.interval[1]:.3g}]"


def _rows(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    return [
        (
            f"{found.what} ({found.unit})" if found.unit else found.what,
            found.paper,
            _number(found.baseline),
            _number(found.here),
            _span(found),
            found.verdict,
        )
        for found in findings
    ]


HEADINGS = ("what", "paper", "baseline", "here", "95 % interval", "verdict")


def page(system: System, result: Demonstration) -> str:
    """Write a system's page: claim, measured table, command and machine, notes."""
    lines = [
        f"# {system.title} ({system.year})",
        "",
        f"`{system.slug}`"
        + (f" · arXiv [{system.arxiv}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else ""),
        "",
        f"**Claim.** {system.claim}",
        "",
        "## Measured here",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in _rows(result.findings)
        ),
        "",
        "The interval is Student's 95 % interval over seeds: of the advantage over the baseline (positive is "
        "what the paper claims) where there is one, else of the number itself.",
        "",
        f"`{result.command}`: {result.seconds:.0f} s on {result.machine}.",
        "",
    ]
    if system.notes:
        lines += ["## Notes", "", system.notes.strip(), ""]
    return "\n".join(lines)


def write_page(folder: Path, system: System, result: Demonstration) -> Path:
    """Write `<slug>.json` and `<slug>.md`; text below the by-hand line of an older page is kept."""
    target = folder / f"{system.slug}.md"
    own_words = ""
    if target.exists() and BY_HAND in (old := target.read_text(encoding="utf-8")):
        own_words = "\n" + BY_HAND + old.split(BY_HAND, 1)[1]
    write_text(folder / f"{system.slug}.json", json.dumps(asdict(result), indent=1) + "\n")
    write_text(target, page(system, result) + own_words)
    return target


def run_demo(
    slug: str, seeds: str, budget: float | None, *, workers: int, as_json: bool, page: str | None
) -> None:
    """Carry out `manyhead demo`."""
    system, numbers = load(slug), parse_seeds(seeds)
    if budget is not None and budget <= 0:
        raise InputError(f"--budget takes seconds above zero, got {budget:g}")
    result = demonstrate(system, numbers, budget, workers=workers, progress=not as_json)
    if page:
        write_page(Path(page), system, result)
    if as_json:
        print(json.dumps(asdict(result), indent=1))
        return
    console = Console()
    table = Table(*HEADINGS, title=f"{system.title} ({system.year})", caption=f"{result.seconds:.0f} s")
    for row in _rows(result.findings):
        table.add_row(*row)
    console.print(f"Claim: {system.claim}")
    console.print(table)


def print_catalogue() -> None:
    """Carry out `manyhead systems`."""
    table = Table("system", "year", "title", "claim")
    for system in systems():
        table.add_row(system.slug, str(system.year), system.title, system.claim)
    Console().print(table)


def print_system(slug: str) -> None:
    """Carry out `manyhead show`."""
    system = load(slug)
    console = Console()
    console.print(f"[bold]{system.title}[/bold] ({system.year})")
    if system.arxiv:
        console.print(f"arXiv {system.arxiv}")
    console.print(f"Claim: {system.claim}")
    console.print(f"Measure it: manyhead demo {slug} --seeds 0,1,2   (about {system.budget:.0f} s a seed)")
    if system.notes:
        console.print(Markdown(system.notes))
