"""The command line that scripts of this folder share: sizes, the clock to measure by, where to write."""

import argparse
import time
from collections.abc import Callable

import torch


def read_options(
    description: str | None, **defaults: int | str
) -> tuple[argparse.Namespace, Callable[[], float]]:
    """Read `--name` for every default, and `--processor` and `--json`; return them and the clock in seconds.

    Args:
        description: of the script, its docstring.
        defaults: an option each, of the default's type.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--processor", action="store_true", help="processor time of one thread")
    parser.add_argument("--json")
    options = parser.parse_args()
    if not options.processor:
        return options, time.perf_counter
    torch.set_num_threads(1)
    return options, time.thread_time
