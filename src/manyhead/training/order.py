"""The order of samples in an epoch: a function of seed and epoch alone.

Nothing about the order needs to be saved. A resumed run computes the order of its epoch again and goes
on at the batch where it was killed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from manyhead.errors import InputError

# (samples, epoch, seed) -> indices of one epoch, (n,) int64
Order = Callable[[int, int, int], Tensor]


def _generator(seed: int, epoch: int) -> torch.Generator:
    # odd multiplier: distinct (seed, epoch) pairs of ordinary size give distinct streams
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + epoch) % 2**63)


def shuffled(samples: int, epoch: int, seed: int) -> Tensor:
    """Every sample once, in an order drawn anew each epoch."""
    return torch.randperm(samples, generator=_generator(seed, epoch))


def sequential(samples: int, epoch: int, seed: int) -> Tensor:
    """Every sample once, in the order of the data set."""
    return torch.arange(samples)


def weighted(weights: Tensor | Sequence[float], draws: int | None = None) -> Order:
    """Samples drawn with replacement, each as often as its weight says.

    Args:
        weights: one for each sample, finite, not negative, not all zero.
        draws: samples an epoch; as many as there are if left out.

    Raises:
        InputError: if the weights cannot be used; when the epoch starts, if their number is wrong.
    """
    chance = torch.as_tensor(weights, dtype=torch.float64)
    if chance.ndim != 1 or not torch.isfinite(chance).all() or (chance < 0).any() or chance.sum() == 0:
        raise InputError("weights must be one finite number, not negative, for each sample, not all zero")

    def order(samples: int, epoch: int, seed: int) -> Tensor:
        if len(chance) != samples:
            raise InputError(f"weights must hold one number for each of {samples} samples, got {len(chance)}")
        return torch.multinomial(
            chance, draws or samples, replacement=True, generator=_generator(seed, epoch)
        )

    return order


def grouped(groups: Tensor | Sequence[int]) -> Order:
    """Samples of a group (a day, a bag, a sequence length) stay together; the groups are shuffled.

    Args:
        groups: the group of each sample.
    """
    labels = torch.as_tensor(groups)

    def order(samples: int, epoch: int, seed: int) -> Tensor:
        if len(labels) != samples:
            raise InputError(f"groups must hold one label for each of {samples} samples, got {len(labels)}")
        generator = _generator(seed, epoch)
        shuffle = torch.randperm(samples, generator=generator)
        _, member = torch.unique(labels, return_inverse=True)
        place = torch.randperm(int(member.max()) + 1, generator=generator)
        return shuffle[torch.argsort(place[member[shuffle]], stable=True)]

    return order


def batches(order: Tensor, size: int, *, drop_last: bool = False) -> list[Tensor]:
    """Cut an epoch's order into batches of `size` indices; the last may be smaller, or left out."""
    parts = list(torch.split(order, size))
    if drop_last and len(parts) > 1 and len(parts[-1]) < size:
        parts.pop()
    return parts
