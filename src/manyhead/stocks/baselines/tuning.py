"""Baselines by name, each tuned with the same number of trials on validation rows."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from manyhead.errors import InputError
from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, mean_ic

# name -> module and class; imported when asked for
BASELINES = {
    "ridge": ("ridge", "Ridge"),
    "lightgbm": ("lightgbm", "LightGBM"),
    "lstm": ("lstm", "LSTM"),
    "gru": ("gru", "GRU"),
    "transformer": ("transformer", "Transformer"),
    "tcn": ("tcn", "TCN"),
    "reversal": ("reversal", "Reversal"),
    "momentum": ("momentum", "Momentum"),
    "equal_weight": ("equal_weight", "EqualWeight"),
}


def baseline(name: str) -> type[Baseline]:
    """Return the class of a baseline.

    Raises:
        InputError: if there is none of this name.
    """
    try:
        module, kind = BASELINES[name]
    except KeyError:
        raise InputError(f"there is no baseline {name!r}; there are {', '.join(BASELINES)}") from None
    found: type[Baseline] = getattr(import_module(f"manyhead.stocks.baselines.{module}"), kind)
    return found


def is_random(name: str) -> bool:
    """Say whether a baseline's result depends on the seed; see `baseline` for what is raised."""
    return baseline(name).random


@dataclass(frozen=True)
class Tuned:
    """The best of some trials.

    Args:
        model: fitted.
        choice: its settings.
        validation_ic: its mean daily IC on validation rows, NaN for a constant score.
        ledger: every trial's settings and validation IC, in order: what the choice was made from.
    """

    model: Baseline
    choice: dict[str, Any]
    validation_ic: float
    ledger: list[dict[str, Any]]


def tune(
    name: str,
    inputs: Inputs,
    train: Rows,
    validation: Rows,
    *,
    trials: int = 3,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Tuned:
    """Fit a baseline with several settings and keep the best on validation rows.

    Args:
        name: one of `BASELINES`.
        inputs: what it may read.
        train: decision rows to learn from.
        validation: decision rows to choose on; test rows are never given.
        trials: settings tried; a baseline without settings is fitted once.
        seed: of the baseline and of the settings drawn.
        progress: told each trial's outcome in a line.

    Raises:
        InputError: if there is no such baseline, `trials` is below 1, a span has no rows, or a package is
            absent.
    """
    if trials < 1:
        raise InputError(f"trials must be at least 1, got {trials}")
    for span, rows in (("train", train), ("validation", validation)):
        if not len(rows):
            raise InputError(f"the baseline {name!r} has no {span} rows to learn from")
    kind = baseline(name)
    best: Tuned | None = None
    ledger: list[dict[str, Any]] = []
    for choice in kind.choices(trials, seed):
        model = kind(choice, seed).fit(inputs, train, validation)
        skill = mean_ic(model.predict(inputs, validation), inputs.returns(validation))
        ledger.append({**choice, "validation_ic": skill})
        if progress is not None:
            progress(f"{name} {choice}: validation IC {skill:+.4f}")
        if best is None or skill > best.validation_ic or np.isnan(best.validation_ic):
            best = Tuned(model, choice, skill, ledger)
    assert best is not None
    return best
