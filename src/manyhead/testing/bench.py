"""The small problems on which balancers are tried, and how their gradients are compared."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.tasks import Balancer, LinearHead, Losses, MultiTask, Task

Build = Callable[[Sequence[str]], Balancer]
Gradients = dict[str, Tensor | None]


class Bench:
    """A network with regression heads on fixed data, and one backward pass of a balancer over it.

    Args:
        build: makes the balancer from the names of the tasks.
        names: names of the tasks.
        told: what the balancer is told unless a check says otherwise: 'shared', 'representation'.
    """

    def __init__(self, build: Build, names: Sequence[str], told: Sequence[str] = ("shared",)) -> None:
        self.build, self.names, self.told = build, list(names), tuple(told)

    def model(self, alike: bool = False, dtype: torch.dtype = torch.float64) -> MultiTask:
        """The network, the same at each call; with `alike` every head has the same weights."""
        generator = torch.Generator().manual_seed(5)
        network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh())
        heads = [LinearHead(3) for _ in self.names]
        model = MultiTask(
            network,
            [Task(name, head, nn.functional.mse_loss) for name, head in zip(self.names, heads, strict=True)],
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if alike:
                for head in heads[1:]:
                    head.load_state_dict(heads[0].state_dict())
        model.network.unused = nn.Parameter(torch.ones(2))
        return model.to(dtype)

    def batch(self, alike: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """Eight samples; with `alike` every task has the same targets."""
        generator = torch.Generator().manual_seed(6)
        inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64).to(dtype)
        targets = {
            name: torch.randn(8, generator=generator, dtype=torch.float64).to(dtype) for name in self.names
        }
        if alike:
            targets = dict.fromkeys(self.names, targets[self.names[0]])
        return {"inputs": inputs, "targets": targets}

    def losses(
        self,
        model: MultiTask,
        batch: dict[str, Any],
        scale: Mapping[str, float] | None = None,
        order: Sequence[str] | None = None,
    ) -> Losses:
        """The losses of a batch, scaled by task, in an order of tasks."""
        found = model.losses(batch)
        values = {name: found[name] * (scale or {}).get(name, 1.0) for name in order or found}
        return Losses(values, representation=found.representation, shared=found.shared)

    def gradients(
        self,
        *,
        model: MultiTask | None = None,
        batch: dict[str, Any] | None = None,
        balancer: Balancer | None = None,
        scale: Mapping[str, float] | None = None,
        order: Sequence[str] | None = None,
        told: Sequence[str] | None = None,
    ) -> Gradients:
        """The gradients that a balancer leaves on a fresh model, from a fixed random state.

        Args:
            told: what the balancer is told; that of the bench if left out.
        """
        model = model or self.model()
        batch = batch or self.batch()
        balancer = balancer or self.balancer()
        torch.manual_seed(0)

        def forward() -> Losses:
            return self.losses(model, batch, scale, order)

        losses = forward()
        known = {name: getattr(losses, name) for name in (self.told if told is None else told)}
        balancer.backward(losses, recompute=forward, **known)
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    def balancer(self, names: Sequence[str] | None = None) -> Balancer:
        """A new balancer in double precision."""
        return self.build(list(names or self.names)).to(torch.float64)

    def shared(self, gradients: Gradients) -> Tensor:
        """The shared part of gradients as one vector."""
        return torch.cat(
            [g.flatten() for name, g in gradients.items() if name.startswith("network") and g is not None]
        )

    def of_task(self, name: str) -> Gradients:
        """The ordinary gradient of one task."""
        model = self.model()
        self.losses(model, self.batch())[name].backward()
        return {key: parameter.grad for key, parameter in model.named_parameters()}


class Samples:
    """The samples of one batch as a data set."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.held = batch

    def __len__(self) -> int:
        return len(self.held["inputs"])

    def batch(self, indices: Tensor) -> dict[str, Any]:
        """Some of the samples."""
        return {
            "inputs": self.held["inputs"][indices],
            "targets": {name: target[indices] for name, target in self.held["targets"].items()},
        }


def close(first: Tensor, second: Tensor, what: str, tolerance: float = 1e-6) -> None:
    """Fail where two tensors differ by more than a share of the largest entry."""
    error = float((first - second).abs().max() / second.abs().max().clamp(min=1e-30))
    assert error <= tolerance, f"{what}: relative difference {error:.1e}"


def parallel(first: Tensor, second: Tensor, what: str) -> None:
    """Fail where two gradients do not point the same way."""
    cosine = float(nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))
    assert cosine > 1 - 1e-5, f"{what}: the cosine is {cosine:.6f}"


def compare(first: Gradients, second: Gradients, what: str, tolerance: float = 0.0) -> None:
    """Fail where two sets of gradients differ; with no tolerance, by one bit."""
    for name, gradient in first.items():
        other = second[name]
        assert (gradient is None) == (other is None), f"{what}: {name} has a gradient on one side only"
        if gradient is not None and other is not None:
            if tolerance == 0:
                assert torch.equal(gradient, other), f"{what}: {name} differs"
            else:
                close(gradient, other, f"{what}: {name}", tolerance)
