"""A unified view of long-sequence models: one template, does longer context help, distributed attention.

He and Kabic, 'A Unified View of Long-Sequence Models towards Modeling Million-Scale Dependencies', 2023,
arXiv 2302.06218.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from manyhead.attention import attend, plan
from manyhead.kernels.ring import ring_attend
from manyhead.kernels.rings import Ring, in_threads
from manyhead.kernels.shards import shard, unshard
from manyhead.mixers.base import Mixer
from manyhead.mixers.linear_attention import LinearAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.s4d import S4D
from manyhead.mixers.toeplitz import CausalConvolution
from manyhead.networks.language import MixerLanguageModel, text_bytes, text_loss, train_on_text
from manyhead.pattern import Causal
from manyhead.system import Measurement, System

CONTEXTS = (32, 128, 512)
TOKENS = 1024  # characters of a step, at every context
MIXERS: dict[str, Callable[[], Mixer]] = {
    "softmax": lambda: MultiHeadAttention(64, 4, causal=True),
    "linear attention": lambda: LinearAttention(64, 4, causal=True),
    "S4D": lambda: S4D(64),
    "convolution of 16": lambda: CausalConvolution(64, 16),
}


def bits(
    make: Callable[[], Mixer], length: int, text: Tensor, held_out: Tensor, seed: int, steps: int
) -> float:
    """Bits per character of held-out text after training at a context, equal tokens per step."""
    torch.manual_seed(seed)
    model = MixerLanguageModel(256, 64, [make(), make()], positions=max(CONTEXTS))
    weights = list(model.parameters())
    train_on_text(
        model, weights, text, steps=steps, batch=TOKENS // length, length=length, seed=seed, rate=3e-3
    )
    # the same 32 x 512 characters for every context, cut into its windows
    pieces = held_out[: 32 * 512 + 1]
    return text_loss(model.eval(), pieces, length, windows=32 * 512 // length)[0] / math.log(2)


def _distributed(seed: int) -> Measurement:
    """Distributed attention and its gradients against one process, on 1, 2 and 4 members."""
    torch.manual_seed(seed)
    q, k, v, upstream = torch.randn(4, 1, 256, 4, 16).unbind(0)
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(whole[0], whole[1], whole[2], Causal(), kernel="reference")
    assert isinstance(out, Tensor)
    wanted = [out.detach(), *torch.autograd.grad(out, whole, upstream)]
    worst = 0.0
    for world in (1, 2, 4):

        def work(ring: Ring, world: int = world) -> list[Tensor]:
            mine = [shard(x, ring.rank, world).requires_grad_() for x in (q, k, v)]
            part = ring_attend(mine[0], mine[1], mine[2], Causal(), 256, ring=ring)
            return [part.detach(), *torch.autograd.grad(part, mine, shard(upstream, ring.rank, world))]

        found = [unshard(list(parts)) for parts in zip(*in_threads(world, work), strict=True)]
        worst = max([worst, *(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))])
    what = "largest error of distributed attention, gradients included, 1, 2 and 4 members"
    return Measurement(what, "exact", None, worst, worst < 1e-5, "lower")


def _memory() -> Measurement:
    """Growth of the planned peak per doubling of the tokens, materialised and in tiles."""
    growth = {}
    for kernel in ("reference", "windows"):
        peaks = []
        for tokens in (2048, 4096):
            x = torch.empty(1, tokens, 4, 16, device="meta")
            peaks.append(plan(x, x, x, Causal(), kernel=kernel, grad=True).peak_bytes)
        growth[kernel] = peaks[1] / peaks[0]
    return Measurement(
        "growth of peak memory, 4,096 over 2,048 tokens, tiles against materialised softmax",
        "almost 40x longer sequences",
        growth["reference"],
        growth["windows"],
        growth["windows"] <= 2.4 and growth["reference"] >= 3.5,
        "lower",
    )


def demo(seed: int, budget: float) -> list[Measurement]:
    """Held-out bits per character at three contexts and three mixers; then distributed attention."""
    from manyhead.data.readers import python_source

    text = text_bytes(python_source())
    cut = len(text) * 9 // 10
    steps = max(30, min(400, int(4 * budget)))
    found = []
    for name, make in MIXERS.items():
        scores = [bits(make, length, text[:cut], text[cut:], seed, steps) for length in CONTEXTS]
        for length, score in zip(CONTEXTS[1:], scores[1:], strict=True):
            what = f"bits per character, {name}, context {length} against {CONTEXTS[0]}"
            claim = "longer context improves quality"
            found.append(Measurement(what, claim, scores[0], score, score < scores[0], "lower", "bits"))
        if name.startswith("convolution"):
            change = abs(scores[2] - scores[1])
            what = f"change of bits per character, {name}, context 512 against 128"
            claim = "none beyond what it sees (31 characters)"
            found.append(Measurement(what, claim, None, change, change < 0.03, "lower", "bits"))
    return [*found, _memory(), _distributed(seed)]


SYSTEM = System(
    slug="long_sequence_unified",
    title="A Unified View of Long-Sequence Models towards Modeling Million-Scale Dependencies",
    year=2023,
    arxiv="2302.06218",
    claim="Longer context improves quality by an amount that depends on the mixer, and attention distributed "
    "over processes stays exact.",
    demo=demo,
    budget=100.0,
    notes="""
Character models of Python's own source, two layers of width 64, 1,024 characters per step, equal steps at
every context; held-out characters are the same at every context, so a short context also costs at the
beginning of its many windows. A convolution of 16 in two layers sees 31 characters: it gains from 32 to 128
only by fewer such beginnings.

Four steps for each second of the budget, 400 at most (the card's number; its steps hold 8,192 characters).
After little training short contexts win: at equal characters per step their batches hold more, and more
different, sequences.

There is no official code, and only abstract and nomenclature of the paper were at hand. 'Almost 40x' in the
abstract compares with one device that stores all weights; with four devices at most a factor of four can
come from distribution, the rest is from not storing them. Both baselines are given by `manyhead bench
attention`: materialised (`reference`) and blockwise on one device (`sdpa`, `windows`). Every mixer prints
its row of the unified table with `describe()`, and `manyhead.insight.mixing.mixing_report` measures its
token matrix.
""",
)
