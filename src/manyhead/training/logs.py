"""Logs of a run: a CSV table and TensorBoard curves, both rewritten from the history.

The history is part of the checkpoint, so that the logs of a resumed run hold every epoch exactly once.
"""

import csv
import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from manyhead.errors import InputError
from manyhead.files import write_text

Row = dict[str, float]
KINDS = ("csv", "tensorboard")


class Logs:
    """Write the history where the user looks for it.

    Args:
        folder: folder of the run; None to log nothing.
        kinds: any of 'csv' (`metrics.csv`) and 'tensorboard' (`tensorboard/`).
        history: the epochs done before, when a run is resumed.
    """

    def __init__(self, folder: Path | None, kinds: Iterable[str], history: Sequence[Row]) -> None:
        self.folder = folder
        self.kinds = [] if folder is None else list(kinds)
        self._writer: Any = None
        if folder is not None and "tensorboard" in self.kinds:
            from torch.utils.tensorboard import SummaryWriter

            # curves of a killed run may hold epochs that the checkpoint does not, or miss some
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            self._writer = SummaryWriter(str(folder / "tensorboard"))
            for row in history:
                self._curve(row)
        if history:
            self._table(history)

    def add(self, history: Sequence[Row]) -> None:
        """Log the last epoch of the history."""
        self._table(history)
        self._curve(history[-1])

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def _table(self, history: Sequence[Row]) -> None:
        if self.folder is not None and "csv" in self.kinds:
            write_text(self.folder / "metrics.csv", table(history))

    def _curve(self, row: Row) -> None:
        if self._writer is not None:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(name, value, int(row["step"]))
            self._writer.flush()


def check_kinds(kinds: Iterable[str]) -> None:
    """Refuse logs that do not exist."""
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"logs must be among {KINDS}, got {kind!r}")


def table(history: Sequence[Row]) -> str:
    """The history as CSV text: one line an epoch, columns in order of appearance."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
