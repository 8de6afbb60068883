"""LAMA: low-rank factorisation for compact multi-head self-attention.

Mehta et al., 2019, arXiv 1912.00835. Mechanism: `manyhead.mixers.lama`; here it pools a bidirectional GRU
beside four other ways of pooling.
"""

import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.errors import InputError
from manyhead.mixers.lama import LowRankAttentionPooling
from manyhead.system import Measurement, System
from manyhead.training.budget import affordable_steps

PACKAGES = ("asyncio", "ctypes", "email", "idlelib", "importlib", "logging", "multiprocessing", "tkinter",
            "unittest", "xml", "http", "encodings")  # fmt: skip
CLASSES, WORDS, VOCABULARY, UNITS, HEADS = 8, 40, 2000, 32, 8
TRAIN, TEST, BATCH = 6000, 2000, 64


class LastState(nn.Module):
    """The forward GRU's state at the last word beside the backward GRU's at the first."""

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        last = mask.sum(1).long() - 1
        half = h.shape[-1] // 2
        return torch.cat([h[torch.arange(len(h)), last, :half], h[:, 0, half:]], -1)


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class MeanState(nn.Module):
    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(h, mask)


class AdditiveAttention(nn.Module):
    """One distribution over words, `softmax(v . tanh(W h))` (Bahdanau et al., 2015, arXiv 1409.0473)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(channels, channels), nn.Tanh(), nn.Linear(channels, 1, bias=False)
        )

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        weights = self.score(h)[..., 0].masked_fill(mask == 0, -torch.inf).softmax(-1)
        pooled: Tensor = (weights[:, None] @ h)[:, 0]
        return pooled


class SelfAttentionMean(nn.Module):
    """A Transformer's self-attention, its outputs averaged."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        mixed, _ = self.attention(h, h, h, key_padding_mask=mask == 0, need_weights=False)
        return masked_mean(mixed, mask)


class LamaFlat(nn.Module):
    """LAMA's sentence matrix, flattened."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = LowRankAttentionPooling(channels, heads)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        flat: Tensor = self.attention(h, mask).matrix.flatten(1)
        return flat


class PooledGRU(nn.Module):
    """Embedding, bidirectional GRU, a pooling to `width` numbers, a linear classifier."""

    def __init__(self, pooling: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, UNITS)
        self.gru = nn.GRU(UNITS, UNITS, batch_first=True, bidirectional=True)
        self.pooling, self.head = pooling, nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits of windows `(batch, words)`; the mask is one where a word is there."""
        h, _ = self.gru(self.embedding(ids) * mask[..., None])
        logits: Tensor = self.head(self.pooling(h, mask))
        return logits


def package_windows(seed: int) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Windows of 10 to 40 tokens of eight packages' source: word numbers, mask, package; train and test.

    A quarter of each package's files is for testing; imports are left out, as they name the package.

    Raises:
        InputError: if the standard library's source is not installed.
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts: dict[str, list[list[str]]] = {}
    for package in PACKAGES:
        files = sorted((root / package).rglob("*.py"))
        lines = (
            [line for line in file.read_text("utf-8", "replace").splitlines() if "import" not in line]
            for file in files
            if "test" not in file.parts
        )
        tokens = [re.findall(r"\w+|[^\w\s]", "\n".join(part)) for part in lines]
        tokens = [part for part in tokens if len(part) > 2 * WORDS]
        if len(tokens) >= 4:
            texts[package] = tokens
    if len(texts) < CLASSES:
        raise InputError(
            f"the standard library at {root} has the source of {len(texts)} packages, not {CLASSES}"
        )
    chosen = sorted(texts, key=lambda name: -sum(map(len, texts[name])))[:CLASSES]
    count = Counter(word for name in chosen for part in texts[name] for word in part)
    number = {word: n + 1 for n, (word, _) in enumerate(count.most_common(VOCABULARY - 1))}
    random = torch.Generator().manual_seed(seed)

    def draw(share: slice, size: int) -> tuple[Tensor, Tensor, Tensor]:
        streams = []
        for name in chosen:
            order = torch.randperm(len(texts[name]), generator=torch.Generator().manual_seed(seed)).tolist()
            cut = max(1, len(order) // 4)
            files = order[cut:] if share == slice(1, None) else order[:cut]
            streams.append(torch.tensor([number.get(word, 0) for n in files for word in texts[name][n]]))
        label = torch.randint(CLASSES, (size,), generator=random)
        length = torch.randint(10, WORDS + 1, (size, 1), generator=random)
        ids = torch.zeros(size, WORDS, dtype=torch.long)
        for n, which in enumerate(label.tolist()):
            start = int(torch.randint(len(streams[which]) - WORDS, (), generator=random))
            ids[n] = streams[which][start : start + WORDS]
        mask = (torch.arange(WORDS) < length).float()
        return ids, mask, label

    return draw(slice(1, None), TRAIN), draw(slice(0, 1), TEST)


def _loss(network: nn.Module, ids: Tensor, mask: Tensor, label: Tensor) -> Tensor:
    return cross_entropy(network(ids, mask), label)


def demo(seed: int, budget: float) -> list[Measurement]:
    """Which package is a window of source from? LAMA against four poolings of the same GRU."""
    train, test = package_windows(seed)
    wide = 2 * UNITS
    poolings: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "last state": (LastState, wide),
        "mean": (MeanState, wide),
        "single-head additive attention": (lambda: AdditiveAttention(wide), wide),
        "8-head self-attention": (lambda: SelfAttentionMean(wide, HEADS), wide),
        "LAMA": (lambda: LamaFlat(wide, HEADS), HEADS * wide),
    }
    rivals = [
        partial(_loss, PooledGRU(make(), width), *(part[:BATCH] for part in train))
        for make, width in poolings.values()
    ]
    steps = affordable_steps(0.85 * budget, rivals, 1000)  # the rest is for reading the source
    found, size = {}, {}
    for name, (make, width) in poolings.items():
        torch.manual_seed(seed)
        network = PooledGRU(make(), width)
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        random = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            part = torch.randint(TRAIN, (BATCH,), generator=random)
            loss = _loss(network, *(array[part] for array in train))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            found[name] = 100 * float((network(*test[:2]).argmax(-1) == test[2]).float().mean())
        size[name] = sum(weight.numel() for weight in network.pooling.parameters())
    here = found.pop("LAMA")
    share = 100 * size["LAMA"] / size["8-head self-attention"]
    return [
        *(
            Measurement(
                f"accuracy of LAMA, against {name}", "equal or higher", other, here, here >= other, unit="%"
            )
            for name, other in found.items()
        ),
        Measurement(
            "points behind the better of both attentions",
            "none (at most 1.5 here)",
            None,
            max(found["single-head additive attention"], found["8-head self-attention"]) - here,
            max(found["single-head additive attention"], found["8-head self-attention"]) - here <= 1.5,
            better="lower",
        ),
        Measurement(
            "attention parameters, share of 8-head self-attention's",
            "far fewer (at most 10 % here)",
            None,
            share,
            share <= 10,
            better="lower",
            unit="%",
        ),
    ]


NOTES = """
Windows of 10 to 40 tokens from eight packages of Python's standard library; test windows come from files
that were not trained on, lines with imports are left out. The five networks share embedding, bidirectional
GRU (32 units a direction) and training; LAMA's classifier reads 8 x 64 numbers, the others' 64, so that it
has more weights there while its attention has fewer.

**Readings.** No code of the authors is known; a third party's module is the reference for the numbers. Its
division in place, which breaks the backward pass, is out of place here, with a floor for words whose scores
are all zero. The paper averages word embeddings for the context vector, the module whatever it is given:
`context_source` gives another source. With one head the norm over heads leaves scores of plus or minus one
only; `l2_over=None` switches it off. The layer pools: it cannot be stacked as a token mixer.
"""

SYSTEM = System(
    slug="lama",
    title="Low Rank Factorization for Compact Multi-Head Self-Attention",
    year=2019,
    arxiv="1912.00835",
    claim="Low-rank multi-head pooling matches single-head and Transformer attention on text with a fraction "
    "of their attention parameters.",
    demo=demo,
    budget=45.0,
    notes=NOTES,
)
