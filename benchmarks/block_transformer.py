"""Tokens a second of a Block Transformer over those of a vanilla decoder with as many layers.

    python benchmarks/block_transformer.py [--batch 32] [--new 128] [--prompts 512,1024] [--json FILE]

Both write with caches and greedily; the time includes reading the prompt. Weights are random: the time
does not depend on them, and perplexity is what `manyhead demo block_transformer` measures. Cache bytes
stand beside what the paper predicts: a block_length-th in the block decoder, and a constant.
"""

import argparse
import json
import time
from typing import Any

import torch

from manyhead.demonstration import machine
from manyhead.files import write_text
from manyhead.networks.block_transformer import BlockTransformer
from manyhead.networks.generation import generate
from manyhead.systems.block_transformer import vanilla


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"batch": 32, "new": 128, "channels": 128, "layers": 4, "block_length": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--prompts", default="512,1024,2048,4096")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.manual_seed(0)
    half = options.layers // 2
    dense = vanilla(options.channels, options.layers).eval()
    block = BlockTransformer.build(
        256, options.channels, (half, options.layers - half), 8, block_length=options.block_length
    ).eval()
    found: dict[str, Any] = {"machine": machine(), **vars(options), "runs": []}
    for prompt in map(int, options.prompts.split(",")):
        ids = torch.randint(256, (options.batch, prompt))
        begun = time.perf_counter()
        block.generate(ids, options.new)
        middle = time.perf_counter()
        generate(dense, ids, options.new)
        seconds = middle - begun, time.perf_counter() - middle
        tokens = options.batch * options.new
        total = prompt + options.new
        blocks = block.blocks.initial_state(options.batch, -(-total // options.block_length))
        within = block.tokens.stack.initial_state(options.batch, block.tokens.capacity)
        run = {
            "prompt": prompt,
            "block tokens a second": tokens / seconds[0],
            "vanilla tokens a second": tokens / seconds[1],
            "ratio": seconds[1] / seconds[0],
            "cache bytes, block decoder": sum(state.nbytes for state in blocks),
            "cache bytes, token decoder": sum(state.nbytes for state in within),
            "cache bytes, vanilla": sum(
                state.nbytes for state in dense.initial_state(options.batch, total).layers
            ),
        }
        print(run, flush=True)
        found["runs"].append(run)
        if options.json:
            write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
