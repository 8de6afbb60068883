"""Users' own factors: functions of a panel, named as 'module:function'."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.factors.source import Factors, Rows, require_distinct
from manyhead.stocks.panel import Panel


def extra_factors(panel: Panel, functions: Sequence[str]) -> Factors:
    """Compute users' factors.

    Args:
        panel: prices, handed to every function.
        functions: each 'module:function'. The function takes the panel and returns (days, symbols), a
            factor named like the function, or a mapping from names to such arrays. Row r may use
            rows up to r only; NaN where missing.

    Returns:
        (days, symbols, factors) float32, in the order of the functions and of their mappings.

    Raises:
        InputError: if a function cannot be found, fails, or returns something else; two factors of the
            same name.
    """
    if not functions:
        raise InputError("functions must name at least one 'module:function', got none")
    names: list[str] = []
    values: list[Rows] = []
    for target in functions:
        for name, array in _call(target, panel).items():
            names.append(name)
            values.append(_checked(target, name, array, panel))
    require_distinct(names)
    return Factors(tuple(names), np.stack(values, axis=-1))


def _call(target: str, panel: Panel) -> Mapping[str, Any]:
    """Import a function, call it, and return its factors by name."""
    module_name, colon, function_name = target.partition(":")
    if not (module_name and colon and function_name):
        raise InputError(f"a factor function must be written 'module:function', got {target!r}")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as absent:
        raise InputError(
            f"factor function {target!r}: there is no module {absent.name!r} on the Python path"
        ) from absent
    except Exception as failure:
        raise InputError(
            f"factor function {target!r}: importing {module_name!r} failed with "
            f"{type(failure).__name__}: {failure}"
        ) from failure
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"factor function {target!r}: {module_name!r} has no function {function_name!r}")
    try:
        result = function(panel)
    except Exception as failure:
        raise InputError(
            f"factor function {target!r} failed with {type(failure).__name__}: {failure}"
        ) from failure
    return result if isinstance(result, Mapping) else {function_name: result}


def _checked(target: str, name: Any, array: Any, panel: Panel) -> Rows:
    """Return one factor as float32 (days, symbols)."""
    if not isinstance(name, str) or not name:
        raise InputError(f"factor function {target!r}: a factor's name must be text, got {name!r}")
    try:
        values = np.asarray(array, np.float32)
    except (TypeError, ValueError) as failure:
        raise InputError(f"factor function {target!r}: factor {name!r} is not numeric ({failure})") from None
    shape = (panel.days, len(panel.symbols))
    if values.shape != shape:
        raise InputError(
            f"factor function {target!r}: factor {name!r} must be (days, symbols) = {shape}, "
            f"got {values.shape}"
        )
    return values
