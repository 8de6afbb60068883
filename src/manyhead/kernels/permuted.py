"""Blocked attention after a token permutation: every tile of the grid becomes a run of tokens.

Hassani et al., 'Generalized Neighborhood Attention', 2025, arXiv 2504.16922: axes are padded to
multiples of tile times dilation, tokens reordered so that each multi-dimensional tile is contiguous,
and each query tile visits only the key tiles that its windows touch. It shows what the simulator
counts; `attend` has its own tiles.
"""

import itertools
import math

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
    place = torch.arange(math.prod(grid), device=q.device).reshape(1, *grid, 1, 1) + 1  # 0 is padding
    at_query, at_key = (_permute(place, dilation, tile)[:, 0, ..., 0, 0] - 1 for tile in (rows, columns))
    mask = window.mask(grid, device=q.device)
    out = torch.zeros_like(queries)
    visited = 0
    for group, tiles in enumerate(_visits(window, grid, rows, columns, all_tiles)):
        by_number: dict[int, list[int]] = {}
        for tile, visits in enumerate(tiles):
            if visits:
                by_number.setdefault(len(visits), []).append(tile)
        for number, members in by_number.items():
            visited += number * len(members)
            chosen = torch.tensor([tiles[tile] for tile in members], device=q.device)  # (members, visits)
            mine = torch.tensor(members, device=q.device)
            query = queries[group][:, mine].movedim(-2, 2).flatten(0, 2)  # (B * members * H, tokens, D)
            key, value = (
                x[group][:, chosen].flatten(2, 3).movedim(-2, 2).flatten(0, 2) for x in (keys, values)
            )
            rows_at = at_query[group][mine]
            columns_at = at_key[group][chosen].flatten(1)
            seen = mask[rows_at.clamp(min=0)[:, :, None], columns_at.clamp(min=0)[:, None, :]]
            seen = seen & (columns_at >= 0)[:, None, :]
            hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, HIDDEN)
            logits = (query @ key.transpose(1, 2)).unflatten(0, (batch, len(members), heads))
            weights = (logits + hidden[None, :, None]).softmax(-1).flatten(0, 2)
            part = (weights @ value).unflatten(0, (batch, len(members), heads)).movedim(2, -2)
            out[group, :, mine] = part
    lengths = [-(-n // d) for n, d in zip(grid, dilation, strict=True)]
    counts = [-(-n // t) for n, t in zip(lengths, rows, strict=True)]
    out = out.flatten(0, 1).reshape(-1, *counts, *rows, heads, v.shape[-1])
    out = from_blocks(out, lengths).reshape(math.prod(dilation), batch, *lengths, heads, v.shape[-1])
    out = out.movedim(0, 1).reshape(batch, *dilation, *lengths, heads, v.shape[-1])
    return from_residues(out, grid), visited
