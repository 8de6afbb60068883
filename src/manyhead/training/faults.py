"""Kills and disk faults inside a process: what `chaos` does to its children.

The functions through which Python writes files are replaced in the child alone, so that the n-th of
them kills the process or fails as a bad disk would. Nothing of this is installed in ordinary runs.
"""

import builtins
import errno
import io
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Kind = Literal["none", "kill", "full", "read-only", "rename", "sync"]

ERRORS: dict[str, int] = {
    "full": errno.ENOSPC,
    "read-only": errno.EROFS,
    "rename": errno.EPERM,
    "sync": errno.EIO,
}
# the fault -> the operation it befalls; a kill befalls any
BEFALLS: dict[str, str] = {"full": "write", "read-only": "create", "rename": "rename", "sync": "sync"}


class Disk:
    """Counts what a process does to the files below a folder, and strikes at one of these operations.

    An operation is passed before it starts, in the middle of a write, and after it: each is a point at
    which a kill can come.

    Args:
        folder: only files below it count.
        kind: what happens: nothing, a kill, or an error.
        at: the point (for a kill) or the operation of the befallen kind (for an error), from 1.
        lasting: whether an error stays from then on.
    """

    def __init__(self, folder: Path, kind: Kind = "none", at: int = 0, lasting: bool = True) -> None:
        self.folder = str(folder.resolve())
        self.kind, self.at, self.lasting = kind, at, lasting
        self.points = 0
        self.places: list[str] = []  # what each point is: before, middle or after an operation
        self.operations: dict[str, int] = {}
        self.struck = False

    def install(self) -> None:
        """Replace the functions that write, for the rest of this process."""
        os.replace = self._guard(os.replace, "rename", 1)
        os.rename = self._guard(os.rename, "rename", 1)
        os.unlink = self._guard(os.unlink, "remove", 0)
        os.fsync = self._guard(os.fsync, "sync", None)
        tempfile.mkstemp = self._guard(tempfile.mkstemp, "create", "dir")
        opened, from_descriptor = io.open, os.fdopen

        def open_file(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            # files of other processes, sockets and reading are none of our business
            if not (set(mode) & set("wax+")) or isinstance(file, int) or not self._below(file):
                return opened(file, mode, *rest, **options)
            self.point("create")
            return _Stream(opened(file, mode, *rest, **options), self)

        def open_descriptor(descriptor: int, mode: str = "r", *rest: Any, **options: Any) -> Any:
            stream = from_descriptor(descriptor, mode, *rest, **options)
            return _Stream(stream, self) if set(mode) & set("wax+") else stream

        builtins.open = io.open = open_file
        os.fdopen = open_descriptor  # type: ignore[assignment]

    def point(self, operation: str, middle: Callable[[], None] | None = None) -> None:
        """An operation is about to happen.

        Args:
            operation: 'create', 'write', 'sync', 'rename' or 'remove'.
            middle: does half of it, for operations that can be cut in two.
        """
        self._pass("before")
        count = self.operations[operation] = self.operations.get(operation, 0) + 1
        if self.kind == "kill" and self.points == self.at:
            self.kill()
        if middle is not None:
            self._pass("middle")
            if self.kind == "kill" and self.points == self.at:
                middle()
                self.kill()
        if BEFALLS.get(self.kind) == operation and (count == self.at or (self.lasting and count > self.at)):
            self.struck = True
            if middle is not None:
                middle()
            raise OSError(ERRORS[self.kind], f"{os.strerror(ERRORS[self.kind])} (injected)")

    def _pass(self, place: str) -> None:
        self.points += 1
        self.places.append(place)

    def passed(self) -> None:
        """An operation has happened."""
        self._pass("after")
        if self.kind == "kill" and self.points == self.at:
            self.kill()

    @staticmethod
    def kill() -> None:
        """End this process at once, with nothing flushed or cleaned up."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _below(self, path: Any) -> bool:
        try:
            return str(os.path.abspath(os.fspath(path))).startswith(self.folder + os.sep)
        except TypeError:  # a descriptor or a stream
            return False

    def _guard(self, function: Callable[..., Any], operation: str, where: int | str | None) -> Any:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if where is not None:  # the argument that holds a path
                path = options.get(where) if isinstance(where, str) else arguments[where]
                if path is None or not self._below(os.path.join(path, "x") if where == "dir" else path):
                    return function(*arguments, **options)
            self.point(operation)
            result = function(*arguments, **options)
            self.passed()
            return result

        return guarded


class _Stream:
    """A file whose writes are points; everything else is passed on."""

    def __init__(self, stream: Any, disk: Disk) -> None:
        self._stream, self._disk = stream, disk

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._stream.write(content[: len(content) // 2])
            self._stream.flush()

        self._disk.point("write", half)
        result = self._stream.write(content)
        self._disk.passed()
        return result

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
