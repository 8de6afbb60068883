"""How contract checks are run: each is a named function, and all of them run before one error tells."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Args:
        name: name of the check.
        failure: what went wrong, empty if it passed.
        excused: the reason why it was left out, empty if it ran.
    """

    name: str
    failure: str = ""
    excused: str = ""


def run_checks(
    subject: str,
    checks: Mapping[str, Callable[[], Any]],
    excuses: Mapping[str, str] | None = None,
) -> list[Check]:
    """Run every check and raise once, naming all that failed.

    Args:
        subject: what is checked, for the message.
        checks: name -> a function that raises where the contract is broken.
        excuses: name -> why this check does not apply; a reason is required.

    Raises:
        AssertionError: if a check failed, an excuse has no reason or names no check.
    """
    excuses = dict(excuses or {})
    for name, reason in excuses.items():
        if name not in checks:
            raise AssertionError(f"there is no check {name!r} to excuse; the checks are {sorted(checks)}")
        if not reason.strip():
            raise AssertionError(f"the check {name!r} is excused without a reason")
    results = []
    for name, check in checks.items():
        if name in excuses:
            results.append(Check(name, excused=excuses[name]))
            continue
        try:
            check()
        except Exception as error:
            results.append(Check(name, failure=f"{type(error).__name__}: {error}"))
        else:
            results.append(Check(name))
    failed = [f"  {result.name}: {result.failure}" for result in results if result.failure]
    if failed:
        raise AssertionError(f"{subject} breaks {len(failed)} of {len(checks)} checks:\n" + "\n".join(failed))
    return results
