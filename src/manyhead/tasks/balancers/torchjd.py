"""Any TorchJD aggregator as a balancer: one gradient a task, combined by the aggregator.

TorchJD 0.18, Quinton and Rey, 'Jacobian Descent for Multi-Objective Optimization', 2024,
arXiv 2406.16232. The aggregators themselves (UPGrad, MGDA, PCGrad, CAGrad, Nash-MTL, IMTL-G, ...) are
TorchJD's; each cites its own paper there.
"""

import contextlib
import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Balancer, check_losses, leaves


def aggregators() -> dict[str, type[nn.Module]]:
    """TorchJD's aggregators by lower-case name, such as 'upgrad' or 'alignedmtl'."""
    from torchjd import aggregation

    found: dict[str, type[nn.Module]] = {}
    for name in aggregation.__all__:
        value = getattr(aggregation, name)
        if (
            inspect.isclass(value)
            and issubclass(value, aggregation.Aggregator)
            and not name.endswith("Aggregator")
        ):
            found[name.lower()] = value
    return found


class TorchJD(Balancer):
    """Combine one gradient a task with a TorchJD aggregator.

    Parameters that one task alone uses receive the ordinary gradient of that task, whatever the
    aggregator does. The rows that are aggregated are gradients over the shared parameters; with a
    `representation` they are reached through it, so that every head is passed once (`mtl_backward`).

    Args:
        aggregator: name of an aggregator, upper or lower case, or an aggregator.
        chunk: how many tasks are differentiated at once; 1 needs the least memory and works with every
            operation, None takes all together by `torch.vmap`.
        at: 'parameters', or 'representation' to aggregate the gradients there and pass the shared
            network once, the upper bound of Sener and Koltun, 2018, arXiv 1810.04650, section 3.3.
        parameters: what the aggregator's own constructor takes, such as `c=0.4` for CAGrad.

    Raises:
        InputError: if the name is unknown, a parameter is not accepted, or the aggregator needs a
            package that is absent.
    """

    def __init__(
        self,
        aggregator: str | nn.Module,
        *,
        at: Literal["parameters", "representation"] = "parameters",
        chunk: int | None = 1,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if at not in ("parameters", "representation"):
            raise InputError(f"at must be 'parameters' or 'representation', got {at!r}")
        if isinstance(aggregator, str):
            known = aggregators()
            kind = known.get(plain_name(aggregator))
            if kind is None:
                raise InputError(f"aggregator must be one of {sorted(known)}, got {aggregator!r}")
            try:
                aggregator = kind(**parameters)
            except (TypeError, ValueError, ImportError) as error:
                raise InputError(
                    f"{kind.__name__} cannot be built with {parameters}: {error}; it takes "
                    f"{inspect.signature(kind)}"
                ) from error
        elif parameters:
            raise InputError(
                f"parameters {sorted(parameters)} are for a name, but an aggregator object was given"
            )
        # held outside the module tree: its buffers appear while training, so that an ordinary
        # state dict could not be loaded into a fresh one; get_extra_state keeps its memory instead
        self._held: tuple[Any] = (aggregator,)
        self.at = at
        self.chunk = chunk

    @property
    def aggregator(self) -> nn.Module:
        """The TorchJD aggregator."""
        aggregator: nn.Module = self._held[0]
        return aggregator

    def backward(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[nn.Parameter] | None = None,
        representation: Tensor | Sequence[Tensor] | None = None,
        recompute: Callable[[], Mapping[str, Tensor]] | None = None,
        backward: Callable[[Tensor], object] = torch.autograd.backward,
    ) -> None:
        """Aggregate the tasks' gradients; `recompute` and `backward` are not used."""
        check_losses(losses)
        values = list(losses.values())
        if representation is None:
            if self.at == "representation":
                raise InputError("at='representation' needs losses that carry their representation")
            self._over_parameters(values, shared)
            return
        features = [representation] if isinstance(representation, Tensor) else list(representation)
        if self.at == "representation":
            self._over_representation(values, features)
        else:
            self._through_representation(values, features, shared)

    def combine(self, rows: Tensor) -> Tensor:
        """Aggregate gradients `(tasks, parameters)` into one, `(parameters,)`."""
        with self._explained([]):
            combined: Tensor = self.aggregator(rows)
        return combined

    def _through_representation(
        self, values: list[Tensor], features: list[Tensor], shared: Iterable[nn.Parameter] | None
    ) -> None:
        """Pass the heads once, then one backward pass a task from the representation down."""
        from torchjd import autojac

        wanted = leaves(features)
        if shared is not None:  # one that no loss reaches must keep no gradient, as with the sum
            chosen = set(shared)
            wanted = [leaf for leaf in wanted if leaf in chosen]
        autojac.mtl_backward(values, features, shared_params=wanted, parallel_chunk_size=self.chunk)
        self._aggregate(wanted)

    def _over_parameters(self, values: list[Tensor], shared: Iterable[nn.Parameter] | None) -> None:
        """One backward pass a task over the shared parameters, one pass for all the others."""
        from torchjd import autojac

        reached = [leaves(value) for value in values]
        uses = Counter(leaf for found in reached for leaf in found)
        if shared is None:
            # a single task shares with nobody; its gradient still goes through the aggregator
            wanted = [leaf for leaf, count in uses.items() if count > 1 or len(values) == 1]
        else:
            wanted = [parameter for parameter in shared if parameter in uses]
        chosen = set(wanted)
        own = [leaf for leaf in uses if leaf not in chosen]
        if own:
            total = torch.stack([value.reshape(()) for value in values]).sum()
            torch.autograd.backward(total, inputs=own, retain_graph=bool(wanted))
        if wanted:
            autojac.backward(values, inputs=wanted, parallel_chunk_size=self.chunk)
            self._aggregate(wanted)

    def _over_representation(self, values: list[Tensor], features: list[Tensor]) -> None:
        """Aggregate the gradients at the representation, then pass the network once."""
        heads: dict[Tensor, None] = {}
        for value in values:
            heads |= dict.fromkeys(leaves(value, stop=features))
        wanted = [*features, *heads]
        rows, total = [], {head: torch.zeros_like(head) for head in heads}
        for value in values:
            found = torch.autograd.grad(value, wanted, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in found[: len(features)]]))
            for head, gradient in zip(heads, found[len(features) :], strict=True):
                total[head] += gradient
        for head, gradient in total.items():
            head.grad = gradient if head.grad is None else head.grad + gradient
        combined = self.combine(torch.stack(rows))
        parts = torch.split(combined, [feature.numel() for feature in features])
        torch.autograd.backward(
            features, [part.view_as(feature) for part, feature in zip(parts, features, strict=True)]
        )

    @contextlib.contextmanager
    def _explained(self, held: Iterable[Tensor]) -> Iterator[None]:
        """Name the aggregator where it refuses the tasks of a batch, and leave no Jacobian."""
        try:
            yield
        except ValueError as error:
            for parameter in held:
                if hasattr(parameter, "jac"):
                    del parameter.jac
            raise InputError(f"{type(self.aggregator).__name__} cannot combine the tasks: {error}") from error

    def _aggregate(self, wanted: Iterable[Tensor]) -> None:
        from torchjd import autojac

        # a parameter that no loss reaches has no Jacobian
        held = [parameter for parameter in wanted if getattr(parameter, "jac", None) is not None]
        if held:
            with self._explained(held):
                autojac.jac_to_grad(held, self._held[0])

    def get_extra_state(self) -> dict[str, Any]:
        """What the aggregator remembers between steps, as tensors, arrays and numbers."""
        return {name: memory(module) for name, module in self.aggregator.named_modules()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` gave."""
        for name, module in self.aggregator.named_modules():
            remember(module, state.get(name, {}))
            if hasattr(module, "_init_optim_problem") and vars(module).get("step", 0):
                module._init_optim_problem()  # Nash-MTL builds its solver at its first step


def plain_name(name: str) -> str:
    """'IMTL-G', 'imtl_g' and 'IMTLG' are one name."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def memory(module: nn.Module) -> dict[str, Any]:
    """A module's buffers and the plain values among its attributes."""
    held: dict[str, Any] = dict(module._buffers)
    for key, value in vars(module).items():
        if key in ("training", "_buffers", "_parameters", "_modules") or key.startswith("_non_persistent"):
            continue
        if value is None or isinstance(value, (Tensor, np.ndarray, float, int, bool, tuple, list)):
            held[key] = value
    return copy.deepcopy(held)


def remember(module: nn.Module, held: Mapping[str, Any]) -> None:
    """Put back what `memory` gave."""
    for key, value in copy.deepcopy(dict(held)).items():
        if key in module._buffers:
            module._buffers[key] = value
        else:
            setattr(module, key, value)
