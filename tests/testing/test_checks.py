"""check_system accepts what the catalogue wants, and names what a broken entry lacks."""

from dataclasses import replace

import pytest

from manyhead.catalogue import SLUGS, load
from manyhead.system import Measurement, System
from manyhead.testing import Check, check_system, run_checks

GOOD = System(
    slug="something_new",
    title="Something New",
    year=2024,
    arxiv="2401.01234",
    claim="Gates raise the accuracy of a small network on digits.",
    demo=lambda seed, budget: [Measurement("accuracy", "0.9", 0.8, 0.85, True)],
    budget=10.0,
    notes="Follows the code.\n```\nx\n```",
)


def measures(*measured: Measurement):
    return lambda seed, budget: list(measured)


def test_a_good_system_passes_every_check() -> None:
    assert len(check_system(GOOD)) == 8
    results = check_system(GOOD, budget=1.0)
    assert len(results) == 13
    assert all(result == Check(result.name) for result in results)


@pytest.mark.parametrize("slug", SLUGS)
def test_every_system_of_the_catalogue_keeps_the_contract(slug: str) -> None:
    check_system(load(slug))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"slug": "Not-a-module"}, "slug_names_a_module"),
        ({"title": " spaces "}, "title_and_year_are_given"),
        ({"year": 24}, "title_and_year_are_given"),
        ({"arxiv": "arXiv:2401.01234"}, "arxiv_is_a_number"),
        ({"claim": "Better."}, "claim_is_one_sentence"),
        ({"claim": "It is better than before. It is also faster."}, "claim_is_one_sentence"),
        ({"claim": "gates raise the accuracy of a network"}, "claim_is_one_sentence"),
        ({"budget": 0.0}, "budget_is_positive"),
        ({"budget": float("inf")}, "budget_is_positive"),
        ({"notes": "```\nopen"}, "notes_are_markdown"),
        ({"demo": lambda seed: []}, "demo_takes_seed_and_budget"),
        ({"demo": measures()}, "demo_runs: AssertionError: demo\\(\\) measured nothing"),
        ({"demo": lambda seed, budget: 1 / 0}, "demo_runs: ZeroDivisionError"),
        ({"demo": lambda seed, budget: ["0.9"]}, "demo_gives_measurements"),
        ({"demo": measures(Measurement("", "1", 1.0, 1.0, True))}, "demo_gives_measurements"),
        ({"demo": measures(*[Measurement("a", "1", 1.0, 1.0, True)] * 2)}, "quantities_are_distinct"),
        ({"demo": measures(Measurement("a", "1", 1.0, float("nan"), True))}, "numbers_are_finite"),
        ({"demo": measures(Measurement("a", "1", 2.0, 1.0, True))}, "verdicts_fit_the_numbers"),
        ({"demo": measures(Measurement("a", "1", 1.0, 2.0, True, "lower"))}, "verdicts_fit_the_numbers"),
    ],
)
def test_a_broken_system_is_named(change, check: str) -> None:
    with pytest.raises(AssertionError, match=check):
        check_system(replace(GOOD, **change), budget=1.0)


def test_all_failures_are_told_at_once() -> None:
    with pytest.raises(AssertionError, match="breaks 2 of 8 checks") as told:
        check_system(replace(GOOD, slug="A", budget=-1.0))
    assert "slug_names_a_module" in str(told.value)
    assert "budget_is_positive" in str(told.value)


def test_an_excused_check_is_left_out_with_its_reason() -> None:
    def fails() -> None:
        raise AssertionError("no")

    results = run_checks("x", {"a": fails, "b": lambda: None}, {"a": "not built yet"})
    assert results == [Check("a", excused="not built yet"), Check("b")]
