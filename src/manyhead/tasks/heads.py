"""Heads that most tasks need: a linear map, a small perceptron, pooling before either."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from manyhead.errors import InputError


class LinearHead(nn.Linear):
    """Map channels to outputs at every token.

    Args:
        channels: size of the last axis of the representation.
        outputs: size of the prediction's last axis; None for one number without that axis.

    Shape:
        `(..., channels)` to `(..., outputs)`, or `(...)` for `outputs=None`.
    """

    def __init__(self, channels: int, outputs: int | None = None, bias: bool = True) -> None:
        super().__init__(channels, 1 if outputs is None else outputs, bias)
        self.squeeze = outputs is None

    def forward(self, x: Tensor) -> Tensor:
        """The prediction at every token."""
        prediction = super().forward(x)
        return prediction.squeeze(-1) if self.squeeze else prediction


class PerceptronHead(nn.Module):
    """A linear map after one hidden layer.

    Args:
        channels: size of the last axis of the representation.
        hidden: width of the hidden layer.
        outputs: as in `LinearHead`.
        dropout: share of hidden units dropped while training.

    Shape:
        as in `LinearHead`.
    """

    def __init__(self, channels: int, hidden: int, outputs: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(dropout), LinearHead(hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The prediction at every token."""
        prediction: Tensor = self.layers(x)
        return prediction


class PooledHead(nn.Module):
    """One prediction a sample: pool the grid's tokens, then apply a head.

    Args:
        head: what reads the pooled channels.
        how: 'mean', 'max', or 'first' (a class token at the start of a sequence).

    Shape:
        `(batch, *grid, channels)` to the head's output for `(batch, channels)`.

    Raises:
        InputError: if `how` is unknown.
    """

    def __init__(self, head: nn.Module, how: str = "mean") -> None:
        super().__init__()
        if how not in ("mean", "max", "first"):
            raise InputError(f"how must be 'mean', 'max' or 'first', got {how!r}")
        self.head = head
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """The prediction for every sample."""
        tokens = x.flatten(1, -2)  # (batch, tokens, channels)
        if self.how == "mean":
            pooled = tokens.mean(1)
        elif self.how == "max":
            pooled = tokens.amax(1)
        else:
            pooled = tokens[:, 0]
        prediction: Tensor = self.head(pooled)
        return prediction


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights that make every class count alike in a cross-entropy.

    Args:
        labels: integers, any shape; negative ones (missing) are ignored.
        classes: number of classes.

    Returns:
        weights `(classes,)` with a mean of 1 over the labelled entries; 0 for a class that is absent.
    """
    counts = torch.bincount(labels[labels >= 0].flatten(), minlength=classes).to(torch.get_default_dtype())
    present = counts > 0
    weights = torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)
    return weights


__all__: Sequence[str] = ["LinearHead", "PerceptronHead", "PooledHead", "class_weights"]
