"""Sequence parallelism: one sequence over several processes, exact attention in a ring.

Li et al., 'Sequence Parallelism: Long Sequence Training from System Perspective', 2021, arXiv 2105.13120.
"""

import multiprocessing
import queue
import socket
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.kernels.ring import ring_attend
from manyhead.kernels.rings import LostPeer, ProcessRing, Ring, sum_gradients
from manyhead.kernels.shards import Layout, schedule, shard
from manyhead.layers.residual import FeedForward
from manyhead.mixers.neighborhood import split_heads
from manyhead.pattern import Causal
from manyhead.system import Measurement, System

LENGTH, WORLD, SYMBOLS = 512, 4, 128


class RingBlock(nn.Module):
    """A transformer block whose attention spans the ring."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = FeedForward(channels)

    def forward(self, x: Tensor, ring: Ring) -> Tensor:
        q, k, v = split_heads(self.qkv(self.norm1(x)), self.heads)
        x = x + self.proj(ring_attend(q, k, v, Causal(), LENGTH, ring=ring).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class RingLanguageModel(nn.Module):
    """A causal character model of which every process runs its own tokens."""

    def __init__(self, channels: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, channels)
        self.positions = nn.Embedding(LENGTH, channels)
        self.blocks = nn.ModuleList(RingBlock(channels, heads) for _ in range(layers))
        self.head = nn.Linear(channels, SYMBOLS)

    def forward(self, tokens: Tensor, places: Tensor, ring: Ring) -> Tensor:
        x = self.symbols(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x, ring)
        logits: Tensor = self.head(x)
        return logits


def train(ring: Ring, text: Tensor, seed: int, steps: int) -> dict[str, Any]:
    """Train by SGD on shards; the loss of a step is the mean over all tokens of all processes."""
    torch.manual_seed(seed)
    model = RingLanguageModel()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    places = shard(torch.arange(LENGTH)[None], ring.rank, ring.size)
    losses, kept = [], 0
    for step in range(steps):
        piece = text[step * LENGTH : (step + 1) * LENGTH + 1][None]
        tokens, targets = (shard(part, ring.rank, ring.size) for part in (piece[:, :-1], piece[:, 1:]))
        kept = tokens.shape[1]
        logits = model(tokens, places, ring)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / LENGTH
        optimizer.zero_grad()
        loss.backward()
        sum_gradients(list(model.parameters()), ring)
        optimizer.step()
        total = torch.stack(ring.exchange([loss.detach()] * ring.size, [()] * ring.size)).sum()
        losses.append(float(total))
    return {"losses": losses, "tokens": kept, "sent": ring.sent}


def _process(rank: int, port: int, text: Tensor, seed: int, steps: int, results: Any) -> None:
    """One of the processes of a demonstration."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD)
    results.put((rank, train(ProcessRing(), text, seed, steps)))
    torch.distributed.destroy_process_group()


def in_processes(text: Tensor, seed: int, steps: int) -> list[dict[str, Any]]:
    """Train on `WORLD` local processes, and return what each reports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    members = [
        context.Process(target=_process, args=(rank, port, text, seed, steps, results))
        for rank in range(WORLD)
    ]
    for member in members:
        member.start()
    found: dict[int, dict[str, Any]] = {}
    while len(found) < WORLD:
        try:
            rank, report = results.get(timeout=1.0)
            found[rank] = report
        except queue.Empty:
            if any(member.exitcode for member in members):
                for member in members:
                    member.terminate()
                raise LostPeer("a process of the ring has ended before it was done") from None
    for member in members:
        member.join()
    return [found[rank] for rank in range(WORLD)]


def demo(seed: int, budget: float) -> list[Measurement]:
    """A character model on Python's own source, on four processes and on one."""
    from manyhead.data.readers import python_source

    steps = 50 if budget >= 30 else max(5, int(budget))
    codes = [
        min(ord(c), SYMBOLS - 1) for c in python_source()[seed * 50_000 : seed * 50_000 + steps * LENGTH + 1]
    ]
    text = torch.tensor(codes)
    alone = train(Ring(), text, seed, steps)
    together = in_processes(text, seed, steps)
    pairs = zip(alone["losses"], together[0]["losses"], strict=True)
    gap = max(abs(a - b) for a, b in pairs)
    tokens = max(member["tokens"] for member in together)
    names: tuple[Layout, Layout] = ("contiguous", "zigzag")
    layouts = {name: schedule(Causal(), LENGTH, WORLD, name).imbalance for name in names}
    return [
        Measurement(
            f"largest difference of the loss over {steps} steps, 4 processes and 1",
            "exact",
            None,
            gap,
            gap < 1e-4,
            "lower",
        ),
        Measurement("tokens held by a process", "L / N", LENGTH, tokens, tokens == LENGTH // WORLD, "lower"),
        Measurement(
            "most causal work of a process over the mean, zig-zag against contiguous",
            "balanced",
            layouts["contiguous"],
            layouts["zigzag"],
            layouts["zigzag"] <= 1.05,
            "lower",
        ),
        Measurement(
            "loss after training over the loss before",
            "it trains",
            None,
            together[0]["losses"][-1] / together[0]["losses"][0],
            together[0]["losses"][-1] < together[0]["losses"][0],
            "lower",
        ),
    ]


SYSTEM = System(
    slug="sequence_parallelism",
    title="Sequence Parallelism: Long Sequence Training from System Perspective",
    year=2021,
    arxiv="2105.13120",
    claim="A ring over N processes computes exact attention while each holds 1/N of the sequence.",
    demo=demo,
    budget=60.0,
    notes="""
Real processes with gloo on one machine; a speed-up is not claimed on two cores.

The library's ring uses online softmax and stores no row of scores; `engine="rsa"` is the paper's two rings.
The released code divides the attention branch's gradients by N (its tests, at a tolerance of 1e-2, do not see
it) and scales scores by the hidden size; ours are the exact gradients and the scale of a head, checked
against one process. Other engines: `ulysses` (heads exchanged for tokens), `all-gather`, and on CUDA
`torch-cp` and `ring-flash-attn`, which have not been run here for want of a GPU.
""",
)
