"""Attention, state spaces and gated recurrences as one dynamical system, and what tells them apart.

Sieber et al., 2024, arXiv 2405.15731. The families are in `manyhead.mixers`, their common form in
`manyhead.mixers.dynamical`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from manyhead.data.recall import IGNORED, associative_recall
from manyhead.mixers.base import Mixer
from manyhead.mixers.dynamical import exponential_features
from manyhead.mixers.gated_rnn import QLSTM
from manyhead.mixers.linear_attention import LinearAttention, NormalizedAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.toeplitz import CausalConvolution
from manyhead.networks.transformer import Transformer
from manyhead.system import Measurement, System
from manyhead.training.budget import affordable_steps

CHANNELS, LENGTH, PAIRS, VOCAB = 64, 64, 8, 256
EXAMPLES, BATCH = 30_000, 32
RATES = (4.6e-4, 2.2e-3)  # the middle two of the paper's four
PAIRED = [  # what should recall better, than what, and why
    ("normalised", "linear n = 16", "normalised above linear attention"),
    ("softmax", "normalised", "softmax best"),
    ("linear n = 64", "linear n = 16", "rises with the state n"),
    ("reversed qLSTM", "qLSTM", "the reversed sigmoid is better"),
]
CARD = {0: 0.68, 2: 0.21, 4: 0.036}  # median errors of orders, as theory has them


def truncation(seed: int) -> list[Measurement]:
    """Relative error of causal softmax attention whose exponential is cut after an order."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(60, LENGTH, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    exact = (q @ k.mT / 8**0.5).masked_fill(later, -torch.inf).softmax(-1) @ v
    found, before = [], float("inf")
    for order, theory in CARD.items():
        scores = (exponential_features(q, order) @ exponential_features(k, order).mT).tril()
        cut = scores / scores.sum(-1, keepdim=True) @ v
        error = float(((cut - exact).norm(dim=-1) / exact.norm(dim=-1)).median())
        found.append(
            Measurement(
                what=f"median error of softmax attention as a system of finite state, order {order}",
                paper=f"falls with the order: {theory}",
                baseline=None,
                here=error,
                holds=error < before and abs(error - theory) < 0.3 * theory,
                better="lower",
            )
        )
        before = error
    return found


def reader(mixer: Callable[[], Mixer]) -> Transformer:
    """A short convolution, which ties values to the keys before them, then one layer of a family."""
    return Transformer(
        VOCAB,
        CHANNELS,
        2,
        mixers=lambda level: mixer() if level else CausalConvolution(CHANNELS, 3),
        positions="learned",
        longest=LENGTH,
    )


def recall(mixer: Callable[[], Mixer], seed: int, steps: int, rate: float) -> Transformer:
    """A reader after training on multi-query recall."""
    torch.manual_seed(seed)
    model = reader(mixer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = _examples(EXAMPLES, seed)
    for _ in range(steps):
        rows = torch.randint(EXAMPLES, (BATCH,))
        loss = _loss(model, draw[0][rows], draw[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Transformer, seed: int) -> float:
    """Share of values that are named, in per cent."""
    inputs, labels = _examples(200, seed)
    asked = labels != IGNORED
    return 100 * float((model(inputs).argmax(-1) == labels)[asked].float().mean())


def _examples(number: int, seed: int) -> list[Tensor]:
    return [torch.tensor(part) for part in associative_recall(number, LENGTH, PAIRS, VOCAB, seed=seed)]


def _loss(model: Transformer, inputs: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def demo(seed: int, budget: float) -> list[Measurement]:
    """Truncate softmax, then let the families recall after equally many steps, each at its best rate."""
    measured = truncation(seed)
    families: dict[str, Callable[[], Mixer]] = {
        "softmax": lambda: MultiHeadAttention(CHANNELS, 1, causal=True, qk_channels=16),
        "linear n = 16": lambda: LinearAttention(CHANNELS, 1, causal=True, qk_channels=16),
        "linear n = 64": lambda: LinearAttention(CHANNELS, 1, causal=True, qk_channels=64),
        "normalised": lambda: NormalizedAttention(CHANNELS, 1, qk_channels=16),
        "qLSTM": lambda: QLSTM(CHANNELS),
        "reversed qLSTM": lambda: QLSTM(CHANNELS, reversed_gate=True),
    }
    ids, labels = _examples(BATCH, seed)
    rivals = [partial(_loss, reader(mixer), ids, labels) for mixer in families.values()]
    steps = affordable_steps(budget * 0.9 / len(RATES), rivals, 2000)
    best: dict[str, float] = {}
    for name, mixer in families.items():
        models = {rate: recall(mixer, seed, steps, rate) for rate in RATES}
        chosen = max(RATES, key=lambda rate: accuracy(models[rate], seed + 20_000))
        best[name] = accuracy(models[chosen], seed + 10_000)
        measured += [
            Measurement(
                what=f"recall accuracy of {name} at a rate of {rate:g}",
                paper="the best rate counts",
                baseline=None,
                here=accuracy(models[rate], seed + 10_000),
                holds=None,
                unit="%",
            )
            for rate in RATES
        ]
    for better, worse, paper in PAIRED:
        measured.append(
            Measurement(
                what=f"recall accuracy of {better}, against {worse}",
                paper=paper,
                baseline=best[worse],
                here=best[better],
                holds=best[better] > best[worse],
                unit="%",
            )
        )
    return measured


NOTES = f"""
Recall: the paper's multi-query task at a small size, {PAIRS} pairs in {LENGTH} tokens, {VOCAB} tokens in
all, batches of {BATCH}, {CHANNELS} channels, one head, n = 16 where not said otherwise, as many steps for
each family and rate as the budget has room for (about 1,300 of the paper's 12,500 and more, whose batches
are 16 times as large). Each family is judged at the better of two learning rates, chosen on examples of its
own.

The first of the two layers is a short convolution for all families, as in the hybrids of Arora et al.,
'Zoology', 2023, arXiv 2312.04927: it ties each value to the key before it, and the family has to recall.
With a family in both layers, as in the paper, softmax attention was still guessing among the eight values
after 1,600 steps (15 % right), so that there was nothing to compare. Of the paper's four rates the outer
two are left out: at 1e-2 softmax and normalised attention learnt nothing (1 %); 1e-4 was not tried, as too
slow for so few steps. These choices were made on seed 100, which is not among the reported ones. The gated
recurrences name hardly a value after so few steps, so that the two cannot be told apart here.

**Where paper and code disagree.** Normalised attention has no feature map, as in the code (`positive=True`
adds one). The code's initialisation zeroes the bias of the step sizes by oversight, so that its state spaces
forget fast; ours begin as Mamba does and `start='zero'` gives the code's. In the code's SSD stand-in the
projection of step sizes is never used; `SSD` has none. An odd order of the truncated exponential lets the
normaliser turn negative: take even ones.
"""

SYSTEM = System(
    slug="dsf",
    title="Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent "
    "Neural Networks",
    year=2024,
    arxiv="2405.15731",
    claim="In one common form, attention differs from state spaces by its normaliser and its state size; "
    "normalised attention narrows the gap between linear and softmax attention.",
    demo=demo,
    budget=900.0,
    notes=NOTES,
)
