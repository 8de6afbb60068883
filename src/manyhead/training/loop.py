"""The one training loop of the library, on Lightning Fabric.

Notable:
- the order of samples is a function of seed and epoch, so a checkpoint only needs a position;
- a checkpoint is one file, committed by one rename; a killed run resumes to the same final weights,
  bit for bit on CPU;
- with several processes each batch is split over them and gradients are averaged after the balancer has
  done its work, so every balancer works there, and the update is that of the whole batch;
- the history is part of the checkpoint; the logs are written from it.
"""

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from manyhead.errors import InputError
from manyhead.tasks.balancers import Balancer, frozen_statistics
from manyhead.tasks.balancers.base import check_losses
from manyhead.training.checkpoint import RunFolder
from manyhead.training.logs import Logs, Row
from manyhead.training.processes import average_gradients, gather, on_cpu, share_weights
from manyhead.training.progress import Bars
from manyhead.training.schedules import Schedule
from manyhead.training.settings import Fitted, NonFiniteLoss, Position, Settings
from manyhead.training.state import identity, restore, save

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WHOLE_MODEL_TYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


class Run:
    """One run in one process: what is trained, with what, and how far it is.

    Args:
        fabric: device, precision and processes.
        model, train, balancer, optimizer, plan: as `fit` takes them, `plan` being its schedule.
        settings: the other arguments of `fit`.
        folder: where the run is kept, held open, or None.
    """

    def __init__(
        self,
        fabric: "Fabric",
        model: nn.Module,
        train: Any,
        balancer: Balancer,
        optimizer: Any,
        plan: Schedule | None,
        settings: Settings,
        folder: RunFolder | None,
    ) -> None:
        self.fabric, self.model, self.train, self.balancer = fabric, model, train, balancer
        self.settings, self.plan, self.folder = settings, plan, folder
        model.to(fabric.device, WHOLE_MODEL_TYPES.get(str(fabric._precision.precision)))
        balancer.to(fabric.device)
        self.parameters = [p for part in (model, balancer) for p in part.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(optimizer, model, balancer)
        self.steps_in_epoch = math.ceil(len(settings.batches(len(train), 0)) / settings.accumulate)
        steps = max(1, self.steps_in_epoch * settings.epochs)
        self.scheduler = None if plan is None else plan.build(self.optimizer, steps)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if settings.monitor is None:
                raise InputError("a plateau schedule needs monitor, the value that it watches")
            if self.scheduler.mode != settings.mode:
                raise InputError(
                    f"mode of the plateau schedule is {self.scheduler.mode!r} but mode is {settings.mode!r}"
                )
        # what steps: Fabric unscales gradients there where precision asks for it
        self.stepping: Any = fabric.setup_optimizers(self.optimizer)
        self.parts = {
            "model": model,
            "balancer": balancer,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }
        self.identity = identity(train, balancer, self.optimizer, settings, fabric.world_size)
        self.position = Position()
        self.best: dict[str, Any] | None = None
        self.batch: Any = None  # the last one, for balancers that look at it again after the step
        if folder is not None and folder.has_checkpoint:
            self.position = restore(folder, self.parts, self.identity, fabric)
            if self.position.best_epoch is not None:
                self.best = folder.load_best(self.position.best_epoch)
        share_weights(fabric, model, balancer)

    def go(self) -> Fitted:
        """Train to the end, and put the best weights into the model."""
        s, position = self.settings, self.position
        was_training = self.model.training
        started = time.perf_counter() - position.seconds
        first = self.fabric.is_global_zero
        with (
            Logs(self.folder.path if self.folder and first else None, s.logs, position.history) as logs,
            Bars(s.epochs, self.steps_in_epoch, shown=s.progress and first) as bars,
        ):
            while position.epoch < s.epochs and not position.stopped:
                self._train_epoch(started, bars)
                improved = self._close_epoch(started)
                self._save(self.best if improved else None)
                logs.add(position.history)
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.train(was_training)
        return Fitted(
            history=position.history,
            best_epoch=position.best_epoch,
            best_value=position.best_value,
            steps=position.step,
            seconds=position.seconds,
            stopped=position.stopped or "epochs",
            folder=s.folder,
        )

    def _train_epoch(self, started: float, bars: Bars) -> None:
        """The rest of the epoch in hand."""
        s, position = self.settings, self.position
        todo = s.batches(len(self.train), position.epoch)
        self.model.train()
        bars.epoch(position.epoch, position.batch // s.accumulate)
        while position.batch < len(todo):
            group = todo[position.batch : position.batch + s.accumulate]
            self._step(group)
            position.step += 1
            position.batch += len(group)
            if self.scheduler is not None and self.plan is not None and self.plan.every == "step":
                self.scheduler.step()
            bars.step(position.sums, position.counts)
            at_end = position.batch >= len(todo)  # the end of the epoch saves anyway
            if s.checkpoint_every and position.step % s.checkpoint_every == 0 and not at_end:
                position.seconds = time.perf_counter() - started
                self._save()

    def _step(self, group: list[Tensor]) -> None:
        """One optimizer step from the mean gradient of a group of batches."""
        self.stepping.zero_grad(set_to_none=True)
        found = False
        for indices in group:
            found |= self._gradients(indices, 1 / len(group))
        if not average_gradients(self.fabric, self.parameters, found):
            return  # no sample of the group has a label
        if self.settings.clip_norm is not None:
            self.fabric.clip_gradients(
                self.model, self.stepping, max_norm=self.settings.clip_norm, error_if_nonfinite=False
            )
        self.stepping.step()
        self.balancer.after_step(lambda: self._again(self.batch))

    def _gradients(self, indices: Tensor, share: float) -> bool:
        """Add `share` of the gradient of one batch; False if it has no loss at all."""
        fabric = self.fabric
        if fabric.world_size > 1:
            # the part of this process; its mean counts as many times as it has samples
            whole = len(indices)
            indices = indices[fabric.global_rank :: fabric.world_size]
            share *= len(indices) * fabric.world_size / whole
            if len(indices) == 0:
                return False
        batch = self.batch = fabric.to_device(take(self.train, indices))

        def scaled(losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            # what a scalarisation makes of the losses need not scale with them: its scalar is scaled instead
            if share == 1 or self.balancer.scalarises:
                return losses
            return {name: loss * share for name, loss in losses.items()}

        def backward(total: Tensor) -> None:
            fabric.backward(total if share == 1 or not self.balancer.scalarises else total * share)

        losses = self._losses(batch)
        if not isinstance(losses, Mapping):
            raise InputError(f"losses must return task name -> scalar loss, got {type(losses).__name__}")
        if not losses:
            return False
        check_losses(losses)
        self._record(losses, len(indices))
        self.balancer.backward(
            scaled(losses),
            shared=getattr(losses, "shared", None),
            representation=getattr(losses, "representation", None),
            recompute=lambda: scaled(self._again(batch)),
            backward=backward,
        )
        return True

    def _losses(self, batch: Any) -> Mapping[str, Tensor]:
        with self.fabric.autocast():
            return self.settings.losses(self.model, batch)

    def _again(self, batch: Any) -> Mapping[str, Tensor]:
        """The losses of a batch that the running statistics have counted already."""
        with frozen_statistics(self.model):
            return self._losses(batch)

    def _record(self, losses: Mapping[str, Tensor], samples: int) -> None:
        """Add the losses to the epoch's means; refuse one that is not finite."""
        position = self.position
        values = torch.stack([loss.detach().reshape(()) for loss in losses.values()]).tolist()
        for name, value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                folder = self.settings.folder
                raise NonFiniteLoss(
                    f"the loss of task {name!r} is {value} in epoch {position.epoch + 1}, step "
                    f"{position.step + 1}; "
                    + ("nothing was saved" if folder is None else f"the last checkpoint in {folder} stays")
                )
            position.sums[name] = position.sums.get(name, 0.0) + value * samples
            position.counts[name] = position.counts.get(name, 0) + samples

    def _close_epoch(self, started: float) -> bool:
        """Validate, step the schedule, choose; whether this epoch is the best so far."""
        s, position = self.settings, self.position
        self.balancer.after_epoch()
        row = self._measure()
        position.seconds = time.perf_counter() - started
        row["seconds"] = position.seconds - sum(epoch["seconds"] for epoch in position.history)
        position.history.append(row)
        position.epoch, position.batch = position.epoch + 1, 0
        position.sums, position.counts = {}, {}
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(row[str(s.monitor)])
        elif self.scheduler is not None and self.plan is not None and self.plan.every == "epoch":
            self.scheduler.step()
        if s.monitor is not None and s.better(row[s.monitor], position.best_value):
            position.best_epoch, position.best_value = position.epoch, row[s.monitor]
            self.best = on_cpu(self.model.state_dict())
            return True
        if s.patience is not None and position.epoch - (position.best_epoch or 0) >= s.patience:
            position.stopped = "patience"
        return False

    def _measure(self) -> Row:
        """Mean training losses and the validation of the epoch that ended."""
        s, position, fabric = self.settings, self.position, self.fabric
        row: Row = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
        }
        everyone = gather(fabric, (position.sums, position.counts))
        for name in dict.fromkeys(name for sums, _ in everyone for name in sums):
            total = sum(sums.get(name, 0.0) for sums, _ in everyone)
            row[f"train/{name}"] = total / sum(counts.get(name, 0) for _, counts in everyone)
        if s.validate is not None:
            self.model.eval()
            with torch.no_grad(), fabric.autocast():
                row |= {name: float(value) for name, value in s.validate(self.model).items()}
            self.model.train()
            if fabric.world_size > 1:
                row = fabric.broadcast(row)  # the same choice of epoch everywhere
        if s.monitor is not None and s.monitor not in row:
            raise InputError(f"monitor must be one of {sorted(row)}, got {s.monitor!r}")
        return row

    def _save(self, best: dict[str, Any] | None = None) -> None:
        if self.folder is not None:
            save(self.folder, self.parts, self.identity, self.position, self.fabric, best)


def take(train: Any, indices: Tensor) -> Any:
    """A batch of a data set: built at once where it can, else collated from its samples."""
    if hasattr(train, "batch"):
        return train.batch(indices)
    from torch.utils.data import default_collate

    return default_collate([train[int(index)] for index in indices])


def build_optimizer(optimizer: Any, model: nn.Module, balancer: Balancer) -> Optimizer:
    """The optimizer over the model's parameters and, without weight decay, the balancer's."""
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
    groups: list[dict[str, Any]] = [{"params": weights}, *([extra] if learned else [])]
    built: Any = torch.optim.AdamW(groups, lr=1e-3) if optimizer is None else optimizer(groups)
    if not isinstance(built, Optimizer):
        raise InputError(f"optimizer must return a torch Optimizer, got {type(built).__name__}")
    return built
