"""check_system: what every entry of the catalogue must have."""

import inspect
import math
import re
from collections.abc import Callable, Mapping

from manyhead.system import Measurement, System
from manyhead.testing.checks import Check, run_checks


def check_system(
    system: System, *, budget: float | None = None, excuses: Mapping[str, str] | None = None
) -> list[Check]:
    """Check a system's fields and its demonstration's signature, and run it if a budget is given.

    Args:
        system: the system.
        budget: seconds that the demonstration gets; it is not run if left out.
        excuses: name of a check -> why it does not apply.

    Returns:
        the outcome of every check.

    Raises:
        AssertionError: naming each check that failed and how.
    """
    checks: dict[str, Callable[[], None]] = {
        "is_a_system": lambda: _is_a_system(system),
        "slug_names_a_module": lambda: _slug(system),
        "title_and_year_are_given": lambda: _title(system),
        "arxiv_is_a_number": lambda: _arxiv(system),
        "claim_is_one_sentence": lambda: _claim(system),
        "budget_is_positive": lambda: _budget(system),
        "notes_are_markdown": lambda: _notes(system),
        "demo_takes_seed_and_budget": lambda: _demo(system),
    }
    if budget is not None:
        measured: list[Measurement] = []

        def runs() -> None:
            measured.extend(system.demo(0, budget))
            assert measured, "demo() measured nothing"

        checks |= {
            "demo_runs": runs,
            "demo_gives_measurements": lambda: _measurements(measured),
            "quantities_are_distinct": lambda: _distinct(measured),
            "numbers_are_finite": lambda: _finite(measured),
            "verdicts_fit_the_numbers": lambda: _verdicts(measured),
        }
    return run_checks(f"system {getattr(system, 'slug', '?')!r}", checks, excuses)


def _is_a_system(system: System) -> None:
    assert isinstance(system, System), f"SYSTEM is a {type(system).__name__}"


def _slug(system: System) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", system.slug), f"slug {system.slug!r} is no module name"


def _title(system: System) -> None:
    assert system.title.strip() == system.title != "", f"title {system.title!r}"
    assert 1990 <= system.year <= 2100, f"year {system.year}"


def _arxiv(system: System) -> None:
    form = r"(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})?"
    assert re.fullmatch(form, system.arxiv), f"arxiv {system.arxiv!r} is no identifier such as 2202.09741"


def _claim(system: System) -> None:
    claim = system.claim.strip()
    assert len(claim) >= 20, f"claim {claim!r} says too little"
    assert claim[0].isupper(), f"claim {claim!r} does not begin like a sentence"
    assert claim.endswith("."), f"claim {claim!r} does not end like a sentence"
    assert not re.search(r"[.!?]\s+[A-Z]", claim), f"claim {claim!r} is more than one sentence"


def _budget(system: System) -> None:
    assert 0 < system.budget < math.inf, f"budget {system.budget}"


def _notes(system: System) -> None:
    assert isinstance(system.notes, str), f"notes is a {type(system.notes).__name__}"
    assert system.notes.count("```") % 2 == 0, "notes open a block of code that they do not close"


def _demo(system: System) -> None:
    assert callable(system.demo), f"demo is a {type(system.demo).__name__}"
    try:
        inspect.signature(system.demo).bind(0, 1.0)
    except TypeError as error:
        raise AssertionError(f"demo cannot be called as demo(seed, budget): {error}") from error


def _measurements(measured: list[Measurement]) -> None:
    for entry in measured:
        assert isinstance(entry, Measurement), f"demo() gave a {type(entry).__name__}"
        assert entry.what.strip(), f"{entry} lacks a name"
        assert entry.paper.strip(), f"{entry} lacks the paper's figure or claim"


def _distinct(measured: list[Measurement]) -> None:
    names = [entry.what for entry in measured]
    assert len(set(names)) == len(names), f"demo() gave one quantity twice: {names}"


def _finite(measured: list[Measurement]) -> None:
    for entry in measured:
        assert math.isfinite(entry.here), f"{entry.what}: {entry.here}"
        assert entry.baseline is None or math.isfinite(entry.baseline), f"{entry.what}: {entry.baseline}"


def _verdicts(measured: list[Measurement]) -> None:
    for entry in measured:
        assert entry.better in ("higher", "lower"), f"{entry.what}: better={entry.better!r}"
        if entry.holds and entry.baseline is not None:
            right = entry.here >= entry.baseline if entry.better == "higher" else entry.here <= entry.baseline
            assert right, (
                f"{entry.what} claims to hold with {entry.here} against {entry.baseline}, "
                f"where {entry.better} is better"
            )
