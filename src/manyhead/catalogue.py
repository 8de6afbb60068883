"""The catalogue of systems: one line per paper, loaded only when it is asked for."""

from difflib import get_close_matches
from importlib import import_module

from manyhead.errors import InputError
from manyhead.system import System

# slug of every system, in `manyhead/systems/<slug>.py`, each with one `SYSTEM`
SLUGS: tuple[str, ...] = (
    "stockformer",
    "r_mtgb",
    "tall_masks",
    "gna",
    "faster_na",
    "halonet",
    "maxvit",
    "davit",
    "sequence_parallelism",
    "moh",
    "multi_lane",
    "flat_mtl",
    "rep_mtl",
    "controllable_mtl",
    "long_sequence_unified",
    "lama",
    "modular_vision",
    "task_expert",
    "aaren",
    "dsf",
    "cab",
    "block_transformer",
    "deconstructing_attention",
    "sinklora",
    "ssa",
    "rcmha",
    "routing_transformer",
    "mvpa",
)


def load(slug: str) -> System:
    """Return one system.

    Raises:
        InputError: if there is no system of that name; the message offers the nearest ones.
    """
    if slug not in SLUGS:
        near = get_close_matches(slug, SLUGS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`manyhead systems` lists them all"
        raise InputError(f"there is no system {slug!r}; {hint}")
    system = import_module(f"manyhead.systems.{slug}").SYSTEM
    assert isinstance(system, System)
    return system


def systems() -> list[System]:
    """Return every system of the catalogue."""
    return [load(slug) for slug in SLUGS]
