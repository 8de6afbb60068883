"""Checkpoints: one safetensors file with JSON in its header, so that one rename commits everything.

A run's folder holds `checkpoint.safetensors` (all that is needed to go on) and the best weights so far,
`best-<epoch>.safetensors`. The best weights are written first; the checkpoint that names them is the
commit; only then are older best weights removed. A kill at any moment leaves a checkpoint and the best
weights that it names.
"""

import collections
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from manyhead import __version__
from manyhead.errors import InputError
from manyhead.files import atomic

CHECKPOINT = "checkpoint.safetensors"
FORMAT = 1
CHUNK = 1 << 22  # bytes a write


class CheckpointError(OSError):
    """A checkpoint could not be written or read; what stood there before is untouched."""


class FolderInUse(CheckpointError):
    """Another run writes to the folder."""


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split nested values into JSON and named tensors.

    Takes dicts with any plain keys, lists, tuples, counters, numbers, text, None, tensors, NumPy arrays
    and torch types.

    Raises:
        TypeError: for anything else, naming where it is.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def walk(value: Any, path: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous()
            if flat.is_complex():
                return {"__complex__": walk(torch.view_as_real(flat), path)}
            # safetensors stores each memory once: tied weights are written twice
            if flat.untyped_storage().data_ptr() in storages:
                flat = flat.clone()
            storages.add(flat.untyped_storage().data_ptr())
            while path in tensors:  # 'a.b' may be one key or two
                path += "'"
            tensors[path] = flat
            return {"__tensor__": path}
        if isinstance(value, np.ndarray):
            return {
                "__array__": walk(torch.from_numpy(np.ascontiguousarray(value)), path),
                "shape": value.shape,
            }
        if isinstance(value, np.generic):
            return walk(value.item(), path)
        if isinstance(value, (torch.dtype, torch.device)):
            return {"__torch__": str(value)}
        if isinstance(value, collections.Counter):
            return {"__counter__": [[walk(k, path), n] for k, n in value.items()]}
        if isinstance(value, dict):
            if all(isinstance(key, str) and not key.startswith("__") for key in value):
                return {key: walk(inner, f"{path}.{key}" if path else key) for key, inner in value.items()}
            return {"__pairs__": [[walk(k, path), walk(v, f"{path}.{k}")] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            inner = [walk(item, f"{path}.{index}") for index, item in enumerate(value)]
            return inner if isinstance(value, list) else {"__tuple__": inner}
        raise TypeError(
            f"{path or 'the state'} holds a {type(value).__name__}, which a checkpoint cannot keep"
        )

    return walk(tree, ""), tensors


def unpack(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Join what `pack` split."""
    if isinstance(plain, list):
        return [unpack(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if "__tensor__" in plain:
        return tensors[plain["__tensor__"]]
    if "__complex__" in plain:
        return torch.view_as_complex(unpack(plain["__complex__"], tensors))
    if "__array__" in plain:
        return unpack(plain["__array__"], tensors).numpy().reshape(plain["shape"])
    if "__torch__" in plain:
        name = plain["__torch__"]
        return getattr(torch, name[6:]) if name.startswith("torch.") else torch.device(name)
    if "__counter__" in plain:
        return collections.Counter({unpack(k, tensors): n for k, n in plain["__counter__"]})
    if "__pairs__" in plain:
        return {unpack(k, tensors): unpack(v, tensors) for k, v in plain["__pairs__"]}
    if "__tuple__" in plain:
        return tuple(unpack(item, tensors) for item in plain["__tuple__"])
    return {key: unpack(value, tensors) for key, value in plain.items()}


def digest(plain: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over a text and over the names, types, shapes and bytes of tensors."""
    total = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        if tensors[name].numel():
            total.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_state(path: str | Path, state: Any) -> None:
    """Write nested values to one file that is either whole or not there.

    Args:
        path: the file, by custom `*.safetensors`.
        state: what `pack` takes.

    Raises:
        CheckpointError: if it could not be written; what stood at `path` before still stands there.
    """
    plain, tensors = pack(state)
    text = json.dumps({"format": FORMAT, "version": __version__, "state": plain})
    header = {"manyhead": text, "sha256": digest(text, tensors)}
    content = memoryview(to_bytes(tensors, metadata=header))
    try:
        with atomic(path) as stream:
            for start in range(0, len(content), CHUNK):
                stream.write(content[start : start + CHUNK])
    except OSError as error:
        raise CheckpointError(
            error.errno, f"{path} could not be written ({error}); what stood there before is untouched"
        ) from error


def load_state(path: str | Path) -> Any:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: if the file is absent, incomplete, altered, or of another format.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            # copied: what comes back is the file itself, mapped into memory
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if header["sha256"] != digest(header["manyhead"], tensors):
            raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
        held = json.loads(header["manyhead"])
        if held["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {held['format']}, this version reads {FORMAT}"
            )
        return unpack(held["state"], tensors)
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a complete checkpoint: {error}") from error


class RunFolder:
    """The folder of one run: its lock, its checkpoint, its best weights.

    Args:
        path: the folder, made if it is missing.

    Raises:
        FolderInUse: if a living process writes there. The lock of a dead one is void by itself, since
            the system gives file locks back when a process ends.
        CheckpointError: if the folder cannot be made or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Take the lock, and remove what a killed writer left half-written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / ".lock")
        except FolderInUse:
            raise
        except OSError as error:
            raise CheckpointError(
                error.errno, f"the folder {self.path} cannot be written: {error}"
            ) from error
        for leftover in self.path.glob(".*.part"):
            with contextlib.suppress(OSError):
                leftover.unlink()

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def has_checkpoint(self) -> bool:
        """Whether a run was saved here."""
        return (self.path / CHECKPOINT).exists()

    def best_path(self, epoch: int) -> Path:
        """File of the weights of an epoch that was the best so far."""
        return self.path / f"best-{epoch:05d}.safetensors"

    def save_best(self, epoch: int, weights: dict[str, Any]) -> None:
        """Write the weights of the best epoch so far; they count once a checkpoint names them."""
        save_state(self.best_path(epoch), weights)

    def load_best(self, epoch: int) -> dict[str, Any]:
        """Read the weights of the best epoch."""
        weights: dict[str, Any] = load_state(self.best_path(epoch))
        return weights

    def save(self, state: dict[str, Any], best_epoch: int | None) -> None:
        """Commit a checkpoint, then remove best weights that it does not name."""
        save_state(self.path / CHECKPOINT, state)
        for path in self.path.glob("best-*.safetensors"):
            if best_epoch is None or path != self.best_path(best_epoch):
                with contextlib.suppress(OSError):
                    path.unlink()

    def load(self) -> dict[str, Any]:
        """Read the checkpoint."""
        state: dict[str, Any] = load_state(self.path / CHECKPOINT)
        return state


def _locked(path: Path) -> IO[str]:
    """Open a file and hold its lock until it is closed or the process ends."""
    stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 held open as long as the run lasts
    try:
        import fcntl
    except ImportError:  # Windows: no such lock, the writes stay atomic
        return stream
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.seek(0)
        owner = stream.read().strip() or "unknown"
        stream.close()
        raise FolderInUse(
            error.errno, f"the folder {path.parent} is in use by another run (process {owner})"
        ) from error
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    return stream


@contextlib.contextmanager
def run_folder(path: str | Path | None, *, resume: bool, writes: bool = True) -> Iterator[RunFolder | None]:
    """Hold a run's folder for as long as the block lasts; None without a folder.

    Args:
        path: the folder or None.
        resume: whether a checkpoint that is there may be continued.
        writes: whether this process writes (of several processes of one run, only the first does).

    Raises:
        InputError: if the folder holds a run and `resume` is off, or `resume` is on without a folder.
    """
    if path is None:
        if resume:
            raise InputError("resume=True needs the folder of the run that is to go on")
        yield None
        return
    folder = RunFolder(path)
    if writes:
        folder.open()
    try:
        if folder.has_checkpoint and not resume:
            raise InputError(
                f"folder {folder.path} already holds a run: pass resume=True to continue it, "
                "or another folder"
            )
        yield folder
    finally:
        folder.close()
