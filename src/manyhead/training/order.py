"""The order of samples in an epoch: a function of seed and epoch alone.

Nothing about the order needs to be saved. A resumed run computes the order of its epoch again and goes
on at the batch where it was killed.
"""

from collections.abc import Callable, Mapping, Sequence

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


def mixed_tasks(labelled: Mapping[str, Tensor], batch_size: int, temperature: float = 1.0) -> Order:
    """Every batch holds labels of every task, for tasks whose samples differ in kind and number.

    Each task has its own shuffled stream of the samples that carry its label, begun anew when it ends; a
    batch takes from every stream in a fixed share. A balancer with one weight a task by position (FAMO,
    DWA, Nash-MTL ...) then always sees all tasks. Temperature as in Arivazhagan et al., 'Massively
    Multilingual Neural Machine Translation in the Wild', 2019, arXiv 1907.05019, section 4.2.

    Args:
        labelled: task name -> boolean `(samples,)`, True where a sample has a label for it.
        batch_size: the `batch_size` of the run, at least one sample a task.
        temperature: shares follow the number of labels to the power of `1 / temperature`: 1 keeps the
            data's proportions, infinity gives every task the same.

    Raises:
        InputError: if a task has no label, a batch has no room for all, or the temperature is not above
            zero; when the epoch starts, if the number of samples differs.
    """
    held = {
        name: torch.as_tensor(there, dtype=torch.bool).nonzero().flatten() for name, there in labelled.items()
    }
    sizes = {name: len(torch.as_tensor(there)) for name, there in labelled.items()}
    for name, rows in held.items():
        if len(rows) == 0:
            raise InputError(f"labelled[{name!r}] is False everywhere: the task has no sample")
    if not held or batch_size < len(held):
        raise InputError(
            f"batch_size must be at least the number of tasks, {len(held)}, with at least one; "
            f"got {batch_size}"
        )
    if not temperature > 0:
        raise InputError(f"temperature must be above zero, got {temperature}")
    weight = torch.tensor([len(rows) for rows in held.values()], dtype=torch.float64) ** (1 / temperature)
    quota = _shares(weight / weight.sum(), batch_size)

    def order(samples: int, epoch: int, seed: int) -> Tensor:
        for name, size in sizes.items():
            if size != samples:
                raise InputError(
                    f"labelled[{name!r}] must have one entry for each of {samples} samples, got {size}"
                )
        generator = _generator(seed, epoch)
        count = -(-samples // batch_size)  # batches of an epoch
        columns = []
        for rows, taken in zip(held.values(), quota, strict=True):
            rounds = -(-count * taken // len(rows))
            stream = torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)])
            columns.append(stream[: count * taken].reshape(count, taken))
        return torch.cat(columns, 1).flatten()

    return order


def _shares(share: Tensor, size: int) -> list[int]:
    """Whole numbers that add up to `size`, at least one each, by largest remainders."""
    wanted = share * (size - len(share))
    whole = wanted.floor()
    rest = int(size - len(share) - whole.sum())
    extra = torch.zeros_like(whole)
    extra[torch.argsort(wanted - whole, descending=True, stable=True)[:rest]] = 1
    return [1 + int(count) for count in whole + extra]


def batches(order: Tensor, size: int, *, drop_last: bool = False) -> list[Tensor]:
    """Cut an epoch's order into batches of `size` indices; the last may be smaller, or left out."""
    parts = list(torch.split(order, size))
    if drop_last and len(parts) > 1 and len(parts[-1]) < size:
        parts.pop()
    return parts
