"""Processes in a ring: passing tensors on, exchanging them, and noticing a lost neighbour.

The same interface runs over `torch.distributed` (gloo on CPU, NCCL on GPU) and over threads of one
process, which makes every distributed algorithm testable without processes.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class LostPeer(ConnectionError):
    """Another process of the ring has ended or does not answer."""


class Ring:
    """One process of a ring; this one is alone.

    `sent` counts the bytes that the process has sent.
    """

    rank: int = 0
    size: int = 1
    sent: int = 0

    def shift(self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> Callable[[], list[Tensor]]:
        """Begin to pass tensors to the next process, and return what waits for those of the one before.

        Args:
            tensors: what to send.
            shapes: shapes of what is received.
        """
        return lambda: list(tensors)

    def exchange(self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send one tensor to every process and receive one from each.

        Args:
            tensors: one for every process, by rank.
            shapes: shapes of what each of them sends.
        """
        return [tensors[0]]


class ProcessRing(Ring):
    """The processes of a `torch.distributed` group.

    Args:
        group: the group; the default one if left out.
        timeout: seconds to wait for a neighbour.
    """

    def __init__(self, group: Any = None, timeout: float = 30.0) -> None:
        self.group, self.timeout = group, timedelta(seconds=timeout)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = 0

    def _peer(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def _finish(self, work: Sequence[Any], what: str) -> None:
        for request in work:
            try:
                request.wait(self.timeout)
            except Exception as error:  # gloo and NCCL raise their own kinds
                raise LostPeer(
                    f"process {self.rank} of {self.size} lost a neighbour while it {what}: ended, or "
                    f"without answer for {self.timeout.total_seconds():g} s ({type(error).__name__})"
                ) from error

    def _start(
        self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]], what: str
    ) -> Any:
        operations = [dist.P2POp(dist.isend, x, self._peer(to), self.group) for to, x in sends]
        operations += [dist.P2POp(dist.irecv, x, self._peer(by), self.group) for by, x in receives]
        self.sent += sum(x.numel() * x.element_size() for _, x in sends)
        if not operations:
            return []
        try:
            return dist.batch_isend_irecv(operations)
        except RuntimeError as error:
            raise LostPeer(
                f"process {self.rank} of {self.size} lost a neighbour before it {what}: {error}"
            ) from error

    def shift(self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> Callable[[], list[Tensor]]:
        if self.size == 1:
            return lambda: list(tensors)
        received = [x.new_empty(tuple(shape)) for x, shape in zip(tensors, shapes, strict=True)]
        kept = [x.contiguous() for x in tensors]  # alive until they are sent
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        work = self._start([(after, x) for x in kept], [(before, x) for x in received], "passed tensors on")

        def wait() -> list[Tensor]:
            self._finish(work, "passed tensors on")
            kept.clear()
            return received

        return wait

    def exchange(self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        received = [tensors[0].new_empty(tuple(shape)) for shape in shapes]
        others = [rank for rank in range(self.size) if rank != self.rank]
        kept = [x.contiguous() for x in tensors]
        work = self._start(
            [(rank, kept[rank]) for rank in others], [(rank, received[rank]) for rank in others], "exchanged"
        )
        received[self.rank] = kept[self.rank]
        self._finish(work, "exchanged tensors")
        return received


class ThreadRing(Ring):
    """One of several threads of this process, for tests and demonstrations without processes."""

    def __init__(
        self, rank: int, mail: list[list["queue.Queue[list[Tensor]]"]], timeout: float = 60.0
    ) -> None:
        self.rank, self.size, self.mail, self.timeout, self.sent = rank, len(mail), mail, timeout, 0

    def _send(self, to: int, tensors: Sequence[Tensor]) -> None:
        self.sent += sum(x.numel() * x.element_size() for x in tensors)
        self.mail[self.rank][to].put([x.detach().clone() for x in tensors])

    def _receive(self, by: int) -> list[Tensor]:
        try:
            return self.mail[by][self.rank].get(timeout=self.timeout)
        except queue.Empty:
            raise LostPeer(f"thread {self.rank} waited {self.timeout:g} s for thread {by}") from None

    def shift(self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> Callable[[], list[Tensor]]:
        if self.size == 1:
            return lambda: list(tensors)
        self._send((self.rank + 1) % self.size, tensors)
        return lambda: self._receive((self.rank - 1) % self.size)

    def exchange(self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        for rank, x in enumerate(tensors):
            if rank != self.rank:
                self._send(rank, [x])
        return [x if rank == self.rank else self._receive(rank)[0] for rank, x in enumerate(tensors)]


def in_threads(size: int, work: Callable[[Ring], T]) -> list[T]:
    """Run the same work on every member of a ring of threads, and return what each gives, by rank.

    Raises:
        BaseException: the first that a member raised.
    """
    mail: list[list[queue.Queue[list[Tensor]]]] = [[queue.Queue() for _ in range(size)] for _ in range(size)]
    results: list[Any] = [None] * size
    failures: list[BaseException] = []

    def member(rank: int) -> None:
        try:
            results[rank] = work(ThreadRing(rank, mail))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def default_ring(group: Any = None) -> Ring:
    """The ring of a process group, or a ring of one where none has been set up."""
    if dist.is_available() and dist.is_initialized():
        return ProcessRing(group)
    return Ring()


def sum_gradients(parameters: Sequence[torch.nn.Parameter], ring: Ring) -> None:
    """Add up parameter gradients over the ring: each process contributes those of its tokens."""
    for parameter in parameters:
        if parameter.grad is not None and ring.size > 1:
            parts = ring.exchange([parameter.grad] * ring.size, [parameter.shape] * ring.size)
            parameter.grad = torch.stack(parts).sum(0)
