"""chaos(): kill a training run at random moments, fault its disk, and compare what comes out.

Every attempt is a forked child of this process. Half of the kills come from outside at random moments;
the other half come inside a save: before, in the middle of, or after a write, sync, rename or removal,
chosen at random. After each kill every finished file must be whole; resumed to its end, each run must
leave the bits of a run that nobody disturbed.
"""

import contextlib
import csv
import importlib
import json
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from manyhead.errors import InputError
from manyhead.training.checkpoint import CHECKPOINT, CheckpointError, load_state
from manyhead.training.child import Attempt, Outcome, RunFunction
from manyhead.training.faults import BEFALLS, Disk, Kind
from manyhead.training.rehearsal import rehearse
from manyhead.training.tally import ChaosReport, Tally, print_report

NOBODY = 65534
TROUBLES = (
    "killed inside a save",
    "killed at a random moment",
    "disk full",
    "folder read-only",
    "rename refused",
    "sync fails",
    "file too large (real limit)",
    "no permission (real)",
    "two writers",
    "checkpoint cut short or altered",
)


def chaos(
    run: RunFunction | None = None,
    *,
    kills: int = 200,
    faults: int = 5,
    seed: int = 0,
    folder: str | Path | None = None,
    only: Collection[str] | None = None,
    notice: Callable[[str, int], None] = lambda what, done: None,
) -> ChaosReport:
    """Disturb a training run in every way known, and check each time that nothing is lost.

    Args:
        run: `run(folder, resume)` trains in `folder`, going on from the checkpoint there if `resume`
            and one is there, and returns what must come out equal (weights, a module, `Fitted`, nested
            values; entries called 'seconds' are left aside). It must build everything from fixed
            seeds. A small run of our own if left out. A run of about a second is best.
        kills: how many SIGKILLs, half of them inside a save.
        faults: how many places each kind of disk fault is tried at.
        seed: of the choice of moments and places.
        folder: where the runs work; if left out a temporary folder, in main memory where the system
            offers that, since waiting for a disk tests nothing more.
        only: the kinds of trouble to make, by the names in `TROUBLES`; all if left out.
        notice: called with the kind of trouble and how often it was made, for progress bars.

    Returns:
        the counts; `report.violations` is empty if every promise held.

    Raises:
        InputError: if the run fails when nobody disturbs it, or does not repeat bit for bit.
    """
    if not hasattr(os, "fork"):
        raise InputError("chaos needs fork(), which this system does not have")
    for name in only or ():
        if name not in TROUBLES:
            raise InputError(f"only must name troubles among {TROUBLES}, got {name!r}")
    if kills < 0 or faults < 0:
        raise InputError(f"kills and faults must not be negative, got {kills} and {faults}")
    # children inherit what is imported here, instead of importing it each
    import lightning_fabric  # noqa: F401
    import torchmetrics  # noqa: F401

    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    elif os.access("/dev/shm", os.W_OK):
        folder = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=folder, prefix="chaos-") as base:
        os.chmod(base, 0o755)
        troubles = TROUBLES if only is None else only
        return _Chaos(run or rehearse, Path(base), seed, notice).go(kills, faults, troubles)


def load_run(name: str) -> RunFunction:
    """The function that 'package.module:function' names; the working folder is searched first.

    Raises:
        InputError: if there is no such module or function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"run must be 'package.module:function', got {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"run {name!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise InputError(f"run {name!r} is a {type(found).__name__}, not a function of (folder, resume)")
    loaded: RunFunction = found
    return loaded


class _Chaos:
    """The runs of one report."""

    def __init__(self, run: RunFunction, base: Path, seed: int, notice: Callable[[str, int], None]) -> None:
        self.run, self.base, self.notice = run, base, notice
        self.random = random.Random(seed)
        self.folders = 0
        self.lasting = True
        self.report = ChaosReport([])

    def go(self, kills: int, faults: int, wanted: Collection[str]) -> ChaosReport:
        started = time.perf_counter()
        self.reference = self._undisturbed()
        clock = time.perf_counter()
        again = self._undisturbed()
        self.duration = time.perf_counter() - clock
        if self.reference.result != again.result:
            raise InputError("the run does not repeat bit for bit when nobody disturbs it: fix its seeds")
        inside, outside, *rest = TROUBLES
        if inside in wanted:
            self._kills(inside, kills // 2, inside=True)
        if outside in wanted:
            self._kills(outside, kills - kills // 2, inside=False)
        makers: list[Callable[[], str | None]] = [
            lambda: self._fault("full"),
            lambda: self._fault("read-only"),
            lambda: self._fault("rename"),
            lambda: self._fault("sync"),
            self._size_limit,
            self._no_permission,
            self._two_writers,
            self._damaged,
        ]
        for what, make in zip(rest, makers, strict=True):
            if what in wanted:
                self._repeat(what, faults, make)
        self.report.seconds = time.perf_counter() - started
        return self.report

    # -- the troubles; each returns what went wrong, or None if it could not be made ------------------

    def _kills(self, what: str, wanted: int, *, inside: bool) -> None:
        """Kill runs until `wanted` kills came, a few in each folder, and resume each to its end."""
        tally = self._tally(what)
        misses = 0
        while tally.tried < wanted and misses < 20 + 10 * wanted:
            with self._folder() as folder:
                committed = -1
                for turn in range(self.random.randint(1, 4)):
                    outcome = self._struck(folder, turn, inside)
                    if not outcome.killed:
                        misses += 1
                        break
                    tally.tried += 1
                    wrong, committed = self._look(folder, committed)
                    if wrong:
                        tally.violations.append(wrong)
                    self.notice(what, tally.tried)
                    if wrong or tally.tried >= wanted:
                        break
                wrong = self._ends_equal(folder)
                if wrong and len(tally.violations) < tally.tried:
                    tally.violations.append(wrong)
        if tally.tried < wanted:
            tally.violations.append(f"only {tally.tried} of {wanted} kills came in time")

    def _struck(self, folder: Path, turn: int, inside: bool) -> Outcome:
        """An attempt that is killed, unless it ends before."""
        if inside and self.reference.places:  # none if only compiled code writes
            return Attempt(self.run, folder, True, Disk(folder, "kill", self._point(turn))).wait()
        attempt = Attempt(self.run, folder, True)
        time.sleep(self.random.uniform(0.0, self.duration / (1 + turn)))
        attempt.send(signal.SIGKILL)
        return attempt.wait()

    def _point(self, turn: int) -> int:
        """A point at which to kill: as often in the middle of a write as before or after an operation."""
        places = self.reference.places
        if turn > 0:  # a resumed run has fewer points left
            places = places[: max(3, len(places) // 3)]
        place = self.random.choice(sorted(set(places)))
        return self.random.choice([index for index, name in enumerate(places, 1) if name == place])

    def _fault(self, kind: Kind) -> str | None:
        """An operation fails: once, or with every other of its kind after it."""
        count = (self.reference.operations or {}).get(BEFALLS[kind], 0)
        if count == 0:
            return None
        with self._folder() as folder:
            at = self.random.randint(1, count)
            # once, so that a later failure cannot make good for one that was hidden; then lasting
            self.lasting = not self.lasting
            outcome = Attempt(self.run, folder, True, Disk(folder, kind, at, self.lasting)).wait()
            if not outcome.struck:
                return None
            return self._refused(outcome, folder)

    def _size_limit(self) -> str | None:
        """The kernel itself refuses to let files grow beyond a share of a checkpoint."""
        import resource

        with self._folder() as folder:
            size = self._half_way(folder)
            if size is None:
                return None
            limit = int(size * self.random.uniform(0.0, 0.95))

            def prepare() -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            return self._refused(Attempt(self.run, folder, True, prepare=prepare).wait(), folder)

    def _no_permission(self) -> str | None:
        """The folder may be read, not written; root's child becomes nobody first."""
        with self._folder() as folder:
            if self._half_way(folder) is None:
                return None
            for path in (folder, *folder.rglob("*")):
                os.chmod(path, 0o555 if path.is_dir() else 0o444)

            def prepare() -> None:
                if os.geteuid() == 0:
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)

            outcome = Attempt(self.run, folder, True, prepare=prepare).wait()
            for path in (folder, *folder.rglob("*")):
                os.chmod(path, 0o755 if path.is_dir() else 0o644)
            return self._refused(outcome, folder)

    def _two_writers(self) -> str | None:
        """A second run in the folder of a living one is refused, and does not disturb it."""
        with self._folder() as folder:
            first = Attempt(self.run, folder, True)
            deadline = time.perf_counter() + 30
            while not (folder / CHECKPOINT).exists() and time.perf_counter() < deadline:
                time.sleep(0.001)
            first.send(signal.SIGSTOP)
            second = Attempt(self.run, folder, True).wait()
            left = (folder / CHECKPOINT).stat().st_mtime_ns if (folder / CHECKPOINT).exists() else 0
            first.send(signal.SIGCONT)
            outcome = first.wait()
            if not second.error:
                after = (folder / CHECKPOINT).stat().st_mtime_ns if (folder / CHECKPOINT).exists() else 0
                # if the first writes nothing more it was done when it was stopped: one writer only
                return "a second writer was let in" if after != left or outcome.error else None
            if outcome.result != self.reference.result:
                return f"the first writer was disturbed: {outcome.error or 'its weights differ'}"
            return ""

    def _damaged(self) -> str | None:
        """A checkpoint that lost its end, or one bit, is never taken for a whole one."""
        with self._folder() as folder:
            if self._half_way(folder) is None:
                return None
            path = folder / CHECKPOINT
            content = bytearray(path.read_bytes())
            if self.random.random() < 0.5:
                content = content[: self.random.randrange(len(content))]
            else:
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            path.write_bytes(content)
            outcome = Attempt(self.run, folder, True).wait()
            if outcome.error or outcome.result == self.reference.result:
                return ""  # refused, or the bit was white space in the header
            return "a damaged checkpoint was taken for a whole one"

    # -- what must hold -------------------------------------------------------------------------------

    def _refused(self, outcome: Outcome, folder: Path) -> str:
        """A run that could not save must say so, leave whole files, and go on when it can."""
        if outcome.killed:
            return "the run died instead of raising an error"
        if not outcome.error:
            return "a failed save reported success"
        wrong, _ = self._look(folder, -1)
        return wrong or self._ends_equal(folder)

    def _ends_equal(self, folder: Path) -> str:
        """Resumed to its end, the run leaves the bits of the undisturbed one."""
        outcome = Attempt(self.run, folder, True).wait()
        self.report.resumed += 1
        if outcome.error or outcome.killed:
            return f"the run could not be resumed: {outcome.error or 'it died'}"
        return "" if outcome.result == self.reference.result else "the resumed run ended with other bits"

    def _look(self, folder: Path, committed: int) -> tuple[str, int]:
        """Every file with a finished name is whole, and the checkpoint never goes back."""
        for path in sorted(folder.rglob("*")):
            if path.name.startswith(".") or not path.is_file():
                continue
            self.report.files += 1
            try:
                if path.suffix == ".safetensors":
                    state = load_state(path)
                    if path.name == CHECKPOINT and isinstance(state, dict) and "position" in state:
                        step, best = state["position"]["step"], state["position"]["best_epoch"]
                        if step < committed:
                            return f"the checkpoint went back from step {committed} to {step}", committed
                        committed = step
                        if best is not None and not (folder / f"best-{best:05d}.safetensors").exists():
                            return f"the weights of the best epoch {best} are missing", committed
                elif path.suffix == ".csv":
                    rows = list(csv.reader(path.read_text("utf-8").splitlines()))
                    if not rows or any(len(row) != len(rows[0]) for row in rows):
                        return f"{path.name} is half-written", committed
                elif path.suffix == ".json":
                    json.loads(path.read_text("utf-8"))
            except (CheckpointError, ValueError, OSError) as error:
                return f"{path.name} is half-written: {error}", committed
        return "", committed

    def _undisturbed(self) -> Outcome:
        with self._folder() as folder:
            outcome = Attempt(self.run, folder, False).wait()
        if outcome.killed or outcome.error:
            raise InputError(f"the run fails when nobody disturbs it: {outcome.error or 'it died'}")
        return outcome

    def _half_way(self, folder: Path) -> int | None:
        """Leave a folder as a kill in the middle of a run leaves it; the checkpoint's size."""
        for _ in range(20):
            # in the middle third, so that a resumed run has checkpoints to write
            third = max(1, len(self.reference.places) // 3)
            at = self.random.randint(third, 2 * third)
            Attempt(self.run, folder, True, Disk(folder, "kill", at)).wait()
            if (folder / CHECKPOINT).exists():
                return (folder / CHECKPOINT).stat().st_size
        return None

    def _repeat(self, what: str, times: int, trouble: Callable[[], str | None]) -> None:
        tally = self._tally(what)
        for _ in range(times):
            wrong = trouble()
            if wrong is not None:
                tally.tried += 1
                if wrong:
                    tally.violations.append(wrong)
            self.notice(what, tally.tried)

    def _tally(self, what: str) -> Tally:
        tally = Tally(what)
        self.report.tallies.append(tally)
        return tally

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """A new folder for one run, removed after it."""
        self.folders += 1
        path = self.base / f"run-{self.folders:05d}"
        path.mkdir()
        try:
            yield path
        finally:
            os.chmod(path, stat.S_IRWXU)
            shutil.rmtree(path, ignore_errors=True)


def run_chaos(
    name: str | None,
    *,
    kills: int,
    faults: int,
    seed: int,
    folder: str | None,
    as_json: bool,
) -> bool:
    """What `manyhead chaos` does: disturb, print the counts; whether every promise held."""
    run = None if name is None else load_run(name)
    shown = sys.stderr.isatty()

    def notice(what: str, done: int) -> None:  # no bar with a thread of its own: it would be forked
        if shown:
            sys.stderr.write(f"\r{what}: {done}".ljust(60))
            sys.stderr.flush()

    report = chaos(run, kills=kills, faults=faults, seed=seed, folder=folder, notice=notice)
    if shown:
        sys.stderr.write("\r".ljust(62) + "\r")
    print_report(report, as_json=as_json)
    return not report.violations
