"""How one sequence is spread over processes: layouts, shards, and who has how much work.

Li et al., 'Sequence Parallelism', 2021, arXiv 2105.13120; the zig-zag and striped layouts balance
causal attention. Tokens of a grid are counted in row-major order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.grid import Table, as_grid, coordinates
from manyhead.pattern import Pattern
from manyhead.pattern.base import Place

Layout = Literal["contiguous", "zigzag", "striped"]


def positions(tokens: int, processes: int, layout: Layout = "zigzag") -> list[Table]:
    """Flat positions of the tokens of every process.

    Args:
        tokens: length of the sequence; it need not divide evenly.
        processes: number of processes.
        layout: 'contiguous' chunks; 'zigzag', of `2 N` chunks the `r`-th and the `r`-th from the end;
            'striped', every `N`-th token.

    Raises:
        InputError: if there are fewer tokens than processes, or the layout is unknown.
    """
    if processes < 1 or tokens < processes:
        raise InputError(f"{tokens} tokens cannot be spread over {processes} processes")
    if layout not in get_args(Layout):
        raise InputError(f"layout is one of {', '.join(get_args(Layout))}, got {layout!r}")
    everything = np.arange(tokens)
    if layout == "striped":
        return [everything[rank::processes] for rank in range(processes)]
    if layout == "contiguous":
        return list(np.array_split(everything, processes))
    chunks = np.array_split(everything, 2 * processes)
    return [np.concatenate([chunks[r], chunks[2 * processes - 1 - r]]) for r in range(processes)]


def shard(x: Tensor, rank: int, processes: int, layout: Layout = "zigzag", axis: int = 1) -> Tensor:
    """The tokens of one process: works for tokens, labels and position ids alike."""
    mine = torch.as_tensor(positions(x.shape[axis], processes, layout)[rank], device=x.device)
    return x.index_select(axis, mine)


def unshard(parts: Sequence[Tensor], layout: Layout = "zigzag", axis: int = 1) -> Tensor:
    """Put the shards of all processes back in order."""
    tokens = sum(part.shape[axis] for part in parts)
    order = np.concatenate(positions(tokens, len(parts), layout))
    back = torch.as_tensor(np.argsort(order), device=parts[0].device)
    return torch.cat(list(parts), axis).index_select(axis, back)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Pairs computed by each process at each step of the ring.

    Args:
        pairs: `(processes, steps)`; at step `i` process `r` has the keys of process `(r - i) mod N`.
    """

    pairs: Table

    @property
    def work(self) -> Table:
        """Pairs of every process."""
        return np.asarray(self.pairs.sum(1))

    @property
    def imbalance(self) -> float:
        """The most work of a process over the mean."""
        return float(self.work.max() / max(self.work.mean(), 1e-30))

    def describe(self) -> str:
        """The schedule as a table in text."""
        processes, steps = self.pairs.shape
        lines = [f"{processes} processes, {steps} steps, most work over mean work {self.imbalance:.3f}"]
        for rank in range(processes):
            parts = [
                f"{count} with {(rank - i) % processes}" for i, count in enumerate(self.pairs[rank]) if count
            ]
            lines.append(f"process {rank}: {', '.join(parts) or 'nothing'}")
        return "\n".join(lines)


def schedule(
    pattern: Pattern, grid: int | Sequence[int], processes: int, layout: Layout = "zigzag"
) -> Schedule:
    """Count the pairs of every process and step.

    A 1-D box pattern is counted from where its windows begin and end, any other in strips of its mask.

    Args:
        pattern: who sees whom; the same for all samples and heads.
        grid: grid of the tokens.
        processes: number of processes.
        layout: of the tokens over processes.
    """
    sizes = as_grid(grid)
    pattern.check(sizes, sizes)
    tokens = int(np.prod(sizes))
    spread = positions(tokens, processes, layout)
    owner = np.empty(tokens, np.int64)
    for rank, mine in enumerate(spread):
        owner[mine] = rank
    pairs = np.zeros((processes, processes), np.int64)  # process, owner of the keys
    reach = pattern.reach(sizes, sizes)
    for rank, mine in enumerate(spread):
        if reach is not None and len(reach) == 1 and reach[0].step == 1 and not reach[0].wrap:
            low = reach[0].start[mine]
            high = low + reach[0].count[mine]
            for source in range(processes):
                before = np.concatenate([[0], np.cumsum(owner == source)])
                pairs[rank, source] = int((before[high] - before[low]).sum())
            continue
        key = tuple(axis[None] for axis in coordinates(torch.arange(tokens), sizes))
        strip = max(1, (1 << 22) // tokens)
        for first in range(0, len(mine), strip):
            rows = torch.as_tensor(mine[first : first + strip])
            query = tuple(axis[:, None] for axis in coordinates(rows, sizes))
            seen = pattern.sees(query, key, Place(sizes, sizes)).expand(len(rows), tokens).sum(0).numpy()
            pairs[rank] += np.bincount(owner, seen, processes).astype(np.int64)
    steps = np.stack([[pairs[r, (r - i) % processes] for i in range(processes)] for r in range(processes)])
    return Schedule(steps)
