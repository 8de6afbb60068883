"""Train a small image classifier for a demonstration by AdamW, and judge it on held-out images."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def batches(number: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of shuffled batches, the last one dropped if it is short."""
    order = torch.randperm(number, generator=generator)
    yield from order[: number // size * size].split(size)


def _stream(number: int, size: int, generator: torch.Generator, steps: int) -> Iterator[Tensor]:
    """So many batches, over as many passes as they take."""
    passes = (index for _ in itertools.count() for index in batches(number, size, generator))
    yield from itertools.islice(passes, steps)


def fit_classifier(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    seen: int,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train by cross-entropy with AdamW at a rate that rises for a twentieth of the steps and falls to zero.

    Args:
        network: maps images `(batch, channels, height, width)` to logits.
        images: `(samples, channels, height, width)`.
        labels: `(samples,)`.
        seen: images of all steps together; above the number of images they come again, in a new order.
        batch: images per step.
        rate: highest learning rate.
        seed: of the order of samples.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    steps = max(1, seen // batch)
    warm = max(1, steps // 20)
    network.train()
    for step, index in enumerate(_stream(len(images), batch, generator, steps)):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        loss = cross_entropy(network(images[index]), labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 250) -> float:
    """Share of images classified right, in percent."""
    network.eval()
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    right = sum(int((network(x).argmax(-1) == y).sum()) for x, y in parts)
    return 100.0 * right / len(images)


def digits(train: int, test: int, side: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Handwritten digits, zero-padded to `side`: the first `train` of 8,000 and the last `test` of 2,000.

    Returns:
        Images `(n, 1, side, side)`, standardised, and labels, of training and of test.
    """
    from manyhead.data import load

    found = load("mnist_10k")
    x = torch.as_tensor(found["image"]).float()[:, None] / 255.0
    y = torch.as_tensor(found["label"]).long()
    edge = (side - x.shape[-1]) // 2
    x = (torch.nn.functional.pad(x, [edge] * 4) - 0.1) / 0.3
    return x[:train], y[:train], x[-test:], y[-test:]
