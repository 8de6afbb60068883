"""Training: one loop, checkpoints that survive a kill, seeds, schedules, sample orders."""

from manyhead.training.checkpoint import CheckpointError, FolderInUse, load_state, save_state
from manyhead.training.disturbance import chaos
from manyhead.training.fit import fit
from manyhead.training.order import grouped, mixed_tasks, sequential, shuffled, weighted
from manyhead.training.schedules import Schedule, each_epoch, each_step, plateau, warmup_cosine
from manyhead.training.seeds import seed_everything, seeded
from manyhead.training.settings import Fitted, NonFiniteLoss
from manyhead.training.tally import ChaosReport

__all__ = [
    "ChaosReport",
    "CheckpointError",
    "Fitted",
    "FolderInUse",
    "NonFiniteLoss",
    "Schedule",
    "chaos",
    "each_epoch",
    "each_step",
    "fit",
    "grouped",
    "load_state",
    "mixed_tasks",
    "plateau",
    "save_state",
    "seed_everything",
    "seeded",
    "sequential",
    "shuffled",
    "warmup_cosine",
    "weighted",
]
