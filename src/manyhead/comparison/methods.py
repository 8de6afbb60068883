"""Methods that are compared: a balancer and its arguments, which tasks, and how many layers they share."""

import copy
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from manyhead.comparison.taskset import TaskSet
from manyhead.errors import InputError
from manyhead.tasks import Balancer, MultiTask, balancer_by_name
from manyhead.tasks.balancers import BALANCERS
from manyhead.tasks.balancers.scalarizer import scalarizers
from manyhead.tasks.balancers.torchjd import aggregators, plain_name

SINGLE, EQUAL = "single", "equal"
# short names -> those of `balancer_by_name`
SHORT = {EQUAL: "sum", "log": "log_sum", "rep": "rep_mtl"}
SCALAR = (bool, int, float, str)


@dataclass(frozen=True)
class Method:
    """One way to train some of the tasks.

    Args:
        label: what tables call it.
        balancer: name for `balancer_by_name`.
        parameters: arguments of the balancer, by name.
        tasks: the tasks trained together.
        shared: how many of the network's children, in order, the tasks share; None for all.
    """

    label: str
    balancer: str
    parameters: tuple[tuple[str, Any], ...]
    tasks: tuple[str, ...]
    shared: int | None = None

    @property
    def key(self) -> str:
        """What decides the result: methods with equal keys are trained once."""
        parts = [self.balancer, *(f"{name}={value}" for name, value in self.parameters)]
        if len(self.tasks) == 1:
            parts = ["sum"]  # one task has nothing to balance
        if self.shared is not None:
            parts.append(f"shared={self.shared}")
        return " ".join([*parts, "on", *self.tasks])

    def build(self, task_set: TaskSet) -> Balancer:
        """The balancer, with the tasks' names or number where its constructor asks for them."""
        parameters = {**task_set.options.get(self.balancer, {}), **dict(self.parameters)}
        plain = plain_name(self.balancer)
        kinds: dict[str, Any] = {**aggregators(), **scalarizers()}
        if plain in kinds and self.balancer not in BALANCERS:
            asked = inspect.signature(kinds[plain]).parameters
            if "n_tasks" in asked:
                parameters.setdefault("n_tasks", len(self.tasks))
            if plain in scalarizers() and "shape" in asked:
                parameters.setdefault("shape", len(self.tasks))
        if plain == "uncertainty":
            parameters.setdefault("tasks", list(self.tasks))
        return balancer_by_name(self.balancer, **parameters)

    def model(self, task_set: TaskSet) -> MultiTask:
        """The network and the heads of the method's tasks."""
        model = task_set.model(self.tasks)
        if self.shared is not None:
            model.network = Forked(model.network, self.shared, self.tasks)
        return model


class Forked(nn.Module):
    """A sequential network whose first children are shared; each task has the others for itself.

    Args:
        network: an `nn.Sequential`.
        shared: how many children, in order, are shared.
        tasks: names; every branch starts from the same weights.
    """

    def __init__(self, network: nn.Module, shared: int, tasks: Sequence[str]) -> None:
        super().__init__()
        if not isinstance(network, nn.Sequential) or not 0 < shared < len(network):
            raise InputError(
                f"shared must be a number of children of an nn.Sequential, between the first and the last; "
                f"got {shared} of {type(network).__name__}"
            )
        self.shared = network[:shared]
        self.own = nn.ModuleDict({name: copy.deepcopy(network[shared:]) for name in tasks})

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """The representation of every task."""
        common = self.shared(inputs)
        return {name: branch(common) for name, branch in self.own.items()}


def single_methods(tasks: Sequence[str]) -> list[Method]:
    """A network of its own for every task."""
    return [Method(SINGLE, "sum", (), (task,)) for task in tasks]


def equal_weights(tasks: Sequence[str], label: str = EQUAL, shared: int | None = None) -> Method:
    """The plain sum over some tasks."""
    return Method(label, "sum", (), tuple(tasks), shared)


def parse_method(text: str, tasks: Sequence[str]) -> Method:
    """A method from its text, such as 'mgda', 'flat-upgrad' or 'flat-cagrad:c=0.4:adaptive=false'.

    Args:
        text: name of a balancer, 'equal', 'log', 'rep', or 'flat-' before an aggregator; then arguments,
            each after a colon, their values as in JSON.
        tasks: names of all tasks.

    Raises:
        InputError: if the balancer is unknown or an argument cannot be read.
    """
    name, *given = text.strip().split(":")
    parameters: dict[str, Any] = {}
    for part in given:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"arguments of a balancer look like cagrad:c=0.4, got {text!r}")
        try:
            parameters[key] = json.loads(value)
        except json.JSONDecodeError:
            parameters[key] = value
        if not isinstance(parameters[key], SCALAR):
            raise InputError(f"an argument of a balancer is a number, a word, true or false; got {part!r}")
    short = name.lower()
    if short.startswith("flat-"):
        parameters = {"aggregator": short.removeprefix("flat-"), **parameters}
        short = "flat"
    return Method(text.strip(), SHORT.get(short, short), tuple(sorted(parameters.items())), tuple(tasks))


def parse_methods(names: Sequence[str], tasks: Sequence[str]) -> list[Method]:
    """Methods in the order given; single tasks and equal weights are put first, asked for or not.

    Raises:
        InputError: if one comes twice or cannot be read.
    """
    methods = [equal_weights(tasks)]
    for text in names:
        if text.strip().lower() in (SINGLE, EQUAL):
            continue
        methods.append(parse_method(text, tasks))
    keys = [method.key for method in methods]
    for method in methods:
        if keys.count(method.key) > 1:
            raise InputError(f"--balancers names {method.label!r} twice, or another name of it")
    return methods


def check_methods(methods: Sequence[Method], task_set: TaskSet) -> None:
    """Build every model and balancer once, so that a mistake is told before anything is trained."""
    for method in methods:
        method.build(task_set)
        method.model(task_set)


__all__: Sequence[str] = [
    "EQUAL",
    "SINGLE",
    "Forked",
    "Method",
    "check_methods",
    "equal_weights",
    "parse_method",
    "parse_methods",
    "single_methods",
]
