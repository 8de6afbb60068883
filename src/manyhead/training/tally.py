"""The counts of `chaos`, and how they are shown."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Tally:
    """How often one kind of trouble was made, and what went wrong."""

    what: str
    tried: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Times that the promise held."""
        return self.tried - len(self.violations)


@dataclass
class ChaosReport:
    """What `chaos` found.

    Args:
        tallies: one for each kind of trouble.
        resumed: runs that were resumed to their end and compared bit for bit.
        files: finished files that were read back after a kill or a fault.
        seconds: time it took.
    """

    tallies: list[Tally]
    resumed: int = 0
    files: int = 0
    seconds: float = 0.0

    @property
    def violations(self) -> list[str]:
        """Everything that went wrong, in words."""
        return [f"{tally.what}: {text}" for tally in self.tallies for text in tally.violations]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tallies": [asdict(tally) | {"held": tally.held} for tally in self.tallies],
            "resumed": self.resumed,
            "files": self.files,
            "seconds": self.seconds,
            "violations": len(self.violations),
        }


def print_report(report: ChaosReport, *, as_json: bool = False) -> None:
    """Show the counts as a table or as JSON."""
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="manyhead chaos")
    table.add_column("trouble")
    for column in ("times", "held", "violations"):
        table.add_column(column, justify="right")
    for tally in report.tallies:
        bad = len(tally.violations)
        table.add_row(tally.what, str(tally.tried), str(tally.held), f"[red]{bad}[/red]" if bad else "0")
    console = Console()
    console.print(table)
    console.print(
        f"{report.resumed} runs resumed to their end and compared bit for bit, {report.files} finished "
        f"files read back, {report.seconds:.0f} s"
    )
    for text in report.violations:
        console.print(f"[red]violation[/red] {text}")
