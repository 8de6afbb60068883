"""Processor time and memory of one step under a balancer, against the plain sum of the losses.

    python benchmarks/balancers.py --tasks 2,4,8,16

A step is one forward pass, the balancer's gradients and nothing of the optimizer. Passes through encoder
and heads are counted by hooks. The saliency method's second pass and the flat regions' passes should cost
what their papers imply: for m tasks, m + 1 forward and 2 m backward passes against 1 and m.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from manyhead.files import write_text
from manyhead.tasks import Balancer, FlatRegions, LinearHead, LogSum, MultiTask, RepMTL, Sum, Task, TorchJD

BALANCERS: dict[str, Callable[[], Balancer]] = {
    "sum": Sum,
    "log sum": LogSum,
    "rep-mtl": RepMTL,
    "mean": partial(TorchJD, "mean"),
    "flat mean": partial(FlatRegions, "mean"),
    "pcgrad": partial(TorchJD, "pcgrad"),
    "flat pcgrad": partial(FlatRegions, "pcgrad"),
}


def build(tasks: int, width: int, depth: int) -> MultiTask:
    """A deep perceptron under linear heads."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    heads = [Task(f"task{i}", LinearHead(width, 8), nn.functional.cross_entropy) for i in range(tasks)]
    return MultiTask(nn.Sequential(*layers), heads)


def measure(name: str, tasks: int, *, width: int, depth: int, samples: int, steps: int) -> dict[str, object]:
    """Median processor seconds, forward and backward passes of the encoder, and bytes of gradients held."""
    model, balancer = build(tasks, width, depth), BALANCERS[name]()
    batch = {
        "inputs": torch.randn(samples, width),
        "targets": {task: torch.randint(8, (samples,)) for task in model.names},
    }
    passes = {"forward": 0, "backward": 0}

    def forward(module: nn.Module, arguments: object, output: torch.Tensor) -> None:
        passes["forward"] += 1
        output.register_hook(lambda gradient: passes.__setitem__("backward", passes["backward"] + 1))

    # the first layer is reached only by passes that go through the whole encoder
    handle = model.network[0].register_forward_hook(forward)
    taken = []
    for step in range(steps + 1):
        started = time.process_time()
        losses = model.losses(batch)
        balancer.backward(
            losses,
            shared=losses.shared,
            representation=losses.representation,
            recompute=partial(model.losses, batch),
        )
        taken.append(time.process_time() - started)
        model.zero_grad()
        if step == 0:
            counted = dict(passes)
            handle.remove()
    return {"balancer": name, "tasks": tasks, "seconds": sorted(taken[1:])[steps // 2], **counted}


def main() -> None:
    """Measure every balancer for every number of tasks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="2,4,8,16")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", help="JSON file")
    chosen = parser.parse_args()
    options = {key: getattr(chosen, key) for key in ("width", "depth", "samples", "steps")}
    rows = []
    print(f"{'balancer':14s} {'tasks':>5s} {'ms':>8s} {'over sum':>9s} {'forward':>8s} {'backward':>9s}")
    for tasks in map(int, chosen.tasks.split(",")):
        base = None
        for name in BALANCERS:
            row = measure(name, tasks, **options)
            base = base or row["seconds"]
            row["over_sum"] = row["seconds"] / base
            rows.append(row)
            print(
                f"{name:14s} {tasks:5d} {1000 * row['seconds']:8.1f} {row['over_sum']:9.2f} "
                f"{row['forward']:8d} {row['backward']:9d}",
                flush=True,
            )
    if chosen.out:
        result = {"options": options, "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_text(chosen.out, json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
