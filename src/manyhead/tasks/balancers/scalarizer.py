"""Any TorchJD scalarizer as a balancer: the losses become one number, without a gradient for each task.

TorchJD 0.18, Quinton and Rey, 2024, arXiv 2406.16232. Each scalarizer cites its own paper there:
geometric mean (GLS), dynamic weight averaging (DWA), FAMO, IMTL-L, smooth Tchebycheff (STCH), random
loss weighting (RLW) and others.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Scalarisation
from manyhead.tasks.balancers.torchjd import memory, plain_name, remember

# names under which a scalarizer is known besides its own, and those that an aggregator has already
ALIASES = {"gls": "GeometricMean", "rlw": "Random"}
TAKEN = ("Constant", "Mean", "Random", "Scalarizer", "Sum")


def scalarizers() -> dict[str, type[nn.Module]]:
    """TorchJD's scalarizers by lower-case name, such as 'famo', 'dwa' or 'geometricmean'."""
    from torchjd import scalarization

    names = {name.lower(): name for name in scalarization.__all__ if name not in TAKEN} | ALIASES
    return {short: getattr(scalarization, name) for short, name in names.items()}


class TorchJDScalarizer(Scalarisation):
    """Combine the losses with a TorchJD scalarizer.

    What it learns by the same backward pass (UW, IMTL-L) is trained with the network; what it learns by
    itself (FAMO's logits, after each step) or remembers (DWA's epochs) is saved and resumed.

    Args:
        scalarizer: name of a scalarizer.
        parameters: what its constructor takes, such as `shape=2` (the number of tasks) for FAMO.

    Raises:
        InputError: if the name is unknown or a parameter is not accepted; in `backward`, if it cannot
            combine the losses of a batch, for example because a task has no label there.
    """

    def __init__(self, scalarizer: str, **parameters: Any) -> None:
        super().__init__()
        known = scalarizers()
        kind = known.get(plain_name(scalarizer))
        if kind is None:
            raise InputError(f"scalarizer must be one of {sorted(known)}, got {scalarizer!r}")
        try:
            built = kind(**parameters)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{kind.__name__} cannot be built with {parameters}: {error}; "
                f"it takes {inspect.signature(kind)}"
            ) from error
        # one that updates itself stays out of the module tree: its logits are not the optimizer's
        self._held: tuple[Any] = (built,)
        if not hasattr(built, "update"):
            self.learned = built

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimise."""
        combined: Tensor = self._try(self._held[0], losses)
        return combined

    def after_step(self, recompute: Callable[[], Mapping[str, Tensor]]) -> None:
        """Let FAMO see the losses of the same batch after the update."""
        if hasattr(self._held[0], "update"):
            with torch.no_grad():
                self._try(self._held[0].update, recompute())

    def after_epoch(self) -> None:
        """Let DWA close the epoch."""
        if hasattr(self._held[0], "step"):
            self._held[0].step()

    def _try(self, function: Callable[[Tensor], Any], losses: Mapping[str, Tensor]) -> Any:
        values = torch.stack([loss.reshape(()) for loss in losses.values()])
        built = self._held[0]
        if hasattr(built, "update"):
            built.to(values.device, values.dtype)
        try:
            return function(values)
        except ValueError as error:
            raise InputError(f"{type(built).__name__} cannot combine {list(losses)}: {error}") from error

    def get_extra_state(self) -> dict[str, Any]:
        """What the scalarizer remembers between steps."""
        built = self._held[0]
        own = getattr(built, "_optimizer", None)
        return {
            "memory": memory(built),
            "logits": None if not hasattr(built, "update") else built._w.detach().clone(),
            "optimizer": None if own is None else own.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` gave."""
        built = self._held[0]
        remember(built, state["memory"])
        if state["logits"] is not None:
            with torch.no_grad():
                built._w.copy_(state["logits"])
        if state["optimizer"] is not None:
            built._optimizer = torch.optim.Adam([built._w], lr=built.lr, weight_decay=built.weight_decay)
            built._optimizer.load_state_dict(state["optimizer"])
