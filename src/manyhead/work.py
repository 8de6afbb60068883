"""Independent pieces of work, each resumable on its own, over local processes or a Ray cluster.

A piece of work writes its own result atomically and can tell whether it is done; this module only decides
which pieces run where. A worker that dies is replaced, and the pieces that it had not finished run again.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import socket
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from manyhead.errors import InputError, optional

Item = TypeVar("Item", bound=Hashable)

# how often a piece may take its worker down with it before we give up on it
ATTEMPTS = 3


@dataclass
class Board(Generic[Item]):
    """What the progress display shows: which pieces wait, run, are done."""

    total: int
    started: dict[Item, float] = field(default_factory=dict)
    finished: list[tuple[Item, float, str]] = field(default_factory=list)


def run_items(
    work: Callable[[Item], str | None],
    items: Sequence[Item],
    *,
    workers: int = 1,
    ray: str | None = None,
    title: str = "work",
    progress: bool = True,
    threads: int = 1,
) -> None:
    """Run `work(item)` for every item.

    Args:
        work: a picklable function; it stores its own result and may return a line for the display.
        items: picklable and hashable descriptions, in the order in which they should start.
        workers: local processes; 1 runs in this process.
        ray: address of a Ray cluster ('local' starts one here), in place of local processes.
        title: heading of the display.
        progress: show a live table on a terminal.
        threads: torch threads of each worker, fixed so that results do not depend on `workers`.

    Raises:
        InputError: if `workers` or `threads` is below one, or Ray cannot be reached.
        RuntimeError: if a piece kills its worker three times.
        Exception: whatever `work` raises, after the other running pieces have ended.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    if not items:
        return
    board: Board[Item] = Board(len(items))
    with _display(board, title, progress) as refresh:
        if ray is not None:
            _over_ray(work, items, ray, threads, board, refresh)
        elif workers == 1:
            _here(work, items, threads, board, refresh)
        else:
            _over_processes(work, items, workers, threads, board, refresh)


def _here(
    work: Callable[[Item], str | None],
    items: Sequence[Item],
    threads: int,
    board: Board[Item],
    refresh: Callable[[], None],
) -> None:
    with torch_threads(threads):
        for item in items:
            board.started[item] = perf_counter()
            refresh()
            _note(board, item, work(item))
            refresh()


@contextmanager
def torch_threads(count: int = 1) -> Iterator[None]:
    """Compute with so many torch threads: the bits of a matrix product depend on their number.

    Also a decorator. What is to give the bits of a piece of work elsewhere takes that work's number.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _start_worker(threads: int) -> None:
    """Prepare a local process, which ends when its parent does, however that one was killed.

    A worker left behind would go on writing into the folder that a continued run works in.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow(sentinel: int) -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=follow, args=(parent.sentinel,), daemon=True).start()
    _set_threads(threads)


def _context(work: Callable[[Item], str | None]) -> multiprocessing.context.BaseContext:
    """How worker processes are started: never forked from this one, whose threads could deadlock them.

    Where the system can, they are forked from a server that has imported the work's module and run nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    function = work.func if isinstance(work, partial) else work
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", function.__module__])
    return context


def _over_processes(
    work: Callable[[Item], str | None],
    items: Sequence[Item],
    workers: int,
    threads: int,
    board: Board[Item],
    refresh: Callable[[], None],
) -> None:
    """Keep `workers` processes busy; a broken pool is replaced and its pieces are handed out again."""
    waiting = list(items)
    attempts: dict[Item, int] = dict.fromkeys(items, 0)
    context = _context(work)
    while waiting:
        broken = False
        with ProcessPoolExecutor(
            min(workers, len(waiting)), mp_context=context, initializer=_start_worker, initargs=(threads,)
        ) as pool:
            running: dict[Future[str | None], Item] = {}
            while waiting or running:
                while waiting and len(running) < workers and not broken:
                    item = waiting.pop(0)
                    attempts[item] += 1
                    if attempts[item] > ATTEMPTS:
                        raise RuntimeError(f"{item} ended its worker process {ATTEMPTS} times")
                    board.started[item] = perf_counter()
                    running[pool.submit(work, item)] = item
                refresh()
                if not running:
                    break
                ready, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ready:
                    item = running.pop(future)
                    try:
                        _note(board, item, future.result())
                    except BrokenProcessPool:
                        broken = True
                        board.started.pop(item, None)
                        waiting.insert(0, item)
            refresh()


def _over_ray(
    work: Callable[[Item], str | None],
    items: Sequence[Item],
    address: str,
    threads: int,
    board: Board[Item],
    refresh: Callable[[], None],
) -> None:
    """Hand every piece to Ray, which restarts those whose worker or node is lost."""
    ray: Any = optional("ray", "cluster")
    own = not ray.is_initialized()
    if own:
        _answers(address)
        try:
            ray.init(
                address=None if address == "local" else address,
                log_to_driver=False,
                include_dashboard=False if address == "local" else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as fault:
            raise InputError(f"cannot reach a Ray cluster at {address!r}: {fault}") from None

    def remote(item: Any) -> str | None:
        _set_threads(threads)
        return work(item)

    try:
        task = ray.remote(num_cpus=threads, max_retries=ATTEMPTS, scheduling_strategy="SPREAD")(remote)
        running = {task.remote(item): item for item in items}
        for item in items:
            board.started[item] = perf_counter()
        while running:
            refresh()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            for reference in ready:
                item = running.pop(reference)
                try:
                    line = ray.get(reference)
                except ray.exceptions.RayTaskError:
                    raise  # what `work` raised
                except ray.exceptions.RayError as lost:
                    raise RuntimeError(
                        f"{item} was lost with the part of the cluster that ran it: {lost}"
                    ) from None
                _note(board, item, line)
    finally:
        if own:
            ray.shutdown()


def _answers(address: str) -> None:
    """Refuse HOST:PORT at once where nothing listens: Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not (separator and port.isdigit()):
        return  # 'local' or 'auto'
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as fault:
        raise InputError(f"cannot reach a Ray cluster at {address!r}: {fault}") from None


def _note(board: Board[Item], item: Item, line: str | None) -> None:
    board.finished.append((item, perf_counter() - board.started.pop(item), line or ""))


@contextmanager
def _display(board: Board[Item], title: str, wanted: bool) -> Iterator[Callable[[], None]]:
    """Show a bar and one line for each running and each of the latest finished pieces."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda: None
        return
    bar = Progress(TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    task = bar.add_task(title, total=board.total)

    def picture() -> Group:
        table = Table("piece", "seconds", "result", box=None)
        for item, seconds, line in board.finished[-8:]:
            table.add_row(str(item), f"{seconds:.0f}", line)
        now = perf_counter()
        for item, since in board.started.items():
            table.add_row(f"[bold]{item}[/bold]", f"{now - since:.0f}", "running")
        return Group(table, bar)

    with Live(picture(), console=console, refresh_per_second=4) as live:

        def refresh() -> None:
            bar.update(task, completed=len(board.finished))
            live.update(picture())

        yield refresh
        refresh()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
