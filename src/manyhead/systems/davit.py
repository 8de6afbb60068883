"""DaViT: attention over tokens in windows, then over channels in groups.

Ding et al., 'DaViT: Dual Attention Vision Transformers', 2022, arXiv 2204.03645.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manyhead.mixers.base import Mixer
from manyhead.mixers.block import BlockAttention
from manyhead.mixers.channel import ChannelGroupAttention
from manyhead.mixers.neighborhood import split_heads
from manyhead.networks.davit import DualBlock
from manyhead.networks.pyramid import PatchEmbedding
from manyhead.system import Measurement, System
from manyhead.training.images import accuracy, digits, fit_classifier


class Dual(nn.Module):
    """8 x 8 patches of a digit, learned positions, four half blocks without position convolutions.

    Args:
        order: kind of each, 'S' over tokens in 2 x 2 windows or 'C' over channels in 3 groups.
        channels: width.
    """

    def __init__(self, order: str, channels: int = 48) -> None:
        super().__init__()
        self.stem = PatchEmbedding(1, channels, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(8, 8, channels))
        blocks = []
        for kind in order:
            mixer: Mixer = (
                BlockAttention(channels, 3, 2) if kind == "S" else ChannelGroupAttention(channels, 3)
            )
            blocks.append(DualBlock(mixer, channels, positions=False))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 10))

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.stem(image.movedim(1, -1)) + self.positions)
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits


def _seconds(run: Callable[[], object]) -> float:
    run()
    found = []
    for _ in range(5):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return median(found)


def _speed(seed: int) -> Measurement:
    """Channel attention against fused dense attention, 4,096 tokens of 96 channels."""
    torch.manual_seed(seed)
    layer, x = ChannelGroupAttention(96, 3), torch.randn(1, 4096, 96)

    def dense() -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in split_heads(layer.qkv(x), 3))
        out: Tensor = layer.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    with torch.no_grad():
        slow, fast = _seconds(dense), _seconds(lambda: layer(x))
    what = "time of channel attention against fused dense attention, 4,096 tokens"
    return Measurement(what, "linear in the tokens", slow, fast, slow >= 5 * fast, "lower", "s")


def demo(seed: int, budget: float) -> list[Measurement]:
    """Spatial only, channel only and both in turn, on digits; then the cost."""
    x, y, test_x, test_y = digits(8000, 2000)
    scores = {}
    for order in ("SSSS", "CCCC", "SCSC"):
        torch.manual_seed(seed)
        network = Dual(order)
        fit_classifier(network, x, y, seen=max(320, int(150 * budget)), seed=seed)
        scores[order] = accuracy(network, test_x, test_y)
    return [
        Measurement(
            "accuracy, both in turn against windows only",
            "removing either kind costs more than 1 point",
            scores["SSSS"],
            scores["SCSC"],
            scores["SCSC"] >= scores["SSSS"] + 0.5,
            "higher",
            "%",
        ),
        Measurement(
            "accuracy, both in turn against channels only",
            "removing either kind costs more than 1 point",
            scores["CCCC"],
            scores["SCSC"],
            scores["SCSC"] >= scores["CCCC"] - 0.3,
            "higher",
            "%",
        ),
        _speed(seed),
    ]


SYSTEM = System(
    slug="davit",
    title="DaViT: Dual Attention Vision Transformers",
    year=2022,
    arxiv="2204.03645",
    claim="Windows over tokens and groups over channels complement each other at linear cost.",
    demo=demo,
    budget=100.0,
    notes="""
Measured on handwritten digits, without position convolutions, so that tokens mix by attention only.

A network sees 150 images for each second of the budget, in batches of 16, in passes over 8,000.

The released code computes `softmax(K^T V)` applied to `Q` where the paper writes `softmax(Q^T K)` applied to
`V`: the same function with renamed weights. `naming="code"` (the default) takes released weights,
`naming="paper"` the paper's letters. The scale `c ** -0.5` does not fit sums over all tokens, whose logits
grow with the resolution; `scale="tokens"` is the option for training at several resolutions. Padding of
windows takes part as tokens whose queries, keys and values are the bias, as in the released code.

The named sizes have 28.4, 49.7, 88.0 and 196.8 million parameters (paper: 28.3, 49.7, 87.9, 196.8).
""",
)
