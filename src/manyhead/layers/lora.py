"""Low-rank adaptation: a frozen linear map plus a trained product of two thin matrices.

Hu et al., 'LoRA', 2021, arXiv 2106.09685: `W x + (alpha / rank) B A x` with B zero at first. With embeddings
and norms trained as well as in LongLoRA (Chen et al., 2023, arXiv 2309.12307); another rate for B as in LoRA+
(Hayou et al., 2024, arXiv 2402.12354).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, pad

from manyhead.errors import InputError

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoRALinear(nn.Module):
    """A linear map that learns by a low-rank term.

    Args:
        base: the map; it is used and frozen, not copied.
        rank: columns of B.
        alpha: the term is multiplied by `alpha / rank`.
        rate: dropout on the term's input.
        rows: outputs that the term is for, as a slice; all if left out.

    Shape:
        `(..., in_features)` to `(..., out_features)`.

    Raises:
        InputError: if the rank is below one or the rows lie outside.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int = 8,
        alpha: float = 16.0,
        rate: float = 0.0,
        rows: slice | None = None,
    ) -> None:
        super().__init__()
        start, stop, step = (rows or slice(None)).indices(base.out_features)
        if rank < 1 or step != 1 or start >= stop:
            raise InputError(
                f"rank is at least 1 and rows a range of {base.out_features}, got {rank}, {rows}"
            )
        self.base, self.scale, self.rate = base.requires_grad_(False), alpha / rank, rate
        self.rows = start, stop
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(stop - start, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        """The matrix with the term added, for code that reads it."""
        return self.base.weight + self.term()

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def term(self) -> Tensor:
        """`(alpha / rank) B A` at its rows, `(out_features, in_features)`."""
        start, stop = self.rows
        return pad(self.scale * self.lora_b @ self.lora_a, (0, 0, start, self.out_features - stop))

    def forward(self, x: Tensor) -> Tensor:
        start, stop = self.rows
        term = linear(linear(dropout(x, self.rate, self.training), self.lora_a), self.scale * self.lora_b)
        out: Tensor = self.base(x) + pad(term, (start, self.out_features - stop))
        return out

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base map with the term added to its weights, in place, and trainable again."""
        self.base.weight += self.term()
        return self.base.requires_grad_(True)


def add_lora(
    network: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    rate: float = 0.0,
    targets: tuple[str, ...] = ATTENTION,
    trainable: tuple[str, ...] = ("embed", "norm"),
    rows: dict[str, slice] | None = None,
) -> list[str]:
    """Freeze a network but for low-rank terms, and for parameters with a part of `trainable` in their name.

    Args:
        network: changed in place.
        rank, alpha, rate: as of `LoRALinear`.
        targets: names of the linear maps that get a term, wherever they stand.
        trainable: which other parameters are trained; () is plain LoRA.
        rows: outputs that a target's term is for, by its name.

    Returns:
        Names of all parameters that are trained now.

    Raises:
        InputError: if no linear map has such a name.
    """
    network.requires_grad_(False)
    found = [
        (parent, name, child)
        for parent in network.modules()
        if not isinstance(parent, LoRALinear)
        for name, child in parent.named_children()
        if name in targets and isinstance(child, nn.Linear)
    ]
    if not found:
        raise InputError(f"no linear map of the network is called {' or '.join(targets)}")
    for parent, name, child in found:
        setattr(parent, name, LoRALinear(child, rank, alpha, rate, (rows or {}).get(name)))
    for name, parameter in network.named_parameters():
        if any(part in name for part in trainable):
            parameter.requires_grad_(True)
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def merge_lora(network: nn.Module) -> None:
    """Put plain linear maps with the terms added in the place of adapted ones; all parameters train again."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
    network.requires_grad_(True)


def lora_groups(network: nn.Module, rate: float, ratio: float = 16.0) -> list[dict[str, Any]]:
    """Parameter groups with the rate of B matrices `ratio` times that of all others (LoRA+)."""

    def chosen(of_b: bool) -> Iterator[nn.Parameter]:
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and name.endswith("lora_b") == of_b:
                yield parameter

    return [
        {"params": list(chosen(False)), "lr": rate},
        {"params": list(chosen(True)), "lr": rate * ratio},
    ]
