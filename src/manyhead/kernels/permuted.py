"""Blocked attention after a token permutation: every tile of the grid becomes a run of tokens.

Hassani et al., 'Generalized Neighborhood Attention', 2025, arXiv 2504.16922: axes are padded to
multiples of tile times dilation, tokens reordered so that each multi-dimensional tile is contiguous,
and each query tile visits only the key tiles that its windows touch, without a mask where all of them
are full. It shows what the simulator counts; `attend` has its own tiles.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from manyhead.grid import Grid, from_blocks, from_residues, per_axis, to_blocks, to_residues
from manyhead.pattern.window import Window

HIDDEN = -1e30


def _permute(x: Tensor, dilation: tuple[int, ...], tile: tuple[int, ...]) -> Tensor:
    """`(B, *grid, H, D)` to `(classes, B, tiles, tokens, H, D)`."""
    axes = len(tile)
    x = to_residues(x, dilation)  # (B, *dilation, *lengths, H, D)
    x = x.flatten(1, axes).movedim(1, 0)
    classes, batch = x.shape[:2]
    blocks = to_blocks(x.flatten(0, 1), tile)
    blocks = blocks.flatten(1 + axes, 2 * axes).flatten(1, axes)
    return blocks.reshape(classes, batch, *blocks.shape[1:])


def _visits(
    window: Window, grid: Grid, query_tile: tuple[int, ...], key_tile: tuple[int, ...], everything: bool
) -> list[list[list[int]]]:
    """Key tiles that each query tile visits, by residue class and query tile, in row-major order."""
    axes = window.axes(len(grid))
    reach = window.reach(grid, grid)
    per_class: list[list[list[list[int]]]] = []  # axis, class, query tile -> key tiles
    for axis, spec, q, k in zip(reach, axes, query_tile, key_tile, strict=True):
        d, longest = spec.dilation, -(-axis.keys // spec.dilation)
        found = []
        for group in range(d):
            rows = np.arange(group, axis.queries, d)
            low = axis.start[rows] // d
            high = low + axis.count[rows]
            tiles = []
            for first in range(0, longest, q):
                part = slice(first, first + q)
                if everything:
                    tiles.append(list(range(-(-longest // k))))
                elif len(low[part]):
                    tiles.append(list(range(int(low[part].min()) // k, -(-int(high[part].max()) // k))))
                else:
                    tiles.append([])  # only padding
            found.append(tiles)
        per_class.append(found)
    lengths = [-(-n // spec.dilation) for n, spec in zip(grid, axes, strict=True)]
    key_tiles = [-(-n // k) for n, k in zip(lengths, key_tile, strict=True)]
    result = []
    for chosen in itertools.product(*(range(spec.dilation) for spec in axes)):
        rows_of = [classes[g] for classes, g in zip(per_class, chosen, strict=True)]
        result.append(
            [
                [int(np.ravel_multi_index(at, key_tiles)) for at in itertools.product(*choice)]
                for choice in itertools.product(*rows_of)
            ]
        )
    return result


@dataclass(frozen=True, eq=False)
class Visit:
    """Query tiles of one residue class that visit equally many key tiles.

    Args:
        group: the residue class.
        queries: numbers of the query tiles, `(members,)`.
        keys: numbers of the key tiles of each, `(members, visits)`.
        hidden: masked pairs `(members, query tokens, key tokens)`, or None where all tiles are full.
    """

    group: int
    queries: Tensor
    keys: Tensor
    hidden: Tensor | None


@lru_cache(maxsize=8)
def _schedule(
    window: Window, grid: Grid, query_tile: tuple[int, ...], key_tile: tuple[int, ...], everything: bool
) -> tuple[list[Visit], int]:
    """What is computed for a window on a grid, made once, and the number of pairs of tiles."""
    dilation = tuple(axis.dilation for axis in window.axes(len(grid)))
    place = torch.arange(math.prod(grid)).reshape(1, *grid, 1, 1) + 1  # 0 is padding
    at_query, at_key = (
        _permute(place, dilation, tile)[:, 0, ..., 0, 0] - 1 for tile in (query_tile, key_tile)
    )
    mask = window.mask(grid)
    found, visited = [], 0
    for group, tiles in enumerate(_visits(window, grid, query_tile, key_tile, everything)):
        by_number: dict[int, list[int]] = {}
        for tile, visits in enumerate(tiles):
            if visits:
                by_number.setdefault(len(visits), []).append(tile)
        for number, members in by_number.items():
            visited += number * len(members)
            keys = torch.tensor([tiles[tile] for tile in members])
            queries = torch.tensor(members)
            rows, columns = at_query[group][queries], at_key[group][keys].flatten(1)
            seen = mask[rows.clamp(min=0)[:, :, None], columns.clamp(min=0)[:, None, :]]
            seen = seen & (columns >= 0)[:, None, :]
            found.append(Visit(group, queries, keys, None if bool(seen.all()) else ~seen))
    return found, visited


def permuted_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    query_tile: int | tuple[int, ...],
    key_tile: int | tuple[int, ...],
    *,
    scale: float | None = None,
    all_tiles: bool = False,
) -> tuple[Tensor, int]:
    """Window attention by tiles of a permuted grid, which says how many tiles it visited.

    Args:
        q: `(B, *grid, H, D)`.
        k: likewise.
        v: likewise.
        window: a window whose border is not 'wrap' or 'valid'.
        query_tile: queries per tile and axis.
        key_tile: keys per tile and axis.
        scale: factor on the logits.
        all_tiles: visit every key tile, as the same code would without the pattern.

    Returns:
        The output `(B, *grid, H, D)`, and the number of pairs of tiles visited.
    """
    grid: Grid = tuple(q.shape[1:-2])
    window.check(grid, grid)
    axes, batch, heads = len(grid), q.shape[0], q.shape[-2]
    rows, columns = per_axis(query_tile, axes, "query_tile"), per_axis(key_tile, axes, "key_tile")
    dilation = tuple(axis.dilation for axis in window.axes(axes))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys, values = (
        _permute(q * scale, dilation, rows),
        _permute(k, dilation, columns),
        _permute(v, dilation, columns),
    )
    schedule, visited = _schedule(window, grid, rows, columns, all_tiles)
    out = torch.zeros_like(queries)
    for visit in schedule:
        mine, chosen = visit.queries.to(q.device), visit.keys.to(q.device)
        query = queries[visit.group][:, mine].movedim(-2, 2)  # (B, members, H, tokens, D)
        key, value = (x[visit.group][:, chosen].flatten(2, 3).movedim(-2, 2) for x in (keys, values))
        logits = query @ key.transpose(-1, -2)
        if visit.hidden is not None:
            logits = logits.masked_fill(visit.hidden.to(q.device)[None, :, None], HIDDEN)
        out[visit.group, :, mine] = (logits.softmax(-1) @ value).movedim(2, -2)
    lengths = [-(-n // d) for n, d in zip(grid, dilation, strict=True)]
    counts = [-(-n // t) for n, t in zip(lengths, rows, strict=True)]
    out = out.flatten(0, 1).reshape(-1, *counts, *rows, heads, v.shape[-1])
    out = from_blocks(out, lengths).reshape(math.prod(dilation), batch, *lengths, heads, v.shape[-1])
    out = out.movedim(0, 1).reshape(batch, *dilation, *lengths, heads, v.shape[-1])
    return from_residues(out, grid), visited
