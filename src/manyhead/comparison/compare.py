"""`compare`: the same splits, seeds, epochs and number of tried learning rates for every method.

Learning rates are tried on a seed of their own, which is not reported; the best epoch of a run is chosen on
validation. Every training run is a piece of work that keeps its own result, so that a comparison goes on
where it was killed, over any number of processes, to the same numbers.
"""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from manyhead.comparison.epochs import best_epoch, progress, references
from manyhead.comparison.interference import fork_depth
from manyhead.comparison.methods import (
    Method,
    check_methods,
    equal_weights,
    parse_methods,
    single_methods,
)
from manyhead.comparison.result import TUNING_SEED, Comparison
from manyhead.comparison.taskset import BUDGETS, Budget, Source, load_tasks, source_name
from manyhead.comparison.trial import Setting, Trial, load_outcome, run_trial
from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.training.seeds import seeded
from manyhead.work import run_items

DEFAULT = ("single", "equal", "log", "mgda", "upgrad", "flat-mgda", "flat-upgrad", "rep")
SETTINGS = "settings.json"


def compare(
    data: Source,
    balancers: Sequence[str] = DEFAULT,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "small",
    epochs: int | None = None,
    rates: Sequence[float] | None = None,
    interference: bool = False,
    workers: int = 1,
    threads: int = 1,
    folder: str | Path = "comparison",
    progress: bool = True,
) -> Comparison:
    """Train single tasks, equal weights and balancers alike, and collect what came out.

    Args:
        data: 'multi_mnist', or 'module:function' of `(seed, budget)` -> `TaskSet` (or the function).
        balancers: names for `balancer_by_name`, 'single', 'equal', 'log', 'rep' or 'flat-<aggregator>', with
            arguments as in 'cagrad:c=0.4'. Single tasks and equal weights always run.
        seeds: reported seeds; each has its own splits, the same for all methods.
        budget: 'tiny', 'small' or 'large': epochs and tried learning rates.
        epochs, rates: in place of the budget's.
        interference: also train without each task, and with later layers apart where gradients conflict.
        workers: local processes.
        threads: torch threads of each; results depend on it in the last bits.
        folder: where every run is kept; a comparison with the same settings goes on there.
        progress: show what runs.

    Raises:
        InputError: if an argument cannot be used, or the folder holds a comparison of other settings.
    """
    setting, limits = _setting(data, budget, epochs, rates, seeds, Path(folder))
    task_set = load_tasks(data, TUNING_SEED, budget)
    methods = parse_methods(balancers, task_set.names)
    singles = single_methods(task_set.names)
    with seeded(0):  # the caller's generators stay as they are
        check_methods([*singles, *methods], task_set)
    _claim(setting, limits, threads)
    found = Comparison(
        data=source_name(data),
        budget=budget,
        limits=limits,
        seeds=tuple(seeds),
        scores=dict(task_set.scores),
        singles=singles,
        methods=methods,
        interference=interference,
    )
    run = partial(_run, found, setting, workers=workers, threads=threads, shown=progress)
    run([*singles, *methods])
    if interference:
        tasks = found.tasks
        found.left_out = {
            task: equal_weights([name for name in tasks if name != task], f"without {task}") for task in tasks
        }
        with seeded(0):
            depth = fork_depth(found, task_set)
        if depth is not None:
            found.forked = equal_weights(tasks, f"branch after layer {depth.shared_layers}", depth.children)
        run([*found.left_out.values(), *([found.forked] if found.forked else [])])
    return found


def _setting(
    data: Source,
    budget: str,
    epochs: int | None,
    rates: Sequence[float] | None,
    seeds: Sequence[int],
    folder: Path,
) -> tuple[Setting, Budget]:
    """Check the numbers and lay them over the budget's."""
    if budget not in BUDGETS:
        raise InputError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds) or TUNING_SEED in seeds:
        raise InputError(
            f"seeds must be different numbers at or above zero, without {TUNING_SEED}; got {list(seeds)}"
        )
    known = BUDGETS[budget]
    limits = Budget(
        known.epochs if epochs is None else epochs,
        known.rates if rates is None else tuple(sorted(float(rate) for rate in rates)),
    )
    if limits.epochs < 1:
        raise InputError(f"epochs must be at least 1, got {limits.epochs}")
    if not limits.rates or not all(math.isfinite(rate) and rate > 0 for rate in limits.rates):
        raise InputError(f"rates must be finite and above zero, got {list(limits.rates)}")
    if len(set(limits.rates)) != len(limits.rates):
        raise InputError(f"rates must differ, got {list(limits.rates)}")
    return Setting(data, budget, limits.epochs, folder), limits


def _claim(setting: Setting, limits: Budget, threads: int) -> None:
    """Write down the settings, or see that the folder holds the same.

    Raises:
        InputError: if it holds others.
    """
    import torch

    own: dict[str, Any] = {
        "data": source_name(setting.source),
        "budget": setting.budget,
        "epochs": limits.epochs,
        "rates": list(limits.rates),
        "threads": threads,
        "torch": torch.__version__,
    }
    place = setting.folder / SETTINGS
    if not place.exists():
        write_text(place, json.dumps(own, indent=1) + "\n")
        return
    held = json.loads(place.read_text("utf-8"))
    for key, value in own.items():
        if held.get(key) != value:
            raise InputError(
                f"{setting.folder} holds a comparison with {key}={held.get(key)!r}, this one has {value!r}: "
                "name another folder"
            )


def _run(
    found: Comparison,
    setting: Setting,
    methods: Sequence[Method],
    *,
    workers: int,
    threads: int,
    shown: bool,
) -> None:
    """Try the learning rates of methods, choose, and train them under the reported seeds."""
    fresh = list({method.key: method for method in methods if method.key not in found.rates}.values())

    def work(trials: list[Trial], title: str) -> None:
        by_name = {trial.name: trial for trial in trials}
        run_items(
            partial(run_trial, setting),
            list(by_name.values()),
            workers=workers,
            threads=threads,
            title=title,
            progress=shown,
        )

    tuning = [Trial(method, rate, TUNING_SEED) for rate in found.limits.rates for method in fresh]
    work(tuning, "learning rates")
    for method in fresh:
        found.rates[method.key] = _choose(found, setting, method)
        trial = Trial(method, found.rates[method.key], TUNING_SEED)
        found.outcomes[method.key, TUNING_SEED] = load_outcome(setting.folder, trial)
    reported = [Trial(method, found.rates[method.key], seed) for seed in found.seeds for method in fresh]
    work(reported, "seeds")
    for trial in reported:
        found.outcomes[trial.method.key, trial.seed] = load_outcome(setting.folder, trial)


def _choose(found: Comparison, setting: Setting, method: Method) -> float:
    """The learning rate whose best epoch on validation is best.

    Raises:
        InputError: if the method diverged at every rate.
    """
    against = None if len(method.tasks) == 1 else references(found, TUNING_SEED, "validation")
    tried: dict[float, float] = {}
    for rate in found.limits.rates:
        outcome = load_outcome(setting.folder, Trial(method, rate, TUNING_SEED))
        tried[rate] = math.nan
        if not outcome.failed:
            row = outcome.history[best_epoch(outcome, method.tasks, found.scores, against)]
            tried[rate] = progress(row, "validation", method.tasks, found.scores, against)
    found.tried[method.key] = tried
    held = {rate: value for rate, value in tried.items() if not math.isnan(value)}
    if not held:
        raise InputError(f"{method.label} on {', '.join(method.tasks)} diverged at every rate {list(tried)}")
    return max(held, key=lambda rate: held[rate])
