"""Contract checks and hypothesis strategies, for our tests and for users' plug-ins.

Each `check_...` runs a list of named checks and raises one AssertionError that names all that failed.
"""

from importlib import import_module
from typing import Any

# name -> the module that defines it, loaded on first use
_HOMES: dict[str, str] = {
    "Check": "manyhead.testing.checks",
    "check_balancer": "manyhead.testing.balancers",
    "check_system": "manyhead.testing.systems",
    "run_checks": "manyhead.testing.checks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'manyhead.testing' has no attribute {name!r}")
