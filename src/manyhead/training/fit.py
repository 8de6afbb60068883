"""fit(): the one training loop of the library, on Lightning Fabric.

Notable:
- the order of samples is a function of seed and epoch, so a checkpoint only needs a position;
- a checkpoint is one file, committed by one rename; a killed run resumes to the same final weights,
  bit for bit on CPU;
- with several processes each batch is split over them and gradients are averaged after the balancer has
  done its work, so every balancer works there, and the update is that of the whole batch;
- the history is part of the checkpoint; the logs are written from it.
"""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from manyhead.errors import InputError
from manyhead.tasks.balancers import Balancer, Sum
from manyhead.training.checkpoint import CheckpointError, RunFolder, run_folder
from manyhead.training.logs import Logs, Row, check_kinds
from manyhead.training.order import Order, batches, shuffled
from manyhead.training.progress import Bars
from manyhead.training.schedules import Schedule, each_epoch
from manyhead.training.seeds import random_state, seeded, set_random_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LossFunction = Callable[[Any, Any], Mapping[str, Tensor]]
WHOLE_MODEL_TYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


class NonFiniteLoss(RuntimeError):
    """A loss, or a weight about to be saved, is NaN or infinite; the message names task and step."""


@dataclass
class Fitted:
    """What a run did.

    Args:
        history: one dict an epoch: 'epoch', 'step', 'lr', 'train/<task>' (mean loss), what `validate`
            returned, and 'seconds' of the epoch.
        best_epoch: the epoch (from 1) whose weights the model now has; None without `monitor`, where
            the model has the last weights.
        best_value: its monitored value.
        steps: optimizer steps done in all.
        seconds: time spent in all, over all resumed parts.
        stopped: why the run ended: 'epochs', or 'patience'.
        folder: where the run is kept.
    """

    history: list[Row]
    best_epoch: int | None
    best_value: float | None
    steps: int
    seconds: float
    stopped: str = "epochs"
    folder: Path | None = None


@dataclass
class Position:
    """How far a run is: everything that a checkpoint holds besides weights and generators."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches of the epoch in hand that are done
    step: int = 0  # optimizer steps
    best_epoch: int | None = None
    best_value: float | None = None
    stopped: str = ""
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # task -> loss summed over samples, this epoch
    counts: dict[str, int] = field(default_factory=dict)  # task -> samples in that sum
    history: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """The arguments of `fit`, checked."""

    losses: LossFunction
    batch_size: int
    epochs: int
    validate: Callable[[Any], Mapping[str, float]] | None
    monitor: str | None
    mode: str
    patience: int | None
    order: Order
    drop_last: bool
    accumulate: int
    clip_norm: float | None
    seed: int
    resume: bool
    folder: Path | None
    checkpoint_every: int | None
    logs: tuple[str, ...]
    progress: bool

    def better(self, value: float, best: float | None) -> bool:
        """Whether a monitored value beats the best so far; NaN never does."""
        if best is None:
            return value == value
        return value < best if self.mode == "min" else value > best


def fit(
    model: nn.Module,
    train: Any,
    *,
    losses: LossFunction,
    batch_size: int,
    epochs: int,
    validate: Callable[[Any], Mapping[str, float]] | None = None,
    monitor: str | None = None,
    mode: Literal["min", "max"] = "min",
    patience: int | None = None,
    balancer: Balancer | None = None,
    optimizer: Optimizer | Callable[[list[dict[str, Any]]], Optimizer] | None = None,
    schedule: Schedule | Callable[[Optimizer], LRScheduler] | None = None,
    order: Order = shuffled,
    drop_last: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    seed: int = 0,
    precision: str = "32-true",
    accelerator: str = "cpu",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
    folder: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    logs: Iterable[str] = ("csv", "tensorboard"),
    progress: bool = False,
) -> Fitted:
    """Train a model; on return it holds the best weights, or the last ones without `monitor`.

    Args:
        model: the network; `losses` gets it as it is, so any of its methods may be called.
        train: a map-style data set: `len()`, and either `batch(indices)` for int64 indices `(n,)`,
            which builds a batch at once, or `__getitem__`, whose samples are collated.
        losses: `losses(model, batch)` -> task name -> scalar mean loss. A task without labels in the
            batch is left out. A `manyhead.tasks.Losses` also tells the balancer what is shared.
        batch_size: samples of one batch, over all processes together.
        epochs: passes over the data.
        validate: `validate(model)` -> name -> number; called after each epoch in evaluation mode,
            without gradients.
        monitor: which of these (or 'train/<task>') chooses the best epoch.
        mode: whether the lowest ('min') or highest ('max') value is best.
        patience: stop after so many epochs without a better value.
        balancer: how several losses become one update; their sum if left out. Its parameters are
            trained too, without weight decay.
        optimizer: called with parameter groups, such as `partial(torch.optim.Adam, lr=1e-3)`, or an
            optimizer over the model's parameters; AdamW with a rate of 1e-3 if left out.
        schedule: from `manyhead.training.schedules`, or `schedule(optimizer)` -> a torch scheduler,
            stepped each epoch.
        order: order of the samples, from `manyhead.training.order`.
        drop_last: leave out a last batch that is smaller.
        accumulate: batches whose gradients are averaged for one step.
        clip_norm: largest norm of the gradient.
        seed: of everything random; the caller's generators are given back as they were.
        precision: Fabric's names: '32-true', 'bf16-mixed', '16-mixed', '64-true', 'bf16-true' ...
        accelerator, devices, strategy: Fabric's, for strategies that keep whole copies ('auto', 'ddp',
            'ddp_spawn', 'ddp_fork'). 'ddp' starts the script again for each further device.
        folder: where checkpoint, best weights and logs go; nothing is written without it.
        resume: continue the run in `folder` if there is one.
        checkpoint_every: also save after so many steps; each epoch ends with a checkpoint anyway.
        logs: any of 'csv' (`metrics.csv`) and 'tensorboard'.
        progress: show bars in the terminal.

    Raises:
        InputError: if an argument cannot be used, `folder` holds a run and `resume` is off, or the run
            there was made with other settings.
        NonFiniteLoss: if a loss is NaN or infinite; the last checkpoint stays.
        CheckpointError: if the folder is in use or a file cannot be written; the last checkpoint stays.
    """
    settings = Settings(
        losses=losses,
        batch_size=batch_size,
        epochs=epochs,
        validate=validate,
        monitor=monitor,
        mode=mode,
        patience=patience,
        order=order,
        drop_last=drop_last,
        accumulate=accumulate,
        clip_norm=clip_norm,
        seed=seed,
        resume=resume,
        folder=None if folder is None else Path(folder),
        checkpoint_every=checkpoint_every,
        logs=tuple(logs),
        progress=progress,
    )
    _check(settings, train)
    balancer = Sum() if balancer is None else balancer
    if precision == "16-mixed" and not balancer.scalarises:
        raise InputError(
            f"precision '16-mixed' scales the loss, which {type(balancer).__name__} does not allow: "
            "use 'bf16-mixed' or '32-true'"
        )
    if isinstance(schedule, Schedule) or schedule is None:
        plan = schedule
    else:
        plan = each_epoch(schedule)
    from lightning_fabric import Fabric

    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"accelerator, devices, strategy or precision: {error}") from error
    if type(fabric.strategy).__name__ not in ("SingleDeviceStrategy", "DDPStrategy"):
        raise InputError(f"strategy must keep whole copies ('auto', 'ddp', 'ddp_spawn'), got {strategy!r}")
    fitted, weights = fabric.launch(
        _launched,  # type: ignore[arg-type]
        model,
        train,
        balancer,
        optimizer,
        plan,
        settings,
    )
    if weights is not None:  # trained in another process
        model.load_state_dict(weights["model"])
        balancer.load_state_dict(weights["balancer"])
    result: Fitted = fitted
    return result


def _check(s: Settings, train: Any) -> None:
    if not hasattr(train, "__len__") or not (hasattr(train, "batch") or hasattr(train, "__getitem__")):
        raise InputError(
            f"train must have a length and batch(indices) or __getitem__, got {type(train).__name__}"
        )
    if len(train) == 0:
        raise InputError("train must hold at least one sample, got none")
    for name in ("batch_size", "accumulate"):
        if getattr(s, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(s, name)}")
    for name in ("epochs", "seed"):
        if getattr(s, name) < 0:
            raise InputError(f"{name} must not be negative, got {getattr(s, name)}")
    for name in ("patience", "checkpoint_every", "clip_norm"):
        value = getattr(s, name)
        if value is not None and value <= 0:
            raise InputError(f"{name} must be positive or None, got {value}")
    if s.mode not in ("min", "max"):
        raise InputError(f"mode must be 'min' or 'max', got {s.mode!r}")
    if s.patience is not None and s.monitor is None:
        raise InputError("patience needs monitor, the value that must improve")
    check_kinds(s.logs)


def _launched(fabric: "Fabric", model: nn.Module, *rest: Any) -> tuple[Fitted, dict[str, Any] | None]:
    """Train in this process; hand the weights back where it is not the caller's."""
    fitted = _train(fabric, model, *rest)
    launcher = fabric.strategy.launcher
    if launcher is None or not getattr(launcher, "is_interactive_compatible", False):
        return fitted, None
    balancer = rest[1]
    held = {"model": model.state_dict(), "balancer": balancer.state_dict()}
    return fitted, _on_cpu(held)


def _train(
    fabric: "Fabric",
    model: nn.Module,
    train: Any,
    balancer: Balancer,
    optimizer: Any,
    plan: Schedule | None,
    s: Settings,
) -> Fitted:
    first = fabric.is_global_zero
    with (
        seeded(s.seed + fabric.global_rank),
        run_folder(s.folder, resume=s.resume, writes=first) as folder,
    ):
        dtype = WHOLE_MODEL_TYPES.get(str(fabric._precision.precision))
        model.to(fabric.device, dtype)
        balancer.to(fabric.device)
        parameters = [p for part in (model, balancer) for p in part.parameters() if p.requires_grad]
        bare = _optimizer(optimizer, model, balancer)
        steps_in_epoch = -(-len(_epoch_batches(train, 0, s)) // s.accumulate)
        scheduler = None if plan is None else plan.build(bare, max(1, steps_in_epoch * s.epochs))
        if isinstance(scheduler, ReduceLROnPlateau) and s.monitor is None:
            raise InputError("a plateau schedule needs monitor, the value that it watches")
        stepped: Any = fabric.setup_optimizers(bare)
        parts = {"model": model, "balancer": balancer, "optimizer": bare, "scheduler": scheduler}
        identity = _identity(train, balancer, bare, s, fabric.world_size)

        position = Position()
        best: dict[str, Any] | None = None
        if folder is not None and folder.has_checkpoint:
            position = _restore(folder, parts, identity, fabric)
            if position.best_epoch is not None:
                best = folder.load_best(position.best_epoch)
        _share_weights(fabric, parameters)
        started = time.perf_counter()
        before = position.seconds
        logs = Logs(folder.path, s.logs, position.history) if folder is not None and first else None
        bars = Bars(s.epochs, steps_in_epoch, shown=s.progress and first)
        with bars:
            while position.epoch < s.epochs and not position.stopped:
                epoch_started = time.perf_counter() - position.epoch_seconds
                todo = _epoch_batches(train, position.epoch, s)
                model.train()
                bars.epoch(position.epoch, position.batch // s.accumulate)
                while position.batch < len(todo):
                    group = todo[position.batch : position.batch + s.accumulate]
                    stepped.zero_grad(set_to_none=True)
                    updated = False
                    for indices in group:
                        updated |= _gradients(
                            fabric, model, train, indices, len(group), balancer, position, s
                        )
                    _average_gradients(fabric, parameters)
                    if updated or fabric.world_size > 1:
                        if s.clip_norm is not None:
                            fabric.clip_gradients(
                                model, stepped, max_norm=s.clip_norm, error_if_nonfinite=False
                            )
                        stepped.step()
                    position.step += 1
                    position.batch += len(group)
                    if scheduler is not None and plan is not None and plan.every == "step":
                        scheduler.step()
                    bars.step(position.sums, position.counts)
                    at_end = position.batch >= len(todo)
                    if s.checkpoint_every and position.step % s.checkpoint_every == 0 and not at_end:
                        position.epoch_seconds = time.perf_counter() - epoch_started
                        position.seconds = before + time.perf_counter() - started
                        _save(fabric, folder, parts, identity, position)

                row = _close_epoch(fabric, model, bare, position, s)
                row["seconds"] = time.perf_counter() - epoch_started
                position.history.append(row)
                position.epoch, position.batch, position.epoch_seconds = position.epoch + 1, 0, 0.0
                position.sums, position.counts = {}, {}
                if scheduler is not None and plan is not None and plan.every == "epoch":
                    if isinstance(scheduler, ReduceLROnPlateau):
                        scheduler.step(row[str(s.monitor)])
                    else:
                        scheduler.step()
                improved = s.monitor is not None and s.better(row[s.monitor], position.best_value)
                if improved:
                    position.best_epoch, position.best_value = position.epoch, row[str(s.monitor)]
                    best = _on_cpu(model.state_dict())
                elif s.patience is not None and position.epoch - (position.best_epoch or 0) >= s.patience:
                    position.stopped = "patience"
                position.seconds = before + time.perf_counter() - started
                _save(fabric, folder, parts, identity, position, best if improved else None)
                if logs is not None:
                    logs.add(position.history)
        if logs is not None:
            logs.close()
        if best is not None:
            model.load_state_dict(best)
    return Fitted(
        history=position.history,
        best_epoch=position.best_epoch,
        best_value=position.best_value,
        steps=position.step,
        seconds=position.seconds,
        stopped=position.stopped or "epochs",
        folder=s.folder,
    )


def _epoch_batches(train: Any, epoch: int, s: Settings) -> list[Tensor]:
    return batches(s.order(len(train), epoch, s.seed), s.batch_size, drop_last=s.drop_last)


def _take(train: Any, indices: Tensor) -> Any:
    """A batch of the data set."""
    if hasattr(train, "batch"):
        return train.batch(indices)
    from torch.utils.data import default_collate

    return default_collate([train[int(index)] for index in indices])


def _gradients(
    fabric: "Fabric",
    model: nn.Module,
    train: Any,
    indices: Tensor,
    group: int,
    balancer: Balancer,
    position: Position,
    s: Settings,
) -> bool:
    """Add the gradients of one batch; False if it has no loss at all."""
    whole = len(indices)
    share = 1.0 / group
    if fabric.world_size > 1:
        # the part of this process; its mean counts as many times as it has samples
        indices = indices[fabric.global_rank :: fabric.world_size]
        share *= len(indices) * fabric.world_size / whole
        if len(indices) == 0:
            return False
    batch = fabric.to_device(_take(train, indices))

    def forward() -> Mapping[str, Tensor]:
        with fabric.autocast():
            return s.losses(model, batch)

    values = forward()
    if not values:
        return False
    names = list(values)
    numbers = torch.stack([value.detach().reshape(()).double() for value in values.values()]).tolist()
    for name, number in zip(names, numbers, strict=True):
        if number != number or number in (float("inf"), float("-inf")):
            kept = f"the last checkpoint in {s.folder} stays" if s.folder else "nothing was saved"
            raise NonFiniteLoss(
                f"the loss of task {name!r} is {number} in epoch {position.epoch + 1}, step "
                f"{position.step + 1}; {kept}"
            )
        position.sums[name] = position.sums.get(name, 0.0) + number * len(indices)
        position.counts[name] = position.counts.get(name, 0) + len(indices)

    def scaled(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(found) if share == 1.0 else {name: value * share for name, value in found.items()}

    balancer.backward(
        scaled(values),
        shared=getattr(values, "shared", None),
        representation=getattr(values, "representation", None),
        recompute=lambda: scaled(forward()),
        backward=fabric.backward,
    )
    return True


def _average_gradients(fabric: "Fabric", parameters: list[nn.Parameter]) -> None:
    """Mean over the processes, in one message; a gradient absent here counts as zero."""
    if fabric.world_size == 1:
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=fabric.device)
    present = fabric.all_reduce(present, reduce_op="sum")  # type: ignore[assignment]
    used = [p for p, there in zip(parameters, present.tolist(), strict=True) if there > 0]
    if not used:
        return
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in used])
    flat = fabric.all_reduce(flat, reduce_op="mean")  # type: ignore[assignment]
    for parameter, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def _share_weights(fabric: "Fabric", parameters: list[nn.Parameter]) -> None:
    """Every process starts from the first one's weights."""
    if fabric.world_size > 1:
        for parameter in parameters:
            parameter.data.copy_(fabric.broadcast(parameter.data))


def _close_epoch(
    fabric: "Fabric", model: nn.Module, optimizer: Optimizer, position: Position, s: Settings
) -> Row:
    """Mean training losses and the validation of the epoch that ended."""
    sums, counts = position.sums, position.counts
    if fabric.world_size > 1:
        import torch.distributed as dist

        everyone: list[Any] = [None] * fabric.world_size
        dist.all_gather_object(everyone, (sums, counts))
        names = list(dict.fromkeys(name for part, _ in everyone for name in part))
        sums = {name: sum(part.get(name, 0.0) for part, _ in everyone) for name in names}
        counts = {name: sum(part.get(name, 0) for _, part in everyone) for name in names}
    row: Row = {
        "epoch": position.epoch + 1,
        "step": position.step,
        "lr": float(optimizer.param_groups[0]["lr"]),
    }
    row |= {f"train/{name}": sums[name] / counts[name] for name in sums}
    if s.validate is not None:
        model.eval()
        with torch.no_grad(), fabric.autocast():
            measured = s.validate(model)
        model.train()
        row |= {name: float(value) for name, value in measured.items()}
        if fabric.world_size > 1:
            row = fabric.broadcast(row)  # the same choice of epoch everywhere
    if s.monitor is not None and s.monitor not in row:
        raise InputError(f"monitor must be one of {sorted(row)}, got {s.monitor!r}")
    return row


def _optimizer(optimizer: Any, model: nn.Module, balancer: Balancer) -> Optimizer:
    """The optimizer over the model's and the balancer's parameters."""
    learned = [p for p in balancer.parameters() if p.requires_grad]
    extra = {"params": learned, "weight_decay": 0.0}
    if isinstance(optimizer, Optimizer):
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in learned):
            optimizer.add_param_group(extra)
        return optimizer
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise InputError("model has no trainable parameter")
    groups: list[dict[str, Any]] = [{"params": weights}]
    if learned:
        groups.append(extra)
    built: Any = torch.optim.AdamW(groups, lr=1e-3) if optimizer is None else optimizer(groups)
    if not isinstance(built, Optimizer):
        raise InputError(f"optimizer must return a torch Optimizer, got {type(built).__name__}")
    return built


def _identity(
    train: Any, balancer: Balancer, optimizer: Optimizer, s: Settings, processes: int
) -> dict[str, Any]:
    """What must be the same for a run to go on as if it had not stopped; epochs may grow."""
    return {
        "samples": len(train),
        "batch_size": s.batch_size,
        "accumulate": s.accumulate,
        "drop_last": s.drop_last,
        "seed": s.seed,
        "balancer": type(balancer).__name__,
        "optimizer": type(optimizer).__name__,
        "processes": processes,
        "monitor": s.monitor,
        "mode": s.mode,
    }


def _save(
    fabric: "Fabric",
    folder: RunFolder | None,
    parts: dict[str, Any],
    identity: dict[str, Any],
    position: Position,
    best: dict[str, Any] | None = None,
) -> None:
    """Commit a checkpoint; every process fails if the writing one does."""
    if folder is None:
        return
    generators: list[Any] = [random_state()]
    sums: list[Any] = [(position.sums, position.counts)]
    if fabric.world_size > 1:
        import torch.distributed as dist

        mine = (generators[0], sums[0])
        everyone: list[Any] = [None] * fabric.world_size
        dist.all_gather_object(everyone, mine)
        generators, sums = [part[0] for part in everyone], [part[1] for part in everyone]
    failure: Exception | None = None
    if fabric.is_global_zero:
        try:
            for name, parameter in parts["model"].named_parameters():
                if not torch.isfinite(parameter).all():
                    raise NonFiniteLoss(
                        f"the weight {name!r} is not finite after epoch {position.epoch}, step "
                        f"{position.step}; the last checkpoint in {folder.path} stays"
                    )
            state = {name: None if part is None else part.state_dict() for name, part in parts.items()}
            state |= {
                "identity": identity,
                "position": asdict(position),
                "sums": sums,
                "random": generators,
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


def _restore(
    folder: RunFolder, parts: dict[str, Any], identity: dict[str, Any], fabric: "Fabric"
) -> Position:
    """Put everything back as a checkpoint says."""
    state = folder.load()
    differing = [key for key, value in identity.items() if state["identity"].get(key) != value]
    if differing:
        key = differing[0]
        raise InputError(
            f"the run in {folder.path} was made with {key}={state['identity'].get(key)!r}, "
            f"it cannot go on with {identity[key]!r}"
        )
    for name, part in parts.items():
        if (part is None) != (state[name] is None):
            raise InputError(
                f"the run in {folder.path} was made {'with' if part is None else 'without'} a {name}"
            )
        if part is not None:
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise InputError(f"the {name} does not fit the run in {folder.path}: {error}") from error
    fabric._precision.load_state_dict(state["precision"])
    position = Position(**state["position"])
    position.sums, position.counts = state["sums"][fabric.global_rank]
    set_random_state(state["random"][fabric.global_rank])
    return position


def _on_cpu(tree: Any) -> Any:
    """A copy of nested tensors in main memory."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, Mapping):
        return {key: _on_cpu(value) for key, value in tree.items()}
    return copy.deepcopy(tree)
