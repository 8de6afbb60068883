"""HaloNet: blocks of queries that share a window with a halo.

Vaswani et al., 'Scaling Local Self-Attention for Parameter Efficient Visual Backbones', 2021, arXiv
2103.12731.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from manyhead.layers.convolution import ChannelsFirst
from manyhead.mixers.halo import HaloAttention
from manyhead.system import Measurement, System
from manyhead.training.images import accuracy, digits, fit_classifier


class LocalBlock(nn.Module):
    """A residual block of batch norm, ReLU and one spatial layer, on maps with channels last."""

    def __init__(self, channels: int, halo: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.spatial: nn.Module
        if halo is None:
            self.spatial = ChannelsFirst(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        else:
            self.spatial = HaloAttention(channels, 4, 2, halo)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.norm(x.movedim(-1, 1))).movedim(1, -1)
        out: Tensor = x + self.spatial(y)
        return out


class LocalNetwork(nn.Module):
    """2 x 2 patches of a digit, four local blocks, a mean and a classifier."""

    def __init__(self, halo: int | None, channels: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 2, 2)
        self.blocks = nn.Sequential(*(LocalBlock(channels, halo) for _ in range(layers)))
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.stem(image).movedim(1, -1))
        logits: Tensor = self.head(relu(x).mean((1, 2)))
        return logits


def demo(seed: int, budget: float) -> list[Measurement]:
    """Halo 0, 1 and 3 and a convolution of the same width, on digits."""
    x, y, test_x, test_y = digits(8000, 2000, side=28)
    scores: dict[int | None, float] = {}
    spatial: dict[int | None, int] = {}
    for halo in (0, 1, 3, None):
        torch.manual_seed(seed)
        network = LocalNetwork(halo)
        fit_classifier(network, x, y, seen=max(320, int(60 * budget)), rate=5e-3, seed=seed)
        scores[halo] = accuracy(network, test_x, test_y)
        spatial[halo] = sum(p.numel() for name, p in network.named_parameters() if ".spatial." in name)
    return [
        Measurement(
            "accuracy, halo 3 against halo 0",
            "a halo is what lets blocks talk",
            scores[0],
            scores[3],
            scores[3] >= scores[0] + 2.0,
            "higher",
            "%",
        ),
        Measurement(
            "accuracy, halo 1 against halo 0",
            "between halo 0 and halo 3, or equal to 3",
            scores[0],
            scores[1],
            scores[0] <= scores[1],
            "higher",
            "%",
        ),
        Measurement(
            "accuracy, halo 3 against 3x3 convolutions",
            "at par at equal parameters",
            scores[None],
            scores[3],
            scores[3] >= scores[None] - 1.5,
            "higher",
            "%",
        ),
        Measurement(
            "parameters of the spatial layers, halo 3 over convolution",
            "independent of the window but for the position tables",
            None,
            spatial[3] / spatial[None],
            spatial[3] <= 0.6 * spatial[None],
            "lower",
        ),
    ]


SYSTEM = System(
    slug="halonet",
    title="Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
    year=2021,
    arxiv="2103.12731",
    claim="Block attention with a halo matches convolutions, with fewer parameters for a wider view.",
    demo=demo,
    budget=100.0,
    notes="""
Measured on handwritten digits.

A network sees 60 images for each second of the budget, in batches of 16, once each as far as 8,000 reach:
less training than the card's four or five passes over 10,000 images.

There is no official code. Positions outside the image are masked by default (`pad="mask"`);
`pad="attend"` reproduces timm, where zero keys and values take part in the softmax. With stride, distances
are measured from the query's own place; `stride_relative="sampled"` reproduces timm, which measures them
from its place in the down-sampled block. The public transcription by lucidrains inverts its padding mask;
ours equals the corrected one.

The named sizes H0 to H7 have the paper's parameter counts (5.5, 8.1, 9.4, 11.8, 19.1, 30.7, 43.4 and 67.4
million) when queries and keys are as wide as the stage, `width / heads` channels per head; with 16 channels
per head they are 1.6 to 2.9 million smaller.
""",
)
