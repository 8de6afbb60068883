"""Processor time and memory of one step under a balancer, against the plain sum of the losses.

    python benchmarks/balancers.py --tasks 2,4,8,16 --out benchmarks/results/balancers.json

A step is one forward pass and the balancer's gradients, nothing of the optimizer. Passes through the encoder
are counted by hooks. Two columns say whether a method costs what its paper implies:

- flat regions: m + 1 forward and 2 m backward passes for m tasks; `implied` is their measured time, each
  pass timed alone, plus what the aggregator by itself takes twice;
- Rep-MTL: one more backward pass through each head and one double backward pass, none through the encoder;
  `implied` is a step that differentiates the plainest function of the saliencies, their sum of squares.

`peak` is the most memory that tensors held at once, beyond what stood before the step.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from manyhead.files import write_text
from manyhead.tasks import (
    Balancer,
    FlatRegions,
    LinearHead,
    LogSum,
    Losses,
    MultiTask,
    PooledHead,
    RepMTL,
    Sum,
    Task,
    TorchJD,
)

LIMIT = 1.1  # of a step's time over the implied one


class Saliencies(RepMTL):
    """Rep-MTL with the plainest regulariser: what its passes cost without its terms."""

    def combine(self, losses: Losses) -> Tensor:
        """Log losses and the mean square of the saliencies."""
        found = self.saliency(losses, losses.representation)
        return LogSum().combine(losses) + found.square().mean()

    def backward(self, losses: Losses, **options: object) -> None:
        """Differentiate it once."""
        self.combine(losses).backward()


BALANCERS: dict[str, Callable[[], Balancer]] = {
    "sum": Sum,
    "log sum": LogSum,
    "saliencies": Saliencies,
    "rep-mtl": RepMTL,
    "mean": partial(TorchJD, "mean"),
    "flat mean": partial(FlatRegions, "mean"),
    "pcgrad": partial(TorchJD, "pcgrad"),
    "flat pcgrad": partial(FlatRegions, "pcgrad"),
}


class ChannelsLast(nn.Module):
    """Maps with channels last, as heads read them."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, height, width, channels)."""
        return x.movedim(1, -1)


def convolutional(tasks: int) -> tuple[MultiTask, Tensor]:
    """Eight convolutions on images of 32 x 32 down to 32 x 8 x 8, heads of a perceptron at each position."""
    layers: list[nn.Module] = []
    channels, strides = (1, 32, 32, 32, 64, 64, 64, 64, 32), (1, 1, 2, 1, 1, 2, 1, 1)
    for before, after, stride in zip(channels[:-1], channels[1:], strides, strict=True):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.Tanh()]

    def head() -> nn.Module:
        return PooledHead(nn.Sequential(nn.Linear(32, 32), nn.Tanh(), LinearHead(32, 8)))

    encoder = nn.Sequential(*layers, ChannelsLast())
    return MultiTask(encoder, _tasks(tasks, head)), torch.randn(64, 1, 32, 32)


def perceptron(tasks: int) -> tuple[MultiTask, Tensor]:
    """Eight layers of width 256 on 256 samples under linear heads: little network for many comparisons."""
    layers = [layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.Tanh())]
    model = MultiTask(nn.Sequential(*layers), _tasks(tasks, lambda: LinearHead(256, 8)))
    return model, torch.randn(256, 256)


def _tasks(count: int, head: Callable[[], nn.Module]) -> list[Task]:
    return [Task(f"task{index}", head(), nn.functional.cross_entropy) for index in range(count)]


NETWORKS = {"convolutional": convolutional, "perceptron": perceptron}


class Bench:
    """One network with its batch.

    Args:
        network: name of it.
        tasks: number of tasks.
    """

    def __init__(self, network: str, tasks: int) -> None:
        torch.manual_seed(0)
        self.model, inputs = NETWORKS[network](tasks)
        self.batch = {
            "inputs": inputs,
            "targets": {task: torch.randint(8, (len(inputs),)) for task in self.model.names},
        }

    def losses(self) -> Losses:
        """The losses of the batch."""
        return self.model.losses(self.batch)

    def step(self, balancer: Balancer) -> None:
        """Gradients of one step."""
        losses = self.losses()
        balancer.backward(
            losses,
            shared=losses.shared,
            representation=losses.representation,
            recompute=self.losses,
        )
        self.model.zero_grad()

    def passes(self, balancer: Balancer) -> dict[str, int]:
        """Forward and backward passes through the whole encoder in one step."""
        counted = {"forward": 0, "backward": 0}

        def forward(module: nn.Module, arguments: object, output: Tensor) -> None:
            counted["forward"] += 1
            output.register_hook(lambda gradient: counted.__setitem__("backward", counted["backward"] + 1))

        # the first layer is reached only by passes that go through the whole encoder
        handle = self.model.network[0].register_forward_hook(forward)
        self.step(balancer)
        handle.remove()
        return counted

    def peak(self, balancer: Balancer) -> int:
        """Bytes held at most during one step, beyond those before it."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.step(balancer)
        held = most = 0
        for event in found.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    def one_forward(self) -> None:
        """The passes that flat regions repeat: forward."""
        self.losses()

    def one_task(self) -> None:
        """A forward pass and one task's gradient."""
        loss = next(iter(self.losses().values()))
        torch.autograd.grad(loss, [*self.model.shared_parameters(), *self.model.task("task0").parameters()])


def seconds(steps: int, *functions: Callable[[], object]) -> list[float]:
    """Median processor seconds of each function, taken in turns so that a busy machine disturbs all alike."""
    taken: list[list[float]] = [[] for _ in functions]
    for step in range(steps + 1):
        for mine, function in zip(taken, functions, strict=True):
            started = time.process_time()
            function()
            if step:
                mine.append(time.process_time() - started)
    return [median(mine) for mine in taken]


def measure(network: str, tasks: int, steps: int) -> list[dict[str, object]]:
    """One row for each balancer."""
    bench = Bench(network, tasks)
    balancers = {name: build() for name, build in BALANCERS.items()}
    rows = {
        name: {
            "network": network,
            "tasks": tasks,
            "balancer": name,
            **bench.passes(balancer),
            "peak": bench.peak(balancer),
        }
        for name, balancer in balancers.items()
    }
    functions = [partial(bench.step, balancer) for balancer in balancers.values()]
    *found, forward, both = seconds(steps, *functions, bench.one_forward, bench.one_task)
    backward = both - forward
    taken = dict(zip(balancers, found, strict=True))
    # what aggregating itself takes: the aggregator's step without its passes
    aggregate = {
        name: max(0.0, taken[name] - forward - tasks * backward)
        for name in ("mean", "pcgrad")
        if name in taken
    }
    implied = {"rep-mtl": taken["saliencies"]} | {
        f"flat {name}": (tasks + 1) * forward + 2 * tasks * backward + 2 * aggregate[name]
        for name in aggregate
    }
    for name, row in rows.items():
        row |= {"seconds": taken[name], "over_sum": taken[name] / taken["sum"]}
        if name in implied:
            row |= {"implied": implied[name], "over_implied": taken[name] / implied[name]}
        if name.startswith("flat "):
            row["over_plain_aggregator"] = taken[name] / taken[name.removeprefix("flat ")]
    return list(rows.values())


def main() -> None:
    """Measure every balancer for every network and number of tasks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="2,4,8,16")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--without", default="", help="balancers to leave out, such as 'flat pcgrad'")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--out", help="JSON file")
    chosen = parser.parse_args()
    for name in filter(None, chosen.without.split(",")):
        del BALANCERS[name]
    rows = []
    titles = ("network", "balancer", "tasks", "ms", "over sum", "fwd", "bwd", "peak MB", "over implied")
    print("{:14s} {:12s} {:>5s} {:>8s} {:>9s} {:>4s} {:>4s} {:>8s} {:>13s}".format(*titles))
    for network in chosen.networks.split(","):
        for tasks in map(int, chosen.tasks.split(",")):
            for row in measure(network, tasks, chosen.steps):
                rows.append(row)
                extra = f"{row['over_implied']:13.2f}" if "over_implied" in row else ""
                print(
                    f"{network:14s} {row['balancer']:12s} {tasks:5d} {1000 * row['seconds']:8.1f} "
                    f"{row['over_sum']:9.2f} {row['forward']:4d} {row['backward']:4d} "
                    f"{row['peak'] / 1e6:8.1f} {extra}",
                    flush=True,
                )
    missed = [row for row in rows if row.get("over_implied", 0) > LIMIT]
    print(f"{len(missed)} rows above {LIMIT} of what the passes imply")
    if chosen.out:
        result = {"steps": chosen.steps, "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_text(chosen.out, json.dumps(result | {"limit": LIMIT, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
