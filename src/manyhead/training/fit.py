"""fit(): the arguments of a training run, and its start in one or several processes."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from manyhead.errors import InputError
from manyhead.tasks.balancers import Balancer, Sum
from manyhead.training.checkpoint import run_folder
from manyhead.training.loop import Run
from manyhead.training.order import Order, shuffled
from manyhead.training.processes import from_message, to_message
from manyhead.training.schedules import Schedule, each_epoch
from manyhead.training.seeds import seeded
from manyhead.training.settings import Fitted, LossFunction, Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
    settings.check(train)
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
        _train,  # type: ignore[arg-type]
        model,
        train,
        balancer,
        optimizer,
        plan,
        settings,
    )
    if weights is not None:  # trained in another process
        held = from_message(weights)
        model.load_state_dict(held["model"])
        balancer.load_state_dict(held["balancer"])
    result: Fitted = fitted
    return result


def _train(
    fabric: "Fabric",
    model: nn.Module,
    train: Any,
    balancer: Balancer,
    optimizer: Any,
    plan: Schedule | None,
    settings: Settings,
) -> tuple[Fitted, tuple[Any, bytes] | None]:
    """Train in this process; hand the weights back where it is not the caller's."""
    with (
        seeded(settings.seed + fabric.global_rank),
        run_folder(settings.folder, resume=settings.resume, writes=fabric.is_global_zero) as folder,
    ):
        fitted = Run(fabric, model, train, balancer, optimizer, plan, settings, folder).go()
    if type(fabric.strategy.launcher).__name__ != "_MultiProcessingLauncher":
        return fitted, None
    return fitted, to_message({"model": model.state_dict(), "balancer": balancer.state_dict()})
