"""A small training run that has every kind of state: what `manyhead chaos` disturbs."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manyhead.tasks import HomoscedasticUncertainty, LinearHead, Losses, MultiTask, Task
from manyhead.training.fit import fit
from manyhead.training.schedules import warmup_cosine
from manyhead.training.seeds import seed_everything


class Waves:
    """Sixty noisy points in four dimensions, with a number and a class to predict; some labels miss."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(60, 4, generator=generator)
        self.number = self.x.sin().sum(1)
        self.kind = (self.x[:, 0] > 0).long()
        self.number[::7] = float("nan")

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> dict[str, Any]:
        """Inputs and targets of some points."""
        return {
            "inputs": self.x[indices],
            "targets": {"number": self.number[indices], "kind": self.kind[indices]},
        }


def rehearse(folder: Path, resume: bool) -> Any:
    """Train for a fraction of a second and return what must not depend on interruptions."""
    seed_everything(1)
    network = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.1))
    model = MultiTask(
        network,
        [
            Task("number", LinearHead(32), nn.functional.mse_loss),
            Task("kind", LinearHead(32, 2), nn.functional.cross_entropy),
        ],
    )
    data = Waves()
    whole = data.batch(torch.arange(len(data)))

    def losses(model: MultiTask, batch: dict[str, Any]) -> Losses:
        # noise from all three generators, so that each one's state matters
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return model.losses(batch | {"inputs": batch["inputs"] + 0.01 * noise})

    balancer = HomoscedasticUncertainty(["number", "kind"], {"kind": "classification"})
    fitted = fit(
        model,
        data,
        losses=losses,
        batch_size=10,
        epochs=6,
        validate=lambda model: model.evaluate([whole]),
        monitor="number/loss",
        balancer=balancer,
        schedule=warmup_cosine(3),
        clip_norm=1.0,
        folder=folder,
        resume=resume,
        checkpoint_every=2,
        logs=("csv",),
    )
    # the first columns of the table: the last one is a wall-clock time
    lines = (folder / "metrics.csv").read_text("utf-8").splitlines()
    return fitted, model, balancer, [line.rsplit(",", 1)[0] for line in lines]
