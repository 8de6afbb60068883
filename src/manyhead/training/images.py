"""Train a small image classifier for a demonstration: AdamW, one accuracy on held-out images."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def batches(number: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of shuffled batches, the last one dropped if it is short."""
    order = torch.randperm(number, generator=generator)
    yield from order[: number // size * size].split(size)


def fit_classifier(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Train by cross-entropy with AdamW at a constant rate.

    Args:
        network: maps images `(batch, channels, height, width)` to logits.
        images: `(samples, channels, height, width)`.
        labels: `(samples,)`.
        epochs: passes over the data.
        batch: images per step.
        rate: learning rate.
        seed: of the order of samples.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    network.train()
    for _ in range(epochs):
        for index in batches(len(images), batch, generator):
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
        Images `(n, 1, side, side)` in 0 to 1 and labels, of training and of test.
    """
    from manyhead.data import load

    found = load("mnist_10k")
    x = torch.as_tensor(found["image"]).float()[:, None] / 255.0
    y = torch.as_tensor(found["label"]).long()
    edge = (side - x.shape[-1]) // 2
    x = torch.nn.functional.pad(x, [edge] * 4)
    return x[:train], y[:train], x[-test:], y[-test:]
