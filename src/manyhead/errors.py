"""The one error that users meet, and the import of optional packages."""

from importlib import import_module
from typing import Any


class InputError(ValueError):
    """Something that a user gave cannot be used.

    The message names the argument, file, row or column, what came and what is accepted. The command
    line prints it without a traceback and exits with code 2.
    """


def optional(module: str, extra: str) -> Any:
    """Import an optional package where it is used.

    Args:
        module: dotted name of the module to import.
        extra: the extra of manyhead that installs it.

    Returns:
        The imported module.

    Raises:
        InputError: if the package is absent, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as absent:
        if absent.name and not module.startswith(absent.name.split(".")[0]):
            raise  # the package is there, but something that it needs is not
        package = module.split(".")[0]
        raise InputError(
            f"this needs the package {package!r}, which is not installed: pip install 'manyhead[{extra}]'"
        ) from absent
