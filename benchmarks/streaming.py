"""Time and memory of one token of a stream after 1k, 8k and 64k tokens.

    python benchmarks/streaming.py [--channels 128] [--heads 4] [--steps 150] [--processor] [--json FILE]

Aaren, linear attention and the selective state space have a state of fixed size; softmax attention
with a cache stands beside them. Their outcome is 'flat' where the largest over the smallest is at most 1.1.
"""

import json
import statistics
from typing import Any

import torch
from command import read_options

from manyhead.demonstration import machine
from manyhead.files import write_text
from manyhead.mixers.aaren import Aaren
from manyhead.mixers.base import Mixer
from manyhead.mixers.linear_attention import LinearAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.selective import S6

LENGTHS = (1024, 8192, 65536)
TOGETHER = 8  # steps of one measurement


def state_bytes(state: Any, length: int) -> int:
    """Bytes of what a state has stored: of a cache, its filled part."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if hasattr(state, "filled"):
        return sum(part.numel() * part.element_size() for part in state.filled)
    return sum(state_bytes(part, length) for part in state)


def advance(mixer: Mixer, tokens: int, channels: int) -> Any:
    """The state after random tokens, read in pieces of 1024."""
    state = mixer.initial_state(1, capacity=tokens + 8192)
    for _ in range(tokens // 1024):
        x = torch.randn(1, 1024, channels)
        if isinstance(mixer, Aaren):
            state = mixer.fold(x, state)
        elif isinstance(mixer, MultiHeadAttention):  # its answers to the past are not wanted
            _, k, v = mixer.project(x)
            state = state.append(k, v)
        elif isinstance(mixer, LinearAttention):
            state = mixer.extend(x, state)[1]
        else:
            for x_t in x[:, :8].unbind(1):  # a fixed-size state: its content does not matter
                state = mixer.step(x_t, state)[1]
    return state


@torch.inference_mode()
def main() -> None:
    options, clock = read_options(__doc__, channels=128, heads=4, steps=150)
    torch.manual_seed(0)
    size = options.channels, options.heads
    mixers: dict[str, Mixer] = {
        "aaren": Aaren(*size),
        "linear attention": LinearAttention(*size, causal=True),
        "selective state space": S6(options.channels),
        "softmax with cache": MultiHeadAttention(*size, causal=True),
    }
    states = {(name, n): advance(m, n, options.channels) for name, m in mixers.items() for n in LENGTHS}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in states}
    for name, mixer in mixers.items():  # one after the other: a long cache would empty the processor's
        for turn in range(options.steps):
            # lengths in turn, so that a slow moment hits all of them, and each comes first as often
            for n in (*LENGTHS[turn % 3 :], *LENGTHS[: turn % 3]):
                x = torch.randn(1, options.channels)
                _, states[name, n] = mixer.step(x, states[name, n])  # after another state's turn
                begun = clock()
                for _ in range(TOGETHER):
                    _, states[name, n] = mixer.step(x, states[name, n])
                times[name, n].append((clock() - begun) / TOGETHER)
    found: dict[str, Any] = {"machine": machine(), **vars(options)}
    for name in mixers:
        micro = [statistics.median(times[name, n]) * 1e6 for n in LENGTHS]
        stored = [state_bytes(states[name, n], n) for n in LENGTHS]
        found[name] = {
            "microseconds a token": dict(zip(LENGTHS, micro, strict=True)),
            "bytes of state": dict(zip(LENGTHS, stored, strict=True)),
            "flat": max(micro) <= 1.1 * min(micro) and max(stored) <= 1.1 * min(stored),
        }
        print(name, found[name])
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
