"""Flat regions: every task's gradient also where a step uphill in its own loss leads.

Phan et al., 'Improving Multi-task Learning via Seeking Task-based Flat Regions', 2022,
arXiv 2211.13723, section 4 and algorithm 1; the adaptive perturbation is that of Kwon et al., 'ASAM',
2021, arXiv 2102.11600, equation 4. One step takes m + 1 forward and 2 m backward passes for m tasks, and
keeps two matrices of m gradients.

Notation: theta are the shared parameters, phi_i those that task i alone uses.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Balancer, check_losses, leaves
from manyhead.tasks.balancers.torchjd import TorchJD

MODES = ("decomposed", "direct", "second", "each", "erm")
TINY = 1e-12  # beside the norm of a gradient, which may be zero


class FlatRegions(Balancer):
    """Aggregate the gradients at the weights and what a sharpness-aware perturbation adds to them.

    Task i is looked at once more at `theta + eps_i, phi_i + eps_i'`, where its own loss is highest to first
    order. The gradient there is split, `g_i^SAM = g_i^loss + g_i^flat`; both sets are aggregated.
    Parameters of one task alone get that task's gradient at the perturbed point.

    Args:
        aggregator: name of a TorchJD aggregator ('cagrad', 'mgda', 'mean' ...) or a module that maps
            `(tasks, parameters)` to `(parameters,)`.
        rho: radius of the perturbation of theta; with `adaptive` it is measured relative to each weight.
        rho_heads: radius for phi_i, `rho` if left out.
        adaptive: scale the perturbation by the weights, `eps = rho w^2 g / ||w g||`. With a radius of 2 this
            is what the published runs use; around 0.05 is usual without it.
        norm_scope: 'separate' norms for theta and phi_i (the paper), or one 'joint' norm for each task (the
            authors' Multi-MNIST code).
        mode: 'decomposed' A(g^loss) + A(g^flat); 'direct' A(g^SAM); 'second' aggregates the two summands
            once more; 'each' aggregates the pair of every task, then the tasks; 'erm' is the aggregator
            alone, one forward pass, like a radius of zero.
        parameters: what the aggregator's constructor takes, such as `c=0.4` for CAGrad.

    Raises:
        InputError: if an argument cannot be used; in `backward`, if there is no `recompute` or it leaves out
            a task.
    """

    def __init__(
        self,
        aggregator: str | nn.Module = "mean",
        *,
        rho: float = 2.0,
        rho_heads: float | None = None,
        adaptive: bool = True,
        norm_scope: Literal["separate", "joint"] = "separate",
        mode: Literal["decomposed", "direct", "second", "each", "erm"] = "decomposed",
        **parameters: Any,
    ) -> None:
        super().__init__()
        for name, radius in {"rho": rho, "rho_heads": rho_heads}.items():
            if radius is not None and not 0 <= radius < float("inf"):
                raise InputError(f"{name} must be finite and not negative, got {radius}")
        if norm_scope not in ("separate", "joint"):
            raise InputError(f"norm_scope must be 'separate' or 'joint', got {norm_scope!r}")
        if norm_scope == "joint" and rho_heads is not None:
            raise InputError("rho_heads is for norm_scope 'separate'; a joint norm has one radius, rho")
        if mode not in MODES:
            raise InputError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.rho, self.rho_heads = float(rho), float(rho if rho_heads is None else rho_heads)
        self.adaptive, self.norm_scope, self.mode = adaptive, norm_scope, mode
        # an aggregator may remember its steps, so each set of gradients has its own
        self.of_loss = TorchJD(aggregator, **parameters)
        self.of_flat = TorchJD(copy.deepcopy(self.of_loss.aggregator))
        self.of_pair = TorchJD(copy.deepcopy(self.of_loss.aggregator))

    def backward(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[nn.Parameter] | None = None,
        representation: Tensor | Sequence[Tensor] | None = None,
        recompute: Callable[[], Mapping[str, Tensor]] | None = None,
        backward: Callable[[Tensor], object] = torch.autograd.backward,
    ) -> None:
        """Add the balanced gradient; `recompute` must run the same batch, `backward` is not used."""
        check_losses(losses)
        perturbed = self.mode != "erm" and (self.rho > 0 or self.rho_heads > 0)
        if perturbed and recompute is None:
            raise InputError("flat regions look at the losses twice: recompute must be given")
        theta, phi = split_parameters(losses, shared)
        like = theta[0] if theta else next(iter(losses.values()))
        at_weights = like.new_empty(len(losses), sum(p.numel() for p in theta))  # rows g_i^loss
        heads: list[list[Tensor]] = []  # h_i
        last = len(losses) - 1
        for index, (name, loss) in enumerate(losses.items()):
            heads.append(gradients(loss, theta, phi[name], at_weights[index], retain=index < last))
        if not perturbed:
            combined = combine(self.of_loss, at_weights)
        else:
            assert recompute is not None
            uphill = torch.empty_like(at_weights)  # g_i^SAM
            for index, name in enumerate(losses):
                steps = self.perturbation(at_weights[index], theta, heads[index], phi[name])
                with moved([*theta, *phi[name]], steps):
                    again = recompute()
                    if name not in again:
                        raise InputError(f"recompute() gave no loss of task {name!r}; it has {list(again)}")
                    heads[index] = gradients(again[name], theta, phi[name], uphill[index], retain=False)
            combined = self._join(at_weights, uphill)
        for part, parameter in zip(torch.split(combined, [p.numel() for p in theta]), theta, strict=True):
            add_gradient(parameter, part.view_as(parameter))
        for name, found in zip(losses, heads, strict=True):
            for parameter, gradient in zip(phi[name], found, strict=True):
                add_gradient(parameter, gradient)

    def perturbation(
        self, row: Tensor, theta: Sequence[Tensor], head: Sequence[Tensor], phi: Sequence[Tensor]
    ) -> list[Tensor]:
        """The step uphill of one task for every parameter of `[*theta, *phi]`.

        Args:
            row: g_i^loss `(parameters,)`.
            theta: the shared parameters.
            head: gradient of every parameter of phi_i.
            phi: the parameters of task i alone.
        """
        parts = torch.split(row, [p.numel() for p in theta])
        pairs = [(part.view_as(p), p.detach()) for part, p in zip(parts, theta, strict=True)]
        own = [(gradient, p.detach()) for gradient, p in zip(head, phi, strict=True)]
        if self.norm_scope == "joint":
            return self._ascend([*pairs, *own], self.rho)
        return [*self._ascend(pairs, self.rho), *self._ascend(own, self.rho_heads)]

    def _ascend(self, pairs: Sequence[tuple[Tensor, Tensor]], rho: float) -> list[Tensor]:
        """Steps for (gradient, weight) pairs under one norm."""
        if not pairs:
            return []
        scaled = [w.abs().mul_(g) if self.adaptive else g for g, w in pairs]
        norm = torch.stack([part.norm() for part in scaled]).norm() + TINY
        return [
            (w.abs() * part if self.adaptive else part) * (rho / norm)
            for part, (_, w) in zip(scaled, pairs, strict=True)
        ]

    def _join(self, at_weights: Tensor, uphill: Tensor) -> Tensor:
        """The shared gradient from g^loss and g^SAM, each (tasks, parameters); the second is overwritten."""
        if self.mode == "direct":
            return combine(self.of_loss, uphill)
        flat = uphill.sub_(at_weights)  # g_i^flat
        if self.mode == "each":
            for index in range(len(flat)):
                flat[index] = combine(self.of_pair, torch.stack([at_weights[index], flat[index]]))
            return combine(self.of_loss, flat)
        parts = [combine(self.of_loss, at_weights), combine(self.of_flat, flat)]
        if self.mode == "second":
            return combine(self.of_pair, torch.stack(parts))
        return parts[0] + parts[1]


def combine(aggregator: TorchJD, rows: Tensor) -> Tensor:
    """Aggregate `(tasks, parameters)`; gradients that all vanish give zero (IMTL-G would divide by it)."""
    vanish = rows.numel() == 0 or float(torch.linalg.vector_norm(rows, torch.inf)) == 0
    return torch.zeros_like(rows[0]) if vanish else aggregator.combine(rows)


def split_parameters(
    losses: Mapping[str, Tensor], shared: Iterable[nn.Parameter] | None
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The shared parameters that a loss reaches, and by task those that are its own.

    Args:
        losses: task name -> loss with a graph.
        shared: the parameters that count as shared; if left out, those that two losses reach.
    """
    reached = {name: leaves(loss) for name, loss in losses.items()}
    uses = Counter(leaf for found in reached.values() for leaf in found)
    if shared is None:
        theta = [leaf for leaf, count in uses.items() if count > 1 or len(losses) == 1]
    else:
        theta = [parameter for parameter in shared if parameter in uses]
    chosen = set(theta)
    return theta, {name: [leaf for leaf in found if leaf not in chosen] for name, found in reached.items()}


def gradients(
    loss: Tensor, theta: Sequence[Tensor], phi: Sequence[Tensor], row: Tensor, retain: bool
) -> list[Tensor]:
    """Write the gradient over theta into a row `(parameters,)`; return that of every parameter of phi."""
    found = torch.autograd.grad(loss, [*theta, *phi], retain_graph=retain, materialize_grads=True)
    if theta:
        torch.cat([gradient.flatten() for gradient in found[: len(theta)]], out=row)
    return list(found[len(theta) :])


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad`."""
    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient


@contextmanager
def moved(parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add steps to parameters, and put the very same values back."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.add_(step)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
