"""Aaren as a streaming drop-in for causal self-attention, on spoken digits and on text.

Feng et al., 'Attention as an RNN', 2024, arXiv 2405.13956. The layer is in `manyhead.mixers.aaren`.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.mixers.aaren import Aaren
from manyhead.mixers.base import Mixer
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.transformer import Stack, Transformer
from manyhead.system import Measurement, System
from manyhead.training.budget import affordable_steps

BANDS, FRAMES, CHANNELS, HEADS = 32, 48, 64, 4


def spectra(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spoken digits as frames of log energies `(recordings, FRAMES, BANDS)`; one speaker in six tests."""
    from manyhead import data

    found = data.load("spoken_digits_8khz")
    window = torch.hann_window(256)
    rows = []
    for samples in found["samples"]:
        sound = torch.zeros(256 + 128 * (FRAMES - 1))
        kept = torch.tensor(samples[: len(sound)].astype(np.float32)) / 32768
        sound[: len(kept)] = kept
        power = torch.stft(sound, 256, 128, window=window, center=False, return_complex=True).abs() ** 2
        rows.append((power[:128].reshape(BANDS, -1, FRAMES).mean(1) + 1e-6).log().T)
    x = torch.stack(rows)
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    label = torch.tensor(np.asarray(found["digit"]).astype(np.int64))
    speakers = np.asarray(found["speaker"])
    held = torch.tensor(speakers == np.unique(speakers)[seed % 6])
    return x[~held], label[~held], x[held], label[held]


class Listener(nn.Module):
    """Read frames by a stack of causal mixers and name the digit from the last state."""

    def __init__(self, mixer: Callable[[int], Mixer]) -> None:
        super().__init__()
        self.enter = nn.Linear(BANDS, CHANNELS)
        self.place = nn.Parameter(torch.randn(FRAMES, CHANNELS) * 0.02)
        self.stack = Stack(CHANNELS, mixer, 2, arrangement="post", dropout=0.1)
        self.leave = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.leave(self.stack(self.enter(x) + self.place)[:, -1])
        return out

    @torch.no_grad()
    def streamed(self, x: Tensor) -> Tensor:
        """The same, frame by frame."""
        state = self.stack.initial_state(len(x), FRAMES)
        for t in range(x.shape[1]):
            y, state = self.stack.extend(self.enter(x[:, t : t + 1]) + self.place[t], state)
        out: Tensor = self.leave(y[:, 0])
        return out


def learn(model: nn.Module, batches: Callable[[], Tensor], steps: int) -> None:
    """Minimise what `batches` returns."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        loss = batches()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def listen(seed: int, budget: float) -> list[Measurement]:
    """Accuracy of Aaren and of causal softmax attention on a held-out speaker."""
    x, label, x_test, label_test = spectra(seed)
    accuracy, gap = {}, 0.0
    kinds: dict[str, Callable[[int], Mixer]] = {
        "softmax": lambda level: MultiHeadAttention(CHANNELS, HEADS, causal=True),
        "aaren": lambda level: Aaren(CHANNELS, HEADS),
    }

    def batch(model: Listener) -> Tensor:
        rows = torch.randint(len(x), (64,))
        return cross_entropy(model(x[rows]), label[rows])

    rivals = [partial(batch, Listener(mixer)) for mixer in kinds.values()]
    steps = affordable_steps(budget, rivals, 400)
    for name, mixer in kinds.items():
        torch.manual_seed(seed)
        model = Listener(mixer)
        learn(model, partial(batch, model), steps)
        with torch.no_grad():
            scores = model(x_test)
        accuracy[name] = float((scores.argmax(-1) == label_test).float().mean()) * 100
        if name == "aaren":
            gap = float((model.streamed(x_test[:32]) - scores[:32]).abs().max())
    return [
        Measurement(
            what="spoken digits of an unheard speaker: accuracy against causal softmax attention",
            paper="comparable (within 3 points)",
            baseline=accuracy["softmax"] - 3,
            here=accuracy["aaren"],
            holds=accuracy["aaren"] >= accuracy["softmax"] - 3,
            unit="%; baseline less 3 points",
        ),
        Measurement(
            what="spoken digits: largest difference of streamed and parallel logits",
            paper="equal",
            baseline=None,
            here=gap,
            holds=gap < 1e-3,
            better="lower",
        ),
    ]


def read(seed: int, budget: float) -> Measurement:
    """Bits a character of WikiText-2 for both."""
    from manyhead import data

    text = data.load("wikitext2_valid").encode()[:300_000]
    ids = torch.tensor(np.minimum(np.frombuffer(text, np.uint8), 127).astype(np.int64))
    train, test = ids[:270_000], ids[270_000:]
    bits = {}
    kinds: dict[str, Callable[[int], Mixer]] = {
        "softmax": lambda level: MultiHeadAttention(CHANNELS, HEADS, causal=True),
        "aaren": lambda level: Aaren(CHANNELS, HEADS),
    }

    def reader(mixer: Callable[[int], Mixer]) -> Transformer:
        return Transformer(128, CHANNELS, 2, mixers=mixer, positions="learned", longest=128)

    def loss(model: Transformer, text: Tensor, rows: int) -> Tensor:
        starts = torch.randint(len(text) - 129, (rows, 1))
        part = text[starts + torch.arange(129)]
        return cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())

    rivals = [partial(loss, reader(mixer), train, 16) for mixer in kinds.values()]
    steps = affordable_steps(budget, rivals, 1000)
    for name, mixer in kinds.items():
        torch.manual_seed(seed)
        model = reader(mixer)
        learn(model, partial(loss, model, train, 16), steps)
        with torch.no_grad():
            torch.manual_seed(0)
            bits[name] = float(loss(model, test, 64)) / float(np.log(2))
    return Measurement(
        what="WikiText-2 characters: bits a character, against causal softmax attention",
        paper="worse: queries do not depend on the input (stated limitation)",
        baseline=bits["softmax"],
        here=bits["aaren"],
        holds=bits["aaren"] > bits["softmax"],
        unit="bits; higher is worse",
    )


def flat_cost() -> Measurement:
    """Numbers in the state after 256 and after 4096 tokens."""
    layer = Aaren(CHANNELS, HEADS)
    sizes = []
    with torch.no_grad():
        for tokens in (256, 4096):
            state = layer.fold(torch.randn(1, tokens, CHANNELS), layer.initial_state(1))
            sizes.append(sum(part.numel() for part in state))
    return Measurement(
        what="numbers of state after 4096 tokens over those after 256",
        paper="constant memory",
        baseline=None,
        here=sizes[1] / sizes[0],
        holds=sizes[0] == sizes[1],
        better="lower",
    )


def demo(seed: int, budget: float) -> list[Measurement]:
    """Train both layers on speech and text; `budget` seconds are shared among the four runs."""
    return [*listen(seed, budget * 0.4), read(seed, budget * 0.4), flat_cost()]


NOTES = """
Data: 3,000 spoken digits, 48 frames of 32 log energies, one of six speakers held out (another for each
seed); WikiText-2 validation text by characters, 128 at a time. Two layers of 64 channels and 4 heads, as many
steps for both rivals as the budget has room for. The paper's own data
(D4RL, event streams, UEA) are not used.

**Which reading is followed.** No official code exists. The learned query is mapped by W_q, as the paper's
parameter count says; `project_query=False` leaves it out. Prefix sums of exp(s - cummax(s)), found in
notebooks, are wrong: earlier terms must be rescaled when the maximum rises; a test shows it.
"""

SYSTEM = System(
    slug="aaren",
    title="Attention as an RNN",
    year=2024,
    arxiv="2405.13956",
    claim="Attention with a learned query performs like a Transformer while it streams with constant memory.",
    demo=demo,
    budget=60.0,
    notes=NOTES,
)
