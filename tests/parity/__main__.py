"""`python -m tests.parity SLUG [FILE.npz]`: print every output's largest relative error."""

import sys
from pathlib import Path

from tests.parity.compare import GOLDEN, compare

USAGE = "usage: python -m tests.parity SLUG [FILE.npz]"


def main(arguments: list[str]) -> int:
    """Return 0 if every output is within its limit, 1 if one is not, 2 for wrong arguments."""
    known = sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem not in {"__init__", "__main__", "compare"} and not path.stem.startswith("test_")
    )
    if not 1 <= len(arguments) <= 2 or arguments[0] not in known:
        print(f"{USAGE}\nSLUG is one of: {', '.join(known)}", file=sys.stderr)
        return 2
    slug = arguments[0]
    file = Path(arguments[1]) if len(arguments) == 2 else GOLDEN / f"{slug}.npz"
    if not file.is_file():
        print(f"error: there is no file {file}", file=sys.stderr)
        return 2
    errors = compare(slug, file)
    width = max(len(error.name) for error in errors)
    for error in errors:
        verdict = "ok" if error.within else f"ABOVE {error.limit:.0e}"
        print(f"{error.name:<{width}}  {error.value:9.2e}  {verdict}")
    wrong = sum(not error.within for error in errors)
    worst = max(errors, key=lambda error: error.value / error.limit)
    print(f"{slug}: {len(errors)} outputs, {wrong} above their limit, worst {worst.name} {worst.value:.2e}")
    return 1 if wrong or not errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
