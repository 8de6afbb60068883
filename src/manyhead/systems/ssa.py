"""SSA: transformers trained on random parts of their sources, and self-ensembles of such passes.

Hussain et al., 2023, arXiv 2306.01705. Mechanisms: `manyhead.mixers.subsampled` and, on grids,
`manyhead.mixers.subsampled_windows`.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from manyhead.mixers.base import Mixer
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.subsampled import SubsampledAttention, self_ensemble, set_subsampling, subsampling
from manyhead.mixers.subsampled_windows import SubsampledWindowAttention
from manyhead.networks.language import PreNormBlock, text_loss, train_on_text
from manyhead.networks.transformer import Transformer
from manyhead.system import Measurement, System

CHANNELS, HEADS, LAYERS, LENGTH, BATCH = 64, 4, 3, 96, 8
VOCABULARY, TRAIN_WORDS = 2000, 30_000
WORD_STEPS_A_SECOND, IMAGE_STEPS_A_SECOND = 5, 9  # of budget, for each network
DENSE_END = 0.1  # share of the steps at the end that see all sources
PASSES = 8
IMAGES, TESTS = 3000, 2000


def words(part: str, number: dict[str, int] | None = None) -> tuple[Tensor, dict[str, int]]:
    """WikiText-2 by words: numbers of the most frequent ones, 0 for all others."""
    from manyhead import data

    found = re.findall(r"\S+", data.load(f"wikitext2_{part}"))
    if number is None:
        common = Counter(found).most_common(VOCABULARY - 1)
        number = {word: n + 1 for n, (word, _) in enumerate(common)}
    return torch.tensor([number.get(word, 0) for word in found]), number


def causal_mixer(kind: str) -> Mixer:
    """One layer's mixer of the language models."""
    if kind == "dropout":
        return MultiHeadAttention(CHANNELS, HEADS, causal=True, rotary=1.0, dropout=0.1)
    attention = MultiHeadAttention(CHANNELS, HEADS, causal=True, rotary=1.0)
    if kind == "unbiased":
        return SubsampledAttention(attention, 0.25)
    if kind == "local":
        return SubsampledAttention(attention, mode="local", window=LENGTH // 4, sigma=LENGTH / 4)
    return attention


def read(seed: int, budget: float) -> list[Measurement]:
    """Perplexity of words, dense and subsampled, where training long enough overfits."""
    ids, number = words("valid")
    held, _ = words("test", number)
    train = ids[:TRAIN_WORDS]
    steps = max(20, round(budget * WORD_STEPS_A_SECOND))
    loss: dict[str, float] = {}
    gap: dict[str, float] = {}
    ensemble: dict[str, float] = {}
    for kind in ("dense", "dropout", "unbiased", "local"):
        torch.manual_seed(seed)
        model = Transformer(
            VOCABULARY, CHANNELS, LAYERS, mixers=lambda depth, kind=kind: causal_mixer(kind),
            positions="none",
        )  # fmt: skip
        nn.init.normal_(model.embedding.tokens.weight, std=0.1)

        def before(step: int, model: Transformer = model, kind: str = kind) -> None:
            if step == round(steps * (1 - DENSE_END)):
                if kind == "local":
                    ensemble.update(judge_ensemble(model, held))
                    model.train()
                set_subsampling(model, False)

        train_on_text(
            model, model.parameters(), train, steps=steps, batch=BATCH, length=LENGTH, seed=seed, rate=3e-3,
            before_step=before,
        )  # fmt: skip
        model.eval()
        loss[kind] = text_loss(model, held, LENGTH, windows=64)[0]
        gap[kind] = loss[kind] - text_loss(model, train, LENGTH, windows=64)[0]
    ppl = {kind: math.exp(value) for kind, value in loss.items()}

    def lower(what: str, paper: str, baseline: float, here: float, unit: str) -> Measurement:
        return Measurement(what, paper, baseline, here, here <= baseline, better="lower", unit=unit)

    return [
        lower("words: locally biased SSA with a dense end, against dense (+1 %)", "better than dense",
              1.01 * ppl["dense"], ppl["local"], "perplexity"),
        lower("words: locally biased SSA, against attention dropout 0.1", "better",
              ppl["dropout"], ppl["local"], "perplexity"),
        lower("words: locally biased against unbiased SSA", "better",
              ppl["unbiased"], ppl["local"], "perplexity"),
        lower("words: gap from training to held-out text, against dense", "regularises",
              gap["dense"], gap["local"], "nats"),
        lower(f"words: {PASSES} passes averaged, against one drawn pass (-1 %), before the dense end",
              "better", 0.99 * ensemble["one"], ensemble["many"], "perplexity"),
        lower(f"words: {PASSES} passes averaged, against all sources (+1 %), before the dense end",
              "better", 1.01 * ensemble["dense"], ensemble["many"], "perplexity"),
    ]  # fmt: skip


@torch.no_grad()
def judge_ensemble(model: Transformer, ids: Tensor, windows: int = 32) -> dict[str, float]:
    """Perplexity of one drawn pass, of several averaged, and with all sources."""
    starts = torch.linspace(0, len(ids) - LENGTH - 1, windows).long()
    window = ids[starts[:, None] + torch.arange(LENGTH + 1)]
    tokens, target = window[:, :-1], window[:, 1:].flatten()
    model.eval()

    def perplexity(log_chances: Tensor) -> float:
        return math.exp(float(nll_loss(log_chances.flatten(0, 1), target)))

    many = self_ensemble(model, lambda: model(tokens), PASSES)
    with subsampling(model):
        singles = [math.log(perplexity(model(tokens).log_softmax(-1))) for _ in range(4)]
    dense = perplexity(model(tokens).log_softmax(-1))
    return {"one": math.exp(sum(singles) / 4), "many": perplexity(many), "dense": dense}


class GridTransformer(nn.Module):
    """A vision transformer over a 4 x 4 grid of patches of 7 x 7.

    Args:
        mixers: one a layer, over `(batch, 4, 4, channels)`.
    """

    def __init__(self, mixers: list[Mixer]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, CHANNELS, 7, 7)
        self.positions = nn.Parameter(0.02 * torch.randn(4, 4, CHANNELS))
        self.blocks = nn.Sequential(*(PreNormBlock(mixer, CHANNELS, 2 * CHANNELS) for mixer in mixers))
        self.head = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 10))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images `(batch, 1, 28, 28)`."""
        x = self.patches(image).movedim(1, -1) + self.positions
        out: Tensor = self.head(self.blocks(x).mean((1, 2)))
        return out


class FlatGrid(Mixer):
    """Dense attention over a grid's cells."""

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.require_self_mixing(context)
        out: Tensor = self.attention(x.flatten(1, 2)).view_as(x)
        return out


def look(seed: int, budget: float) -> Measurement:
    """Accuracy on digits with windows over shuffled grids, against dense attention."""
    from manyhead import data

    found = data.load("mnist_10k")
    image = torch.from_numpy(found["image"]).float()[:, None] / 255 - 0.13
    label = torch.from_numpy(found["label"]).long()
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))
    train, test = order[:IMAGES], order[IMAGES : IMAGES + TESTS]
    steps = max(20, round(budget * IMAGE_STEPS_A_SECOND))
    kinds: dict[str, Callable[[int], Mixer]] = {
        "dense": lambda depth: FlatGrid(MultiHeadAttention(CHANNELS, HEADS)),
        "windows": lambda depth: SubsampledWindowAttention(
            MultiHeadAttention(CHANNELS, HEADS), 2, 2.0, offset=depth % 2
        ),
    }
    accuracy = {}
    for kind, make in kinds.items():
        torch.manual_seed(seed)
        network = GridTransformer([make(depth) for depth in range(2)])
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        random = torch.Generator().manual_seed(seed)
        for step in range(steps):
            if step == round(steps * (1 - DENSE_END)):
                set_subsampling(network, False)
            chosen = train[torch.randint(len(train), (32,), generator=random)]
            loss = cross_entropy(network(image[chosen]), label[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            right = (network.eval()(image[test]).argmax(-1) == label[test]).float().mean()
        accuracy[kind] = 100 * float(right)
    return Measurement(
        what="digits: windows of a quarter of the cells over shuffled grids, against dense less 0.5 points",
        paper="better than dense",
        baseline=accuracy["dense"] - 0.5,
        here=accuracy["windows"],
        holds=accuracy["windows"] >= accuracy["dense"] - 0.5,
        unit="% right",
    )


def cost(tokens: int = 2048, rho: float = 1 / 8) -> Measurement:
    """Processor time of a training step of one layer, against dense attention."""
    spent = {}
    attention = MultiHeadAttention(128, 4)
    layers = {"dense": attention, "drawn": SubsampledAttention(attention, rho).train()}
    x = torch.randn(1, tokens, 128)
    for name, layer in layers.items():
        times = []
        for _ in range(4):
            begun = time.process_time()
            layer(x).sum().backward()
            times.append(time.process_time() - begun)
        spent[name] = min(times)
    ratio = spent["drawn"] / spent["dense"]
    return Measurement(
        what=f"time of a training step of a layer at {tokens} tokens, an eighth of the sources, over dense",
        paper="4 to 8 times less (at most 0.35 here)",
        baseline=None,
        here=ratio,
        holds=ratio <= 0.35,
        better="lower",
    )


def demo(seed: int, budget: float) -> list[Measurement]:
    """Words, digits and cost; `budget` seconds are shared among the networks."""
    return [*read(seed, budget), look(seed, budget), cost()]


NOTES = f"""
WikiText-2 by words: {TRAIN_WORDS:,} words of the validation part to train, so that they are seen several
times, the test part to judge; {VOCABULARY:,} words, three layers of {CHANNELS} channels, {LENGTH} words at a
time. Unbiased SSA keeps a quarter of the sources; locally biased SSA gives each query {LENGTH // 4} of them,
shuffled by {LENGTH // 4} places. The last tenth of the steps is dense. MNIST's test digits, {IMAGES:,} to
train: a 4 x 4 grid of patches, windows of 2 x 2 over sources shuffled by two cells, a quarter of them.

**Which reading is followed.** No code was released, and the full text could not be had. From the abstract and
the author's later code: the fixed number of sources, drawn without replacement, the same for all queries and
heads of a layer, keys and values really left out. Our reading, all of it options: the shuffle by noisy
positions with windows over ranks, in one and two directions; a causal query always sees itself; the share of
the dense end; self-ensembles average probabilities. `mode="bernoulli"` is the author's later source dropout,
which saves nothing.
"""

SYSTEM = System(
    slug="ssa",
    title="The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
    year=2023,
    arxiv="2306.01705",
    claim="Training on random parts of the sources is cheaper and generalises better than dense attention.",
    demo=demo,
    budget=60.0,
    notes=NOTES,
)
