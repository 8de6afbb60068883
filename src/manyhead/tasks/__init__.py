"""Tasks that share a network, and the balancers that turn their losses into one update."""

from manyhead.tasks.balancers import (
    Balancer,
    FixedWeights,
    FlatRegions,
    HomoscedasticUncertainty,
    LogSum,
    Losses,
    RepMTL,
    Scalarisation,
    Sum,
    TorchJD,
    TorchJDScalarizer,
    balancer_by_name,
    balancer_names,
    frozen_statistics,
)
from manyhead.tasks.controllability import hypervolume, task_ranges
from manyhead.tasks.heads import LinearHead, PerceptronHead, PooledHead, class_weights
from manyhead.tasks.multitask import MultiTask
from manyhead.tasks.slimming import Sandwich
from manyhead.tasks.task import Task

__all__ = [
    "Balancer",
    "FixedWeights",
    "FlatRegions",
    "HomoscedasticUncertainty",
    "LinearHead",
    "LogSum",
    "Losses",
    "MultiTask",
    "PerceptronHead",
    "PooledHead",
    "RepMTL",
    "Sandwich",
    "Scalarisation",
    "Sum",
    "Task",
    "TorchJD",
    "TorchJDScalarizer",
    "balancer_by_name",
    "balancer_names",
    "class_weights",
    "frozen_statistics",
    "hypervolume",
    "task_ranges",
]
