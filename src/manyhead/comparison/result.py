"""What a comparison holds: every run of every method, and what was chosen on the way."""

from dataclasses import dataclass, field

from manyhead.comparison.methods import Method
from manyhead.comparison.taskset import Budget, Score
from manyhead.comparison.trial import Outcome

TUNING_SEED = 10_007  # of splits and weights on which learning rates are tried; never reported


@dataclass
class Comparison:
    """Everything that was trained, for tables and pages.

    Args:
        data: where the tasks came from.
        budget: its name and what it allows.
        seeds: the reported seeds.
        scores: task -> how it is judged.
        singles: the single-task methods, one a task.
        methods: the others, equal weights first.
        rates: method key -> the learning rate chosen.
        tried: method key -> learning rate -> its value on validation, NaN where it diverged.
        outcomes: (method key, seed) -> the run.
        left_out: task -> equal weights without it; filled by the interference report.
        forked: equal weights that share only the first layers, if conflicts ask for it.
    """

    data: str
    budget: str
    limits: Budget
    seeds: tuple[int, ...]
    scores: dict[str, Score]
    singles: list[Method]
    methods: list[Method]
    rates: dict[str, float] = field(default_factory=dict)
    tried: dict[str, dict[float, float]] = field(default_factory=dict)
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    left_out: dict[str, Method] = field(default_factory=dict)
    forked: Method | None = None
    interference: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.scores)

    @property
    def equal(self) -> Method:
        """Equal weights on all tasks."""
        return self.methods[0]

    def outcome(self, method: Method, seed: int) -> Outcome:
        """The run of a method under a seed, at the rate chosen for it."""
        return self.outcomes[method.key, seed]
