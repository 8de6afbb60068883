"""What is compared on: tasks, a model for any of them, and three parts of the data that share nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from torch import Tensor

from manyhead.errors import InputError
from manyhead.tasks import MultiTask

# name -> where its function is; a user's own comes as 'module:function'
NAMED = {"multi_mnist": "manyhead.comparison.multi_mnist:tasks"}


@dataclass(frozen=True)
class Score:
    """The number by which a task is judged.

    Args:
        name: 'loss', or the name of one of the task's metrics.
        better: whether the higher or the lower value is better.
    """

    name: str = "loss"
    better: Literal["higher", "lower"] = "lower"

    @property
    def sign(self) -> float:
        """1 where higher is better, else -1."""
        return 1.0 if self.better == "higher" else -1.0


@dataclass(frozen=True)
class TaskSet:
    """Tasks to compare on, as `module:function` returns them from `(seed, budget)`.

    Args:
        build: `build(names)` -> a fresh model of those tasks, in that order; weights from torch's global
            generator, which is seeded before.
        train, validation, test: data sets with `len()` and `batch(indices)` -> a batch as `MultiTask` takes
            it. They must share no sample. Labels may be missing.
        scores: task name -> how it is judged; at least two tasks.
        batch_size: samples of a training batch.
        options: name of a balancer -> arguments that it needs on these data, such as
            `{"rep_mtl": {"channel_axis": 1}}`.
    """

    build: Callable[[Sequence[str]], MultiTask]
    train: Any
    validation: Any
    test: Any
    scores: Mapping[str, Score]
    batch_size: int = 64
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(self.scores)

    def check(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            InputError: with the field, what came and what is accepted.
        """
        if len(self.scores) < 2:
            raise InputError(f"scores must name at least two tasks to compare, got {list(self.scores)}")
        for name, score in self.scores.items():
            if not isinstance(score, Score) or score.better not in ("higher", "lower"):
                raise InputError(
                    f"scores[{name!r}] must be a Score, better 'higher' or 'lower'; got {score!r}"
                )
        for part in ("train", "validation", "test"):
            data = getattr(self, part)
            if not hasattr(data, "__len__") or not hasattr(data, "batch"):
                raise InputError(f"{part} must have a length and batch(indices), got {type(data).__name__}")
            if len(data) == 0:
                raise InputError(f"{part} must hold at least one sample, got none")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")

    def model(self, names: Sequence[str]) -> MultiTask:
        """A fresh model of some tasks.

        Raises:
            InputError: if `build` returned something else.
        """
        model = self.build(list(names))
        if not isinstance(model, MultiTask) or model.names != list(names):
            came = model.names if isinstance(model, MultiTask) else type(model).__name__
            raise InputError(f"build({list(names)}) must return a MultiTask of these tasks, got {came}")
        return model


@dataclass(frozen=True)
class Part:
    """A data set with the labels of some tasks only."""

    data: Any
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor) -> dict[str, Any]:
        """A batch without the other tasks' labels."""
        batch = dict(self.data.batch(indices))
        for key in ("targets", "masks"):
            if batch.get(key):
                batch[key] = {name: value for name, value in batch[key].items() if name in self.names}
        return batch


@dataclass(frozen=True)
class Budget:
    """How much every trial may take.

    Args:
        epochs: passes over the training data.
        rates: learning rates that every method is tried with.
    """

    epochs: int
    rates: tuple[float, ...]


BUDGETS = {
    "tiny": Budget(3, (1e-3, 3e-3)),
    "small": Budget(6, (1e-3, 3e-3)),
    "large": Budget(40, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
}

Source = str | Callable[[int, str], TaskSet]


def source_name(source: Source) -> str:
    """How a source is called in messages and files."""
    return source if isinstance(source, str) else f"{source.__module__}:{source.__qualname__}"


def load_tasks(source: Source, seed: int, budget: str) -> TaskSet:
    """Make the task set of one seed.

    Args:
        source: 'multi_mnist', 'module:function', or the function itself.
        seed: decides the splits, equal for every method.
        budget: name of the budget, by which the function may size its data.

    Raises:
        InputError: if there is no such function, it fails to return a `TaskSet`, or that cannot be used.
    """
    if isinstance(source, str):
        function = _find(source)
    else:
        function = source
    made = function(seed, budget)
    if not isinstance(made, TaskSet):
        raise InputError(f"{source_name(source)} must return a TaskSet, got {type(made).__name__}")
    made.check()
    return made


def _find(text: str) -> Callable[[int, str], TaskSet]:
    place = NAMED.get(text, text)
    module, _, name = place.partition(":")
    if not module or not name:
        raise InputError(f"--data takes {', '.join(NAMED)} or module:function, got {text!r}")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as absent:
        if absent.name and not module.startswith(absent.name):
            raise  # the module is there, but something that it imports is not
        raise InputError(
            f"--data names the module {module!r}, which cannot be imported: {absent}"
        ) from absent
    function = getattr(found, name, None)
    if not callable(function):
        raise InputError(f"--data names {name!r}, but {module} has no such function")
    return function  # type: ignore[no-any-return]
