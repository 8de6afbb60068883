"""manyhead: models with many heads, attention heads over token grids and task heads trained together.

Nothing happens at import: each public name is loaded where it lives when it is first used, so that
`import manyhead` costs little more than `import torch` and never needs an optional package.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> the module that defines it
_HOMES: dict[str, str] = {
    "InputError": "manyhead.errors",
    "System": "manyhead.system",
    "Measurement": "manyhead.system",
    "Task": "manyhead.tasks",
    "MultiTask": "manyhead.tasks",
    "fit": "manyhead.training",
    "attend": "manyhead.attention",
    "plan": "manyhead.attention",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'manyhead' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
