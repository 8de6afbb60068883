"""Tasks that share a network, and the balancers that turn their losses into one update."""

from manyhead.tasks.balancers import (
    Balancer,
    FixedWeights,
    HomoscedasticUncertainty,
    Losses,
    Scalarisation,
    Sum,
    TorchJD,
    TorchJDScalarizer,
    balancer_by_name,
    balancer_names,
)
from manyhead.tasks.heads import LinearHead, PerceptronHead, PooledHead, class_weights
from manyhead.tasks.multitask import MultiTask
from manyhead.tasks.task import Task

__all__ = [
    "Balancer",
    "FixedWeights",
    "HomoscedasticUncertainty",
    "LinearHead",
    "Losses",
    "MultiTask",
    "PerceptronHead",
    "PooledHead",
    "Scalarisation",
    "Sum",
    "Task",
    "TorchJD",
    "TorchJDScalarizer",
    "balancer_by_name",
    "balancer_names",
    "class_weights",
]
