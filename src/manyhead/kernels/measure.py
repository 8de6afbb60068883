"""Measuring what a call costs: time, and the most memory that the allocator held at a time."""

import os
import time
from collections.abc import Callable
from statistics import median

import torch


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that a call allocates at a time, beyond what was there before, on the CPU.

    Read from the allocator's events, those inside of operators included.
    """
    # the profiler's library announces each start and stop on the terminal unless told otherwise
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    run()  # caches and thread pools are not the call's own
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        kept = run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    del kept
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds(
    run: Callable[[], object],
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    join: Callable[[list[float]], float] = median,
) -> float:
    """Time of a call after one to warm up, the median of some unless `join` says otherwise."""
    run()
    found = []
    for _ in range(repeats):
        start = clock()
        run()
        found.append(clock() - start)
    return join(found)
