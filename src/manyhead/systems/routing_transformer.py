"""Routing Transformer: tokens attend inside learned clusters, wherever in the sequence their fellows stand.

Roy et al., 2020, arXiv 2003.05997. Mechanism: `manyhead.mixers.routing`, centroids
`manyhead.layers.centroids`, attention inside clusters `manyhead.kernels.clusters`.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from manyhead.mixers.base import Mixer
from manyhead.mixers.routing import RoutingAttention, commitment_loss
from manyhead.system import Measurement, System

DIGITS, HIDDEN, CLASSES = 208, 16, 10  # of a sequence: digits, those without a label, names of labels
CHANNELS, HEADS, CLUSTERS, WINDOW, BATCH = 64, 4, 8, 26, 8
TRAIN, DECAY = 1400, 0.95
STEPS_A_SECOND = 7  # of budget, for each of the four networks


def mixer(kind: str) -> Mixer:
    """Non-causal attention with shared queries and keys and 26 keys a query; 'dense' sees all 208."""
    if kind == "local":
        return RoutingAttention(CHANNELS, HEADS, 0, 1, 1, block=WINDOW, flank=0, causal=False)
    clusters, window = (1, DIGITS) if kind == "dense" else (CLUSTERS, WINDOW)
    return RoutingAttention(
        CHANNELS,
        HEADS,
        HEADS,
        clusters,
        window,
        causal=False,
        share_qk=True,
        router="random" if kind == "random" else "kmeans",
        decay=DECAY,
    )


class Labeller(nn.Module):
    """One linear map in, one attention layer beside a residual, one linear map out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.enter = nn.Linear(64 + CLASSES, CHANNELS)
        self.mixer = mixer(kind)
        self.leave = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of digits with or without label, `(batch, digits, 74)` to `(batch, digits, 10)`."""
        x = self.enter(x)
        out: Tensor = self.leave(x + self.mixer(x))
        return out


def sequences(
    pixels: Tensor, label: Tensor, batch: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Digits in random order under names of labels that change from sequence to sequence.

    Returns:
        Inputs `(batch, digits, 74)`, names of the labels `(batch, digits)`, and which are hidden.
    """
    chosen = torch.rand(batch, len(pixels), generator=random).topk(DIGITS).indices
    names = torch.rand(batch, CLASSES, generator=random).argsort(-1)
    name = names.gather(1, label[chosen])
    hidden = torch.zeros(batch, DIGITS, dtype=torch.bool)
    hidden.scatter_(1, torch.rand(batch, DIGITS, generator=random).topk(HIDDEN).indices, True)
    shown = one_hot(name, CLASSES).float() * ~hidden[..., None]
    return torch.cat([pixels[chosen], shown], -1), name, hidden


def label_digits(seed: int, budget: float) -> list[Measurement]:
    """Accuracy on hidden labels with 26 keys a query: neighbours, random clusters, learned clusters."""
    from manyhead import data

    found = data.load("digits")
    pixels = torch.tensor(found["feature"]).float() / 8 - 0.6
    label = torch.tensor(found["target"]).long()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN:]
    steps = max(20, round(budget * STEPS_A_SECOND))
    accuracy = {}
    for kind in ("local", "random", "kmeans", "dense"):
        torch.manual_seed(seed)
        network, random = Labeller(kind), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(network.parameters(), 5e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            x, name, hidden = sequences(pixels[train], label[train], BATCH, random)
            loss = cross_entropy(network(x)[hidden], name[hidden])
            if kind == "kmeans":
                loss = loss + commitment_loss(network)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            x, name, hidden = sequences(pixels[test], label[test], 64, torch.Generator().manual_seed(seed))
            accuracy[kind] = 100 * float((network(x).argmax(-1) == name)[hidden].float().mean())
    rival = max(accuracy["local"], accuracy["random"])
    return [
        Measurement(
            "hidden labels: learned clusters against neighbours or random clusters, plus 8 points",
            "content decides what is relevant",
            rival + 8,
            accuracy["kmeans"],
            accuracy["kmeans"] >= rival + 8,
            unit="% right",
        ),
        Measurement(
            "hidden labels: learned clusters of 26 against all 208 keys, less 10 points",
            "better than full attention",
            accuracy["dense"] - 10,
            accuracy["kmeans"],
            accuracy["kmeans"] >= accuracy["dense"] - 10,
            unit="% right",
        ),
    ]


def growth(kind: Callable[[int], Mixer], sizes: tuple[int, int] = (512, 4096)) -> float:
    """Exponent of a layer's processor time between two lengths, forward, the best of three."""
    times = []
    for tokens in sizes:
        layer, x = kind(tokens).eval(), torch.randn(1, tokens, CHANNELS)
        runs = []
        with torch.no_grad():
            for _ in range(3):
                begun = time.process_time()
                layer(x)
                runs.append(time.process_time() - begun)
        times.append(min(runs))
    return math.log(times[1] / times[0]) / math.log(sizes[1] / sizes[0])


def cost() -> Measurement:
    """How time grows with as many clusters as tokens in a cluster, against one cluster of all."""

    def routed(tokens: int) -> Mixer:
        side = round(tokens**0.5)
        return RoutingAttention(CHANNELS, HEADS, HEADS, side, side, share_qk=True)

    def dense(tokens: int) -> Mixer:
        return RoutingAttention(CHANNELS, HEADS, HEADS, 1, tokens, share_qk=True)

    slow, fast = growth(dense), growth(routed)
    return Measurement(
        "exponent of time in the length from 512 to 4,096 tokens, square root of it clusters, against dense",
        "1.5 against 2",
        slow,
        fast,
        fast <= min(1.7, slow),
        better="lower",
    )


def demo(seed: int, budget: float) -> list[Measurement]:
    """Labels of digits in context, and the growth of time; `budget` seconds in all."""
    torch.manual_seed(seed)
    return [*label_digits(seed, budget), cost()]


NOTES = f"""
scikit-learn's 1,797 digits, {TRAIN:,} to train. A sequence has {DIGITS} digits in random order with their
labels, whose ten names are permuted anew each time; {HIDDEN} labels are hidden and asked for. So a token must
find its likes wherever they stand. One attention layer of {HEADS} heads with shared queries and keys, none of
them causal: blocks of {WINDOW} neighbours, {CLUSTERS} random clusters of {WINDOW}, as many learned ones, or
one of all. Averages of centroids decay by {DECAY}, faster than the official 0.999, as the run is
short. Language modelling at the paper's size is not attempted.

**Where paper and code disagree.** The default follows the official algorithm (norms without gain, unscaled
logits, the `window` best tokens of each cluster, count + 0.01); the widely used PyTorch port differs in all
of these, and the parity tests reproduce both. The official causal mask compares ranks inside a cluster where
queries and keys choose separately, so that queries can see later keys: we compare positions. The official
counts start at zero while centroids do not; ours start at one (`initial_count`). Which tokens a cluster keeps
depends on the whole sequence; `strict_causal=True` takes the most recent members instead, and then streams.
"""

SYSTEM = System(
    slug="routing_transformer",
    title="Efficient Content-Based Sparse Attention with Routing Transformers",
    year=2020,
    arxiv="2003.05997",
    claim="Attention inside learned clusters finds what matters at a cost that grows as the power 1.5.",
    demo=demo,
    budget=60.0,
    notes=NOTES,
)
