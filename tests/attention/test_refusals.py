"""Bad calls: every refusal names the argument, what came and what is accepted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from manyhead.attention import RelativeBias, attend, merge, parse_bytes, plan
from manyhead.errors import InputError
from manyhead.grid import as_grid, to_lattices
from manyhead.kernels.ring import ring_attend
from manyhead.kernels.shards import positions
from manyhead.kernels.unfused import neighborhood_av, neighborhood_qk
from manyhead.mixers.block import BlockAttention
from manyhead.mixers.channel import ChannelGroupAttention
from manyhead.mixers.halo import HaloAttention
from manyhead.mixers.neighborhood import NeighborhoodAttention
from manyhead.networks.davit import davit
from manyhead.networks.halonet import halonet
from manyhead.networks.maxvit import maxvit
from manyhead.pattern import (
    Blocks,
    Causal,
    Chosen,
    Explicit,
    GridPartition,
    Halo,
    PerHead,
    PerSample,
    Prefix,
    Shifted,
    Valid,
    Window,
)
from manyhead.pattern.simulator import simulate


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


CALLS: list[tuple[Callable[[], Any], str]] = [
    # the pattern by itself
    (lambda: Window(1), "size takes whole numbers from 2.*got 1"),
    (lambda: Window(3, stride=4), "stride must be at most.*3; got 4"),
    (lambda: Window(3, stride=0), "stride takes whole numbers from 1, got 0"),
    (lambda: Window(3, dilation=0), "dilation takes whole numbers from 1, got 0"),
    (lambda: Window((3, 3), (1, 1, 1)), "different numbers of axes"),
    (lambda: Window(3, border="mirror"), "border is one of shift, pad, valid, wrap, got 'mirror'"),  # type: ignore[arg-type]
    (lambda: Window(3, 2, border="valid"), "'valid' takes stride 1, got 2"),
    (lambda: Window(3, causal=1), "causal takes True or False"),  # type: ignore[arg-type]
    (lambda: Window(-1, stride=1, dilation=2), "whole axis .* dilation 1"),
    (lambda: Blocks(0), "size takes whole numbers from 1"),
    (lambda: Halo(2, -1), "halo takes whole numbers from 0, got -1"),
    (lambda: Shifted(4, 2, "shift"), "'pad' or 'wrap', got 'shift'"),  # type: ignore[arg-type]
    (lambda: Prefix(0), "length takes whole numbers from 1"),
    (lambda: Explicit(x(3, 3)), "Booleans .* got torch.float32"),
    (lambda: Valid(()), "one length per sample, got none"),
    (lambda: Valid((3, -1)), "at or above zero"),
    (lambda: PerHead(()), "PerHead takes one pattern each"),
    (lambda: PerHead((PerHead((Causal(),)),)), "each for one head"),
    (lambda: Chosen(Window(3), ()), "at least one query, got none"),
    (lambda: Window(3) & 3, "patterns combine with patterns, got int"),  # type: ignore[operator]
    (lambda: Valid((3, 3)) & Valid((3, 3, 3)), "for 2 and for 3 samples"),
    # the pattern on a grid
    (lambda: Window(9).mask(8), "at least 9 tokens; axis 0 has 8"),
    (lambda: Window(3, dilation=3).mask(8), "at least 9 tokens"),
    (lambda: Window((3, 3)).mask(8), "size has 2 values .* 1 axes"),
    (lambda: Window(3, dilation=2, border="wrap").mask(9), "multiple of the dilation 2; axis 0 has 9"),
    (lambda: Causal().mask((3,), (4,)), r"one grid, got \(3,\) and \(4,\)"),
    (lambda: GridPartition(9).mask(8), "lattice of 9 points does not fit axis 0 of 8"),
    (lambda: Prefix(9).mask(8), "prefix of 9 tokens is longer than the 8 keys"),
    (lambda: Explicit(x(3, 3).bool()).mask(4), "does not fit 4 queries and 4 keys"),
    (lambda: Valid((5,)).mask(4), "length .5,. of sample 0 is above"),
    (lambda: Chosen(Causal(), (9,)).mask((1,), (4,)), "position 9 is not among the 4"),
    (lambda: PerSample((Causal(),)).mask((0,)), "sizes above zero"),
    (lambda: as_grid(2.5), "sizes above zero.*got 2.5"),  # type: ignore[arg-type]
    (lambda: simulate(16, Window(4), 0, 4), "at least one token per axis"),
    (lambda: simulate(16, Window(4, border="wrap"), 4, 4), "border 'shift', got 'wrap'"),
    # attend
    (lambda: attend(x(1, 8, 4), x(1, 8, 4), x(1, 8, 4)), r"q has the shape .* got \(1, 8, 4\)"),
    (lambda: attend(x(1, 8, 2, 4), x(1, 8, 2, 3), x(1, 8, 2, 4)), "one head_dim, got 4 and 3"),
    (lambda: attend(x(1, 8, 3, 4), x(1, 8, 2, 4), x(1, 8, 2, 4)), "multiple of those of k, got 3 and 2"),
    (lambda: attend(x(2, 8, 2, 4), x(1, 8, 2, 4), x(1, 8, 2, 4)), "one batch size, got 2, 1 and 1"),
    (lambda: attend(x(1, 8, 2, 4), x(1, 8, 2, 4), x(1, 7, 2, 4)), "one grid and as many heads"),
    (
        lambda: attend(x(1, 8, 2, 4), x(1, 8, 2, 4, dtype=torch.float64), x(1, 8, 2, 4)),
        "one dtype, got torch.float32, torch.float64",
    ),
    (lambda: attend(*[x(1, 8, 2, 4, dtype=torch.int64)] * 3), "floating-point numbers, got torch.int64"),
    (
        lambda: attend(x(1, 8, 2, 4), *[torch.empty(1, 8, 2, 4, device="meta")] * 2),
        "one device, got cpu, meta and meta",
    ),
    (lambda: attend(*[x(1, 0, 2, 4)] * 3), "q is empty"),
    (lambda: attend([1.0], *[x(1, 8, 2, 4)] * 2), "q takes a tensor .* got list"),  # type: ignore[arg-type]
    (lambda: attend(*[x(1, 8, 2, 4)] * 3, 7), "pattern takes a Pattern .* got int"),  # type: ignore[arg-type]
    (lambda: attend(*[x(1, 8, 2, 4)] * 3, kernel="magic"), "kernel is 'auto' or one of .* got 'magic'"),
    (
        lambda: attend(*[x(1, 8, 2, 4)] * 3, Window(3), kernel="blocks"),
        "cannot run this: the pattern does not cut",
    ),
    (lambda: attend(*[x(1, 8, 2, 4)] * 3, kernel="flex"), "no backward pass on cpu"),
    (lambda: attend(*[x(1, 8, 2, 4)] * 3, bias=x(3, 8, 8)), r"broadcasts to \(1, 2, 8, 8\), got \(3, 8, 8\)"),
    (
        lambda: attend(*[x(1, 8, 2, 4)] * 3, bias=RelativeBias(x(2, 4))),
        r"odd length on 1 grid axes, got the shape \(2, 4\)",
    ),
    (
        lambda: attend(*[x(1, 8, 2, 4)] * 3, bias=RelativeBias(x(2, 5), 0)),
        "dilation takes a number from 1.*got 0",
    ),
    (
        lambda: attend(*[x(1, 8, 2, 4)] * 3, bias=RelativeBias(x(2, 5, dtype=torch.float64))),
        "bias has the dtype and device of q, got torch.float64",
    ),
    (lambda: attend(*[x(1, 8, 2, 4)] * 3, PerHead((Causal(),) * 3)), "for 3 heads, q has 2"),
    (lambda: attend(*[x(1, 8, 2, 4)] * 3, Valid((3, 4))), "for 2 samples, the batch has 1"),
    (lambda: attend(*[x(1, 8, 2, 4)] * 3, additional_keys=x(1, 3, 2, 4)), "given together"),
    (
        lambda: attend(*[x(1, 8, 2, 4)] * 3, additional_keys=x(1, 3, 1, 4), additional_values=x(1, 3, 2, 4)),
        "additional_keys has the shape",
    ),
    (lambda: plan(*[x(1, 8, 2, 4)] * 3, Window(9)), "at least 9 tokens"),
    (lambda: merge([], []), "at least one"),
    (lambda: merge([x(2, 3)], [x(3)]), "without its last axis"),
    (lambda: parse_bytes("many"), "amount such as '200MB'"),
    # the primitives, rings and mixers
    (lambda: neighborhood_qk(x(1, 2, 8, 4), x(1, 2, 7, 4), Window(3)), "one shape"),
    (
        lambda: neighborhood_qk(x(1, 2, 8, 4), x(1, 2, 8, 4), Window(3), x(2, 4)),
        r"rpb has the shape \(2, 5\)",
    ),
    (lambda: neighborhood_qk(*[x(1, 2, 8, 4)] * 2, Window(3, causal=True), x(2, 5)), "not causal"),
    (lambda: neighborhood_qk(*[x(1, 2, 8, 4)] * 2, Window(3, border="pad")), "inside the grid, got 'pad'"),
    (lambda: neighborhood_av(x(1, 2, 8, 4), x(1, 2, 8, 4), Window(3)), r"\(1, 2, 8, 3\), got \(1, 2, 8, 4\)"),
    (lambda: ring_attend(*[x(1, 8, 2)] * 3), r"\(batch, tokens, heads, head_dim\), got"),
    (lambda: ring_attend(*[x(1, 8, 2, 4)] * 3, grid=9), "holds 9 tokens of .* got 8"),
    (
        lambda: ring_attend(*[x(1, 8, 2, 4)] * 3, engine="torch-cp"),
        "CUDA only, its attention has no kernel for cpu",
    ),
    (
        lambda: ring_attend(*[x(1, 8, 2, 4).requires_grad_()] * 3, engine="torch-cp"),
        "gives no gradients: PyTorch's context has to span",
    ),
    (lambda: ring_attend(*[x(1, 8, 2, 4)] * 3, engine="ring-flash-attn"), "CUDA only"),
    (lambda: ring_attend(*[x(1, 8, 2, 4)] * 3, engine="fast"), "engine is .* got 'fast'"),  # type: ignore[arg-type]
    (lambda: positions(3, 4), "3 tokens cannot be spread over 4"),
    (lambda: positions(8, 2, "random"), "layout is one of .* got 'random'"),  # type: ignore[arg-type]
    (lambda: NeighborhoodAttention(10, 3, Window(3)), "heads must divide the 10 channels, got 3"),
    (lambda: NeighborhoodAttention(8, 2, Causal(), relative=True), "takes a Window"),
    (lambda: BlockAttention(8, 2, 3, padding="refuse")(x(1, 4, 4, 8)), "no multiple of the block"),
    (lambda: BlockAttention(8, 2, 3)(x(1, 9, 8)), "2 grid axes"),
    (lambda: to_lattices(x(1, 5, 5, 2), (2, 2)), "multiple of it on axis 0, got 5"),
    (lambda: ChannelGroupAttention(8, 3), "must divide the 8 channels"),
    (lambda: ChannelGroupAttention(8, 2, scale="none"), "'channels' or 'tokens', got 'none'"),  # type: ignore[arg-type]
    (lambda: HaloAttention(8, 3, 4, 1), "must divide the 8 output channels, got 3"),
    (lambda: HaloAttention(8, 2, 0, 1), "block is at least 1"),
    (lambda: HaloAttention(8, 2, 4, 1)(x(1, 8, 8)), "height, width, channels"),
    (lambda: HaloAttention(8, 2, 4, 1)(x(1, 8, 8, 8), x(1, 8, 8, 8)), "takes no context"),
    (lambda: maxvit("huge"), "size is one of tiny"),
    (lambda: davit(attention=("window",)), "names 'spatial' and 'channel'"),  # type: ignore[arg-type]
    (lambda: halonet("h9"), "size is one of h0"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_a_bad_call_is_refused_in_words(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
