"""Where tasks pull apart: cosines between their gradients, layer by layer and attention head by head.

The angle between task gradients is the measure of conflict of Yu et al., 'Gradient Surgery for Multi-Task
Learning', 2020, arXiv 2001.06782, section 2.3. One number for the whole network hides where it arises: here
the gradients are compared over the parameters of each layer, and over the slices of each attention head.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Balancer
from manyhead.tasks.balancers.flat import split_parameters

WHOLE = "whole network"
# projections whose output, or input, is divided over the heads; fused ones are laid out (3, heads, head_dim)
BY_ROWS = ("q_proj", "k_proj", "v_proj")
FUSED = ("qkv", "in_proj")
BY_COLUMNS = ("out_proj", "proj")

Slicer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Group:
    """Parameters, or slices of them, over which gradients are compared.

    Args:
        name: what the report calls it.
        parts: parameters and what to take of a gradient of their shape.
        layer: place of its layer in depth, from 1; 0 for the whole network.
        head: number of the attention head, from 0; None for a layer.
    """

    name: str
    parts: tuple[tuple[Tensor, Slicer], ...]
    layer: int
    head: int | None = None


def _all(gradient: Tensor) -> Tensor:
    return gradient


def layers(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The layers of a network in order of depth: containers are opened, everything else is one layer.

    Args:
        network: its children, and those of every `Sequential`, `ModuleList` and module that holds a
            `ModuleList`, are taken one by one.

    Returns:
        name of the module -> its trainable parameters; modules without any are left out.
    """
    found: dict[str, list[nn.Parameter]] = {}

    def walk(module: nn.Module, name: str, opened: bool) -> None:
        children = list(module.named_children())
        opened = opened or isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        opened = opened or any(isinstance(child, nn.ModuleList) for _, child in children)
        direct = opened and bool(children) and not attention_heads(module)
        held = [p for p in module.parameters(recurse=not direct) if p.requires_grad]
        if held:
            found[name or "network"] = held
        if direct:
            for short, child in children:
                walk(child, f"{name}.{short}" if name else short, False)

    walk(network, "", True)
    return found


def _rows(heads: int, head: int) -> Slicer:
    return lambda gradient: gradient.unflatten(0, (heads, -1))[head]


def _fused(heads: int, head: int) -> Slicer:
    return lambda gradient: gradient.unflatten(0, (3, heads, -1))[:, head]


def _columns(heads: int, head: int) -> Slicer:
    return lambda gradient: gradient.unflatten(1, (heads, -1))[:, head]


def attention_heads(module: nn.Module) -> int:
    """Number of attention heads that a module itself has; 0 where it says nothing of heads."""
    for name in ("heads", "num_heads"):
        count = getattr(module, name, None)
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
    return 0


def _head_parts(module: nn.Module, heads: int, head: int) -> list[tuple[nn.Parameter, Slicer]]:
    """What of a module's projections belongs to one head."""
    parts: list[tuple[nn.Parameter, Slicer]] = []

    def take(parameter: Any, slicer: Slicer, width: int) -> None:
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad and width % heads == 0:
            parts.append((parameter, slicer))

    def both(linear: Any, slicer: Slicer, times: int) -> None:
        if isinstance(linear, nn.Linear) and linear.out_features % (times * heads) == 0:
            take(linear.weight, slicer, linear.out_features)
            take(linear.bias, slicer, linear.out_features)

    # keys and values that groups of heads share belong to no single one
    shared = getattr(module, "kv_heads", heads) != heads
    for name in BY_ROWS:
        if name == "q_proj" or not shared:
            both(getattr(module, name, None), _rows(heads, head), 1)
    for name in FUSED:
        both(getattr(module, name, None), _fused(heads, head), 3)
    if isinstance(module, nn.MultiheadAttention):
        for parameter in (module.in_proj_weight, module.in_proj_bias):
            take(parameter, _fused(heads, head), 0)
    for name in BY_COLUMNS:
        linear = getattr(module, name, None)
        if isinstance(linear, nn.Linear):
            take(linear.weight, _columns(heads, head), linear.in_features)
    return parts


def groups(network: nn.Module, shared: Iterable[nn.Parameter] | None = None) -> list[Group]:
    """The whole network, its layers, and the attention heads inside each.

    Args:
        network: as `layers` takes it.
        shared: only these parameters; all of the network if left out.

    Raises:
        InputError: if no parameter is left.
    """
    wanted = None if shared is None else {id(p) for p in shared}

    def kept(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        return [p for p in parameters if p.requires_grad and (wanted is None or id(p) in wanted)]

    named = {name: held for name, found in layers(network).items() if (held := kept(found))}
    if not named:
        raise InputError("the network has no shared trainable parameter to compare gradients over")
    every = [p for held in named.values() for p in held]
    found = [Group(WHOLE, tuple((p, _all) for p in every), 0)]
    modules = dict(network.named_modules())
    for depth, (name, held) in enumerate(named.items(), 1):
        found.append(Group(name, tuple((p, _all) for p in held), depth))
        own = {id(p) for p in held}
        for inner, module in modules.items():
            count = attention_heads(module)
            direct = [p for p in module.parameters() if id(p) in own]
            # a module that holds another one with heads leaves them to it
            nested = any(attention_heads(child) for child in module.modules() if child is not module)
            if not count or not direct or nested:
                continue
            for head in range(count):
                parts = tuple((p, cut) for p, cut in _head_parts(module, count, head) if id(p) in own)
                if parts:
                    found.append(Group(f"{inner or 'network'} head {head}", parts, depth, head))
    return found


def conflicts(losses: Mapping[str, Tensor], compared: Sequence[Group]) -> dict[str, list[float]]:
    """Cosines between the gradients of every pair of tasks, over each group.

    Args:
        losses: task name -> scalar loss; their graph is kept.
        compared: from `groups`.

    Returns:
        name of the group -> one cosine for each pair, in the order of `itertools.combinations(losses, 2)`;
        NaN where a task sends no gradient there.
    """
    parameters = list(dict.fromkeys(p for group in compared for p, _ in group.parts))
    found: list[dict[Tensor, Tensor]] = []
    if not parameters:
        return {}
    for loss in losses.values():
        slopes = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        found.append(dict(zip(parameters, slopes, strict=True)))
    cosines = {}
    for group in compared:
        rows = torch.stack(
            [torch.cat([cut(slope[p]).reshape(-1) for p, cut in group.parts]).double() for slope in found]
        )
        size = rows.norm(dim=1)
        gram = (rows @ rows.T) / (size[:, None] * size)  # 0 / 0 is NaN, as promised
        cosines[group.name] = [float(gram[i, j]) for i, j in combinations(range(len(found)), 2)]
    return cosines


@dataclass(frozen=True)
class Look:
    """The conflicts of one batch.

    Args:
        step: batches seen before this one.
        tasks: the tasks that had a label.
        cosines: as `conflicts` returns them, pairs of `tasks`.
    """

    step: int
    tasks: list[str]
    cosines: dict[str, list[float]]


class ConflictWatch(Balancer):
    """A balancer that looks at the tasks' gradients before it leaves them to another one.

    Give it to `fit` as the balancer: it measures every so many batches, changes nothing of the update, and
    its looks are saved and resumed with the run.

    Args:
        balancer: what makes the update.
        network: whose layers and heads are compared; None to look at all shared parameters together.
        every: a look at the first of so many batches.

    Attributes:
        looks: the conflicts measured so far.
        seconds: processor time that measuring has cost.

    Raises:
        InputError: if `every` is below one.
    """

    def __init__(self, balancer: Balancer, network: nn.Module | None = None, every: int = 20) -> None:
        super().__init__()
        if every < 1:
            raise InputError(f"every must be at least 1, got {every}")
        self.balancer, self.every = balancer, every
        self.scalarises = balancer.scalarises
        self._network: tuple[nn.Module | None] = (network,)  # held outside: no part of the state
        self.looks: list[Look] = []
        self.seconds, self.batches = 0.0, 0

    def backward(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[nn.Parameter] | None = None,
        representation: Tensor | Sequence[Tensor] | None = None,
        recompute: Callable[[], Mapping[str, Tensor]] | None = None,
        backward: Callable[[Tensor], object] = torch.autograd.backward,
    ) -> None:
        """Look, then do what the balancer does."""
        shared = None if shared is None else list(shared)
        if self.batches % self.every == 0 and len(losses) > 1:
            started = time.process_time()
            found = conflicts(losses, self._compared(losses, shared))
            self.looks.append(Look(self.batches, list(losses), found))
            self.seconds += time.process_time() - started
        self.batches += 1
        self.balancer.backward(
            losses, shared=shared, representation=representation, recompute=recompute, backward=backward
        )

    def _compared(
        self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter] | None
    ) -> Sequence[Group]:
        network = self._network[0]
        if network is not None:
            return groups(network, shared)
        held = split_parameters(losses, shared)[0]
        return [Group(WHOLE, tuple((p, _all) for p in held), 0)] if held else []

    def after_step(self, recompute: Callable[[], Mapping[str, Tensor]]) -> None:
        """Pass on to the balancer."""
        self.balancer.after_step(recompute)

    def after_epoch(self) -> None:
        """Pass on to the balancer."""
        self.balancer.after_epoch()

    def get_extra_state(self) -> dict[str, Any]:
        """The looks so far."""
        return {
            "looks": [[look.step, look.tasks, look.cosines] for look in self.looks],
            "seconds": self.seconds,
            "batches": self.batches,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` gave."""
        self.looks = [Look(step, tasks, cosines) for step, tasks, cosines in state["looks"]]
        self.seconds, self.batches = state["seconds"], state["batches"]


__all__ = ["ConflictWatch", "Group", "Look", "attention_heads", "conflicts", "groups", "layers"]
