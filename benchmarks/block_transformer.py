"""Tokens a second of a Block Transformer over those of a vanilla decoder with as many layers.

    python benchmarks/block_transformer.py [--new 128] [--prompts 512,1024] [--processor] [--json FILE]

Both write with caches and greedily; the time includes reading the prompt. The paper compares at equal
perplexity: both are trained equally long on bytes of WikiText-2 first (or on Python's source where that is
absent), and their perplexities of a byte stand beside. Cache bytes stand beside what the paper predicts: a
block_length-th in the block decoder, and a constant.
"""

import json
from functools import partial
from typing import Any

import torch
from command import read_options
from torch import Tensor, nn

from manyhead import data
from manyhead.demonstration import machine
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.networks.block_transformer import BlockTransformer
from manyhead.networks.generation import generate
from manyhead.networks.language import text_bytes
from manyhead.systems.block_transformer import BLOCK, CONTEXT, ROWS, loss_of, train, vanilla, windows
from manyhead.training.budget import affordable_steps


def texts() -> tuple[str, Tensor, Tensor]:
    """Bytes to train on and to judge on, and where they are from."""
    try:
        names = "wikitext2_valid", "wikitext2_test"
        train, test = (text_bytes(data.load(name, fetch=False)) for name in names)
        return "WikiText-2", train, test
    except InputError:
        ids = text_bytes(data.load("python_source"))
        cut = len(ids) * 9 // 10
        return "Python's source", ids[:cut], ids[cut:]


def mean_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return loss_of(model, ids).mean()


def perplexity(model: nn.Module, ids: Tensor) -> float:
    """Of a byte, over 64 windows."""
    starts = torch.linspace(0, len(ids) - CONTEXT, 64).long()[:, None]
    with torch.no_grad():
        parts = [loss_of(model, ids[s + torch.arange(CONTEXT)]).mean() for s in starts.split(16)]
    return float(torch.stack(parts).mean().exp())


def main() -> None:
    options, clock = read_options(
        __doc__,
        batch=32,
        new=128,
        channels=128,
        layers=4,
        train_seconds=40,
        prompts="512,1024,2048,4096",
    )
    torch.manual_seed(0)
    half = options.layers // 2
    dense = vanilla(options.channels, options.layers)
    block = BlockTransformer.build(
        256, options.channels, (half, options.layers - half), 8, block_length=BLOCK
    )
    found: dict[str, Any] = {"machine": machine(), **vars(options), "block_length": BLOCK}
    where, text, test = texts()
    example = windows(text, ROWS)
    models: dict[str, nn.Module] = {"vanilla": dense, "block": block}
    rivals = [partial(mean_loss, model, example) for model in models.values()]
    steps = affordable_steps(options.train_seconds, rivals) if options.train_seconds else 0
    for name, model in models.items():
        model.zero_grad()
        train(model, text, steps)
        found[f"perplexity of a byte, {name}"] = perplexity(model.eval(), test)
    print(where, steps, "steps:", {key: value for key, value in found.items() if "perplexity" in key})
    found |= {"trained on": where, "steps": steps, "runs": []}
    for prompt in map(int, options.prompts.split(",")):
        ids = torch.randint(256, (options.batch, prompt))
        begun = clock()
        block.generate(ids, options.new)
        middle = clock()
        generate(dense, ids, options.new)
        seconds = middle - begun, clock() - middle
        tokens = options.batch * options.new
        total = prompt + options.new
        blocks = block.blocks.initial_state(options.batch, -(-total // BLOCK))
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
        # half the layers and a block_length-th of the entries; block_length + P - 1 entries in the other half
        run["predicted cache bytes, block decoder"] = (
            run["cache bytes, vanilla"] / options.layers * half * (-(-total // BLOCK) / total)
        )
        run["predicted cache bytes, token decoder"] = (
            run["cache bytes, vanilla"]
            / options.layers
            * (options.layers - half)
            * (BLOCK + block.tokens.count - 1)
            / total
        )
        print(run, flush=True)
        found["runs"].append(run)
        if options.json:
            write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
