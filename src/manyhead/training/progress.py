"""Progress bars of a run, by rich."""

from typing import Any


class Bars:
    """One bar for epochs and one for the steps of the epoch in hand, with the mean losses.

    Args:
        epochs: epochs of the run.
        steps: optimizer steps of an epoch.
        shown: whether anything is shown at all.
    """

    def __init__(self, epochs: int, steps: int, *, shown: bool) -> None:
        self.steps = steps
        self._bars: Any = None
        if shown:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
                transient=True,
            )
            self._epochs = self._bars.add_task("epochs", total=epochs, losses="")
            self._steps = self._bars.add_task("steps", total=steps, losses="")

    def __enter__(self) -> "Bars":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def epoch(self, done: int, steps: int) -> None:
        """An epoch starts: so many are done, and so many steps of this one."""
        if self._bars is not None:
            self._bars.update(self._epochs, completed=done)
            self._bars.update(self._steps, completed=steps)

    def step(self, sums: dict[str, float], counts: dict[str, int]) -> None:
        """A step is done; show the mean losses of the epoch so far."""
        if self._bars is not None:
            means = "  ".join(f"{name} {total / counts[name]:.4g}" for name, total in sums.items())
            self._bars.update(self._steps, advance=1, losses=means)
