"""Time of a mixture of heads that computes what it selected, against dense multi-head attention.

    python benchmarks/moh.py [--tokens 1024] [--channels 512] [--heads 8] [--processor] [--json FILE]

Half of the heads are at work (a quarter shared, a quarter selected by a fresh router). Runs of the two
alternate, the median ratio of pairs is reported. --processor measures processor time of one thread, which
other work on the machine disturbs less.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial

import torch
from command import read_options

from manyhead.demonstration import machine
from manyhead.files import write_text
from manyhead.mixers.moh import MixtureOfHeads
from manyhead.mixers.multihead import MultiHeadAttention


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


def main() -> None:
    options, clock = read_options(__doc__, tokens=1024, channels=512, heads=8, batch=4, pairs=15)
    torch.manual_seed(0)
    x = torch.randn(options.batch, options.tokens, options.channels)
    quarter = options.heads // 4
    found = {"machine": machine(), **vars(options)}
    for causal in (False, True):
        dense = MultiHeadAttention(options.channels, options.heads, causal=causal)
        sparse = MixtureOfHeads(
            MultiHeadAttention(options.channels, options.heads, causal=causal), quarter, quarter, sparse=True
        )

        def infer(layer: torch.nn.Module) -> None:
            with torch.inference_mode():
                layer.eval()(x)

        def train(layer: torch.nn.Module) -> None:
            layer.train()
            layer.zero_grad()
            layer(x).square().mean().backward()

        for name, run in (("inference", infer), ("training", train)):
            pairs = []
            for n in range(options.pairs + 2):
                pair = [seconds(partial(run, layer), clock) for layer in (sparse, dense)]
                pairs += [pair] if n >= 2 else []
            key = f"{name}, {'causal' if causal else 'both ways'}"
            found[key] = {
                "sparse_ms": 1e3 * statistics.median(pair[0] for pair in pairs),
                "dense_ms": 1e3 * statistics.median(pair[1] for pair in pairs),
                "ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
            }
            print(key, {name: round(value, 3) for name, value in found[key].items()})
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
