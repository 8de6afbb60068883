"""One attempt of a training run in a forked process that may be killed, starved or paused."""

import contextlib
import json
import os
import select
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from manyhead.training.checkpoint import CHECKPOINT, digest, load_state, pack
from manyhead.training.faults import Disk

RunFunction = Callable[[Path, bool], Any]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Args:
        killed: whether a signal ended it.
        result: fingerprint of what the run left, if it ended well.
        error: type and message of what it raised.
        struck: whether the injected fault came.
        places: the points at which a kill could have come: before, middle or after an operation.
        operations: operations on files by kind.
    """

    killed: bool
    result: str = ""
    error: str = ""
    struck: bool = False
    places: Sequence[str] = ()
    operations: Mapping[str, int] | None = None


class Attempt:
    """A forked child that runs `run(folder, resume)`.

    The parent's memory, with everything that training imports, is shared: an attempt costs what it computes.

    Args:
        run: the training run.
        folder: its folder.
        resume: whether it may go on from a checkpoint.
        disk: what strikes the child.
        prepare: called in the child first, for limits that only it shall have.
    """

    def __init__(
        self,
        run: RunFunction,
        folder: Path,
        resume: bool,
        disk: Disk | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        import_module("lightning_fabric")  # `fit` imports it late: seconds that every child would spend again
        self._read, write = os.pipe()
        self.process = os.fork()
        if self.process == 0:  # the child: never returns
            os.close(self._read)
            _live(run, folder, resume, disk or Disk(folder), prepare, write)
        os.close(write)

    def send(self, number: int) -> None:
        """Send a signal to the child."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)

    def wait(self, timeout: float = 120.0) -> Outcome:
        """Wait for the end of the child, and kill it if it takes longer than `timeout` seconds."""
        content = b""
        with os.fdopen(self._read, "rb", buffering=0) as pipe:
            while True:
                ready, _, _ = select.select([pipe], [], [], timeout)
                if not ready:
                    self.send(signal.SIGKILL)
                    break
                part = pipe.read(1 << 16)
                if not part:
                    break
                content += part
        _, status = os.waitpid(self.process, 0)
        if os.WIFSIGNALED(status) or not content:
            return Outcome(killed=True)
        return Outcome(killed=False, **json.loads(content))


def _live(
    run: RunFunction,
    folder: Path,
    resume: bool,
    disk: Disk,
    prepare: Callable[[], None] | None,
    write: int,
) -> None:
    """The child's life: train, tell the parent, leave without cleaning up."""
    try:
        import torch

        torch.set_num_threads(1)  # the parent's thread pool does not survive a fork
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        told: dict[str, Any] = {}
        try:
            if prepare is not None:
                prepare()
            disk.install()
            told["result"] = fingerprint(run(folder, resume), folder)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            told["error"] = f"{type(error).__name__}: {error} [{place.name}:{place.lineno}]"
        told |= {"struck": disk.struck, "places": disk.places, "operations": disk.operations}
        os.write(write, json.dumps(told).encode())
    finally:
        os._exit(0)


def fingerprint(result: Any, folder: Path) -> str:
    """A hash of what a run returned and of the checkpoint that it left, wall-clock times aside."""
    plain, tensors = pack(_timeless(result))
    total = digest(json.dumps(plain), tensors)
    if (folder / CHECKPOINT).exists():
        plain, tensors = pack(_timeless(load_state(folder / CHECKPOINT)))
        total += digest(json.dumps(plain), tensors)
    return total


def _timeless(value: Any) -> Any:
    """A copy without the entries called 'seconds' and without paths."""
    if isinstance(value, nn.Module):
        return _timeless(value.state_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return _timeless(vars(value))
    if isinstance(value, Path):
        return None
    if isinstance(value, Mapping):
        return {key: _timeless(inner) for key, inner in value.items() if key != "seconds"}
    if isinstance(value, (list, tuple)):
        return [_timeless(inner) for inner in value]
    return value
