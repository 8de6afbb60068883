"""A ledger of every evaluation on a data set: append-only, each entry sealed by the hash of the one before.

How often a data set was looked at decides what a good result on it means (`luck.deflated_sharpe`), so
the count must not depend on anyone's memory. One JSON object a line; `hash` is the SHA-256 of the
other fields, `previous` among them. Changing, removing or reordering any entry but the last breaks
the chain; cutting entries off the end is found by comparing with a `Head` noted elsewhere, such as in
a report.

Appending takes a lock, so that several processes may share a ledger, and is one write that is synced
before it counts: a process killed meanwhile leaves at most an unfinished last line, which the next
append removes. (Other files of the library are replaced whole; a ledger is never rewritten.)
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel

START = "0" * 64  # what the first entry has for `previous`


@dataclass(frozen=True)
class Entry:
    """One evaluation.

    Attributes:
        index: position in the ledger, from 0.
        time: UTC, ISO 8601.
        data: hash of the data, see `data_hash`.
        config: hash of the configuration, see `config_hash`.
        metrics: name -> number, None where it was not one.
        note: what the user wanted remembered.
        previous: hash of the entry before.
        hash: SHA-256 of all of the above.
    """

    index: int
    time: str
    data: str
    config: str
    metrics: dict[str, float | None]
    note: str
    previous: str
    hash: str


@dataclass(frozen=True)
class Head:
    """How far a ledger had come: number of entries and hash of the last."""

    entries: int
    hash: str


@dataclass(frozen=True)
class Verification:
    """Result of `Ledger.verify`: whether the chain holds, how many entries it has, what is wrong."""

    whole: bool
    entries: int
    problem: str = ""


def data_hash(panel: Panel) -> str:
    """Return the SHA-256 of a panel's dates, symbols and fields; warnings do not count."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(panel.dates.astype("datetime64[D]").astype(np.int64)).tobytes())
    digest.update(json.dumps(panel.symbols).encode())
    for name in sorted(panel.fields):
        values = panel.fields[name]
        digest.update(f"{name}:{values.dtype.str}:{values.shape}".encode())
        # every NaN alike, whatever its bits
        digest.update(np.ascontiguousarray(np.where(np.isnan(values), np.nan, values)).tobytes())
    return digest.hexdigest()


def config_hash(config: Any) -> str:
    """Return the SHA-256 of a configuration: a pydantic model or anything that JSON can hold."""
    plain = config.model_dump(mode="json") if hasattr(config, "model_dump") else config
    return hashlib.sha256(_canonical(plain).encode()).hexdigest()


class Ledger:
    """A ledger in one file.

    Args:
        path: the file; made with its folder at the first entry. Its lock is `path` + '.lock'.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def record(self, data: Panel | str, config: Any, metrics: Mapping[str, float], note: str = "") -> Entry:
        """Append one evaluation and return its entry, once it is on disk.

        Args:
            data: the panel evaluated on, or its hash.
            config: the configuration, see `config_hash`, or its hash.
            metrics: name -> number.
            note: free text.

        Raises:
            InputError: if a metric is not a number, or the ledger's last entry is broken.
            OSError: if the file cannot be written; the ledger is then as it was.
        """
        data = data_hash(data) if isinstance(data, Panel) else data
        config = config if isinstance(config, str) and len(config) == 64 else config_hash(config)
        numbers = {str(name): _number(name, value) for name, value in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            head = self._last()
            time = datetime.now(UTC).isoformat(timespec="seconds")
            fields = {"data": data, "config": config, "metrics": numbers, "note": note}
            body = {"index": head.entries, "time": time, **fields, "previous": head.hash}
            entry = Entry(**body, hash=_seal(body))
            self._append(_canonical(asdict(entry)) + "\n")
        return entry

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first.

        Raises:
            InputError: if the chain is broken; the message says where.
        """
        found = []
        for entry, problem in self._walk():
            if problem:
                raise InputError(f"the ledger {self.path} cannot be trusted: {problem}")
            if entry is not None:
                found.append(entry)
        return found

    def verify(self, head: Head | None = None) -> Verification:
        """Check every hash and link.

        Args:
            head: a head noted earlier; it must be part of the chain.
        """
        count, noted = 0, head is None or head.entries == 0
        for entry, problem in self._walk():
            if problem:
                return Verification(False, count, problem)
            if entry is not None:
                count += 1
                noted = noted or (head is not None and (count, entry.hash) == (head.entries, head.hash))
        if not noted and head is not None:
            missing = f"entry {head.entries - 1} with hash {head.hash[:12]}... is not in the ledger any more"
            return Verification(False, count, missing)
        return Verification(True, count)

    def head(self) -> Head:
        """Return how far the ledger has come, to be noted elsewhere."""
        entries = self.entries()
        return Head(len(entries), entries[-1].hash if entries else START)

    def trials(self, data: Panel | str) -> int:
        """Return how many different configurations were evaluated on these data."""
        return len(self._latest(data))

    def metric(self, data: Panel | str, name: str) -> list[float]:
        """Return one metric of each different configuration on these data, at its last evaluation."""
        values = (entry.metrics.get(name) for entry in self._latest(data).values())
        return [value for value in values if value is not None]

    def _latest(self, data: Panel | str) -> dict[str, Entry]:
        wanted = data_hash(data) if isinstance(data, Panel) else data
        return {entry.config: entry for entry in self.entries() if entry.data == wanted}

    def _walk(self) -> Iterator[tuple[Entry | None, str]]:
        """Yield each entry, or what is wrong at the first place where something is."""
        if not self.path.exists():
            return
        previous, index = START, 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # an append that was never acknowledged
                try:
                    body = json.loads(line)
                    entry = Entry(**body)
                except (ValueError, TypeError):
                    yield None, f"line {index + 1} is not an entry"
                    return
                sealed = {name: value for name, value in body.items() if name != "hash"}
                if entry.hash != _seal(sealed):
                    yield None, f"entry {index} was changed: its content does not give its hash"
                    return
                if entry.index != index or entry.previous != previous:
                    yield (
                        None,
                        f"entry {index} does not follow the one before: something was removed or moved",
                    )
                    return
                yield entry, ""
                previous, index = entry.hash, index + 1

    def _last(self) -> Head:
        """Return the head from the last line alone, and remove an unfinished append."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return Head(0, START)
        with self.path.open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            start, tail = size, b""
            # back over blocks until the last two line ends are seen
            while start > 0 and tail.count(b"\n") < 2:
                start = max(0, start - 65536)
                stream.seek(start)
                tail = stream.read(size - start)
            end = tail.rfind(b"\n") + 1
            if end < len(tail):
                stream.truncate(start + end)
                os.fsync(stream.fileno())
            if end == 0:
                return Head(0, START)
            line = tail[:end].splitlines()[-1]
        try:
            body = json.loads(line)
            entry = Entry(**body)
            whole = entry.hash == _seal({name: value for name, value in body.items() if name != "hash"})
        except (ValueError, TypeError):
            whole = False
        if not whole:
            raise InputError(f"the last entry of the ledger {self.path} is broken; nothing was added")
        return Head(entry.index + 1, entry.hash)

    def _append(self, line: str) -> None:
        content = line.encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, content)
                if written != len(content):
                    raise OSError(f"only {written} of {len(content)} bytes could be written to {self.path}")
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(f"{self.path}.lock", "w") as lock:
            if os.name == "nt":
                import msvcrt

                getattr(msvcrt, "locking")(lock.fileno(), getattr(msvcrt, "LK_LOCK"), 1)  # noqa: B009
                yield
                return
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
            yield  # closing the file releases the lock, also when the process dies


def _canonical(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, allow_nan=False)
    except ValueError as wrong:
        raise InputError(f"this cannot be recorded as JSON: {wrong}") from None


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def _number(name: str, value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"the metric {name!r} must be a number, got {value!r}") from None
    return number if math.isfinite(number) else None
