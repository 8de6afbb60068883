"""The state of a run: what is committed at a checkpoint, and put back on resume."""

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from manyhead.errors import InputError
from manyhead.tasks.balancers import Balancer
from manyhead.training.checkpoint import CheckpointError, RunFolder
from manyhead.training.processes import gather, share_buffers
from manyhead.training.seeds import random_state, set_random_state
from manyhead.training.settings import NonFiniteLoss, Position, Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def identity(
    train: Any, balancer: Balancer, optimizer: Optimizer, settings: Settings, processes: int
) -> dict[str, Any]:
    """What must stay the same for a run to go on as if it had not stopped; epochs may grow."""
    return {
        "samples": len(train),
        "batch_size": settings.batch_size,
        "accumulate": settings.accumulate,
        "drop_last": settings.drop_last,
        "seed": settings.seed,
        "balancer": type(balancer).__name__,
        "optimizer": type(optimizer).__name__,
        "processes": processes,
        "monitor": settings.monitor,
        "mode": settings.mode,
    }


def save(
    folder: RunFolder,
    parts: dict[str, Any],
    identity: dict[str, Any],
    position: Position,
    fabric: "Fabric",
    best: dict[str, Any] | None = None,
) -> None:
    """Commit a checkpoint from the first process; every process fails if it could not.

    Args:
        parts: name -> module, optimizer or schedule (or None) with a state dict.
        identity: what a resumed run is compared with.
        position: how far the run is.
        best: the weights, if this epoch is the best so far.

    Raises:
        CheckpointError: if a file could not be written.
        NonFiniteLoss: if a weight is not finite; the checkpoint before it stays.
    """
    share_buffers(fabric, parts["model"])
    # a balancer remembers what it saw in its own process
    remembered = parts["balancer"].state_dict()
    everyone = gather(fabric, (random_state(), position.sums, position.counts, remembered))
    failure: Exception | None = None
    if fabric.is_global_zero:
        try:
            for name, parameter in parts["model"].named_parameters():
                if not torch.isfinite(parameter).all():
                    raise NonFiniteLoss(
                        f"the weight {name!r} is not finite after step {position.step}; the last "
                        f"checkpoint in {folder.path} stays"
                    )
            state = {name: None if part is None else part.state_dict() for name, part in parts.items()}
            state |= {
                "identity": identity,
                "position": asdict(position),
                "processes": everyone,
                "precision": fabric._precision.state_dict(),
            }
            if best is not None and position.best_epoch is not None:
                folder.save_best(position.best_epoch, best)
            folder.save(state, position.best_epoch)
        except (OSError, NonFiniteLoss, TypeError) as error:
            failure = error
    if fabric.world_size > 1:
        told = fabric.broadcast(None if failure is None else str(failure))
        if told is not None and failure is None:
            failure = CheckpointError(f"the first process could not save: {told}")
    if failure is not None:
        raise failure


def other_version(folder: RunFolder) -> CheckpointError:
    """The error for a whole checkpoint whose contents another version of this package laid out."""
    return CheckpointError(
        f"the checkpoint in {folder.path} was written by another version of manyhead and cannot be continued "
        "by this one: continue it with that version, or remove the folder to train anew"
    )


def restore(folder: RunFolder, parts: dict[str, Any], identity: dict[str, Any], fabric: "Fabric") -> Position:
    """Put everything back as the checkpoint says, the generators last.

    Raises:
        InputError: if the run in the folder was made with other settings or parts.
        CheckpointError: if the checkpoint cannot be read, or another version laid it out.
    """
    state = folder.load()
    known = {"identity", "position", "processes", "precision", *parts}
    if not isinstance(state, dict) or known - state.keys():
        raise other_version(folder)
    if set(state["position"]) != {field.name for field in fields(Position)}:
        raise other_version(folder)
    for key, value in identity.items():
        if (held := state["identity"].get(key)) != value:
            raise InputError(
                f"the run in {folder.path} was made with {key}={held!r}, it cannot go on with {value!r}"
            )
    for name, part in parts.items():
        if (part is None) != (state[name] is None):
            with_or_without = "with" if part is None else "without"
            raise InputError(f"the run in {folder.path} was made {with_or_without} a {name}")
        if part is not None:
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"the {name} does not fit the run in {folder.path}: {error}") from error
    fabric._precision.load_state_dict(state["precision"])
    position = Position(**state["position"])
    try:
        generators, position.sums, position.counts, remembered = state["processes"][fabric.global_rank]
    except (TypeError, ValueError, IndexError):
        raise other_version(folder) from None
    parts["balancer"].load_state_dict(remembered)
    set_random_state(generators)
    return position
