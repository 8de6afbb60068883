"""Small MaxViT, DaViT and HaloNet beside a plain ViT and a plain convolutional net on CIFAR-10.

`python benchmarks/pyramids.py [--minutes 3] [--seeds 0,1,2] [--networks ViT,DaViT] [--json FILE]` trains
every network for the same processor time, one thread, on `cifar10_12k`, at about equal parameters.
`python benchmarks/pyramids.py --join FILE... [--json FILE] [--page FILE]` makes one table of several such
runs.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.data import load
from manyhead.demonstration import BY_HAND, machine, parse_seeds
from manyhead.files import write_text
from manyhead.layers.convolution import ChannelsFirst
from manyhead.mixers.neighborhood import NeighborhoodAttention
from manyhead.networks.davit import davit
from manyhead.networks.halonet import halonet
from manyhead.networks.maxvit import maxvit
from manyhead.networks.pyramid import PatchEmbedding, Pyramid, Residual, parameters
from manyhead.pattern import Everything
from manyhead.system import interval
from manyhead.training.images import accuracy, batches

BATCH = 64


class Positions(nn.Module):
    """Learned positions of 8 x 8 tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(8, 8, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


def vit(channels: int = 80, layers: int = 5) -> Pyramid:
    """A plain transformer on 4 x 4 patches."""
    blocks = [Residual(NeighborhoodAttention(channels, 4, Everything()), channels) for _ in range(layers)]
    stem = nn.Sequential(PatchEmbedding(3, channels, 4, 4), Positions(channels))
    return Pyramid(
        stem, [nn.Sequential(*blocks)], nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 10))
    )


def convolutions(widths: tuple[int, ...] = (40, 80, 144)) -> Pyramid:
    """Two 3x3 convolutions with batch norm per stage, halved between."""
    stages, before = [], 3
    for number, width in enumerate(widths):
        layers: list[nn.Module] = []
        for index in range(2):
            stride = 2 if number and index == 0 else 1
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        stages.append(ChannelsFirst(nn.Sequential(*layers)))
    return Pyramid(nn.Identity(), stages, nn.Linear(before, 10))


def halo_network() -> Pyramid:
    """HaloNet whose first map is half the image, as that of MaxViT and DaViT here."""
    network = halonet(
        "h1", 10, widths=(44, 88, 176), depths=(1, 2, 2), heads=(4, 4, 4), block=4, halo=2, small_images=True
    )
    stem = nn.Conv2d(3, 44, 3, 2, 1, bias=False)
    network.stem = ChannelsFirst(nn.Sequential(stem, nn.BatchNorm2d(44), nn.ReLU()))
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MaxViT": lambda: maxvit(
        classes=10, stem=24, widths=(48, 96), depths=(1, 1), head_dim=16, window=4, survival=0.9
    ),
    "DaViT": lambda: davit(
        classes=10, window=4, patch=2, widths=(40, 84), heads=(2, 4), depths=(1, 2), drop_path=0.05
    ),
    "HaloNet": halo_network,
    "ViT": vit,
    "convolutions": convolutions,
}


def train(network: nn.Module, images: Tensor, labels: Tensor, seconds: float, seed: int) -> int:
    """Train with AdamW for so many processor seconds; returns the number of steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    network.train()
    start, steps = time.process_time(), 0
    while True:
        for index in batches(len(images), BATCH, generator):
            used = (time.process_time() - start) / seconds
            if used >= 1.0:
                return steps
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, (steps + 1) / 20) * (1.0 - used)
            x = images[index]
            flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            loss = cross_entropy(network(torch.where(flip, x.flip(-1), x)), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1


def run(names: Sequence[str], seeds: Sequence[int], minutes: float) -> list[dict[str, Any]]:
    """Train networks of these names with these seeds; one row each."""
    found = load("cifar10_12k")
    mean, spread = 120.0, 64.0
    x, test_x = (
        (torch.as_tensor(found[f"{part}_image"]).float().movedim(-1, 1) - mean) / spread
        for part in ("train", "test")
    )
    y, test_y = (torch.as_tensor(found[f"{part}_label"]).long() for part in ("train", "test"))
    rows = []
    for name in names:
        for seed in seeds:
            torch.manual_seed(seed)
            network = NETWORKS[name]()
            steps = train(network, x, y, 60 * minutes, seed)
            score = accuracy(network, test_x, test_y)
            print(f"{name:13} seed {seed}: {score:.2f} % after {steps} steps", flush=True)
            rows.append(
                {
                    "network": name,
                    "parameters": parameters(network),
                    "seed": seed,
                    "minutes": minutes,
                    "steps": steps,
                    "accuracy": score,
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: per network the mean accuracy with Student's 95 % interval over seeds."""
    lines = [
        "| network | parameters | steps | epochs | test accuracy, % | 95 % interval | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        mine = [row for row in rows if row["network"] == name]
        if not mine:
            continue
        scores, steps = [row["accuracy"] for row in mine], fmean(row["steps"] for row in mine)
        bounds = interval(scores)
        span = "" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
        lines.append(
            f"| {name} | {mine[0]['parameters']:,} | {steps:.0f} | {steps * BATCH / 12_000:.1f} | "
            f"{fmean(scores):.1f} | {span} | {', '.join(f'{score:.1f}' for score in scores)} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--join", type=Path, nargs="+", help="JSON of earlier runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.join:
        rows = [row for file in options.join for row in json.loads(file.read_text())["rows"]]
        rows.sort(key=lambda row: (list(NETWORKS).index(row["network"]), row["seed"]))
    else:
        rows = run(options.networks.split(","), parse_seeds(options.seeds), options.minutes)
    minutes = sorted({row["minutes"] for row in rows})
    lines = [
        "# Small pyramids on CIFAR-10",
        "",
        f"`cifar10_12k`: 12,000 training and 3,000 test images, {' or '.join(f'{m:.3g}' for m in minutes)} "
        "minutes of processor time on one thread for each network and seed, AdamW, batches of 64, flips.",
        "",
        *table(rows),
        "",
        f"{machine()}.",
        "",
    ]
    print("\n".join(lines))
    if options.page:
        old = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        own_words = "\n" + BY_HAND + old.split(BY_HAND, 1)[1] if BY_HAND in old else ""
        write_text(options.page, "\n".join(lines) + own_words)
    if options.json:
        write_text(options.json, json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
