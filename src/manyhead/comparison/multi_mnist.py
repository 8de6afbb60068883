"""MultiMNIST for the comparison: two digits on a canvas, read by convolutions and two layers of attention."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.comparison.taskset import Score, TaskSet
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.layer import FeedForward, Layer
from manyhead.tasks import LinearHead, MultiTask, Task

CHANNELS, TOKENS, CLASSES = 32, 36, 10
# the published radius of 2 with adaptive steps keeps this network at chance on validation of the tuning seed
FLAT = {"rho": 0.05, "adaptive": False}
# budget -> canvases to learn from, to choose on, to report
SIZES = {"tiny": (600, 300, 600), "small": (2000, 600, 1600), "large": (12000, 3000, 6000)}


class Tokens(nn.Module):
    """Channels first to tokens that know where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(TOKENS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, height, width)` to `(batch, height * width, channels)`."""
        return x.flatten(2).mT + self.position


def build(names: Sequence[str]) -> MultiTask:
    """Two strided convolutions, two transformer layers of four heads on 6 x 6 tokens, a small head a task."""
    from torchmetrics.classification import MulticlassAccuracy

    def layer() -> Layer:
        feed_forward = FeedForward(CHANNELS, 2 * CHANNELS)
        return Layer(CHANNELS, MultiHeadAttention(CHANNELS, 4), feed_forward)

    children: dict[str, nn.Module] = {
        "convolution 1": nn.Conv2d(1, 16, 5, stride=2),
        "gate 1": nn.ReLU(),
        "convolution 2": nn.Conv2d(16, CHANNELS, 5, stride=2),
        "gate 2": nn.ReLU(),
        "tokens": Tokens(),
        "attention 1": layer(),
        "attention 2": layer(),
        "norm": nn.LayerNorm(CHANNELS),
    }
    network = nn.Sequential(OrderedDict(children))

    def head() -> nn.Module:
        return nn.Sequential(
            nn.Linear(CHANNELS, 16), nn.GELU(), nn.Flatten(), LinearHead(16 * TOKENS, CLASSES)
        )

    return MultiTask(
        network,
        [
            Task(name, head(), cross_entropy, {"accuracy": MulticlassAccuracy(CLASSES, average="micro")})
            for name in names
        ],
    )


def tasks(seed: int, budget: str) -> TaskSet:
    """The two digits as two tasks; no digit is in two parts."""
    from manyhead.data.multi_mnist import multi_mnist

    train, validation, test = multi_mnist(*SIZES.get(budget, SIZES["small"]), seed=seed)
    score = Score("accuracy", "higher")
    return TaskSet(build, train, validation, test, {"first": score, "second": score}, options={"flat": FLAT})
