"""A placebo: the same pipeline on labels that were dealt out anew within each day.

Nothing is left to find, so the mean IC must be zero and its p-values uniform. If they are not, an interval
or the pipeline itself is wrong. The runs share one preparation of inputs: labels do not enter them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.baselines import Inputs, tune
from manyhead.stocks.config import Config
from manyhead.stocks.intervals import standard_error
from manyhead.stocks.metrics import daily_ic
from manyhead.stocks.panel import Panel
from manyhead.stocks.prepare import permuted, prepare
from manyhead.stocks.splits import Split

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Placebo:
    """What runs without skill look like.

    Attributes:
        ic: (runs,) mean daily IC on test days.
        p_values: (runs,) two-sided, of the mean IC against zero by its standard error over days.
        uniformity: p-value of a Kolmogorov-Smirnov test that `p_values` are uniform.
    """

    ic: Series
    p_values: Series
    uniformity: float

    @property
    def mean(self) -> float:
        """Mean of the mean ICs."""
        return float(self.ic.mean())

    @property
    def error(self) -> float:
        """Standard error of that mean over runs."""
        return float(self.ic.std(ddof=1) / np.sqrt(len(self.ic)))


def placebo(
    panel: Panel,
    split: Split,
    config: Config,
    sectors: Mapping[str, str] | None = None,
    *,
    model: str = "ridge",
    runs: int = 200,
    seed: int = 0,
) -> Placebo:
    """Run a baseline on permuted labels many times.

    Args:
        panel: prices.
        split: one split.
        config: settings.
        sectors: symbol -> sector, or None.
        model: a baseline, see `baselines.BASELINES`.
        runs: how many permutations, at least 2.
        seed: of the permutations.

    Raises:
        InputError: if `runs` is below 2 or the model unknown.
    """
    from scipy.stats import kstest, norm

    if runs < 2:
        raise InputError(f"runs must be at least 2, got {runs}")
    prepared = prepare(panel, split, config, sectors, seed)
    within, windows = config.splits.within, prepared.windows
    training = windows.decision_rows(prepared.split.train, within=within, labelled=True)
    validation = windows.decision_rows(prepared.split.validation, within=within, labelled=True)
    test = windows.decision_rows(prepared.split.test, within=within, labelled=True)
    ic, p_values = np.empty(runs), np.empty(runs)
    for place in range(runs):
        dealt = replace(windows, labels=permuted(windows.flow, seed + place))
        inputs = Inputs(dealt, prepared.panel["close"])
        tuned = tune(model, inputs, training, validation, trials=config.baselines.trials, seed=seed)
        daily = daily_ic(tuned.model.predict(inputs, test), dealt.targets[test])
        ic[place] = float(np.nanmean(daily))
        p_values[place] = 2 * norm.sf(abs(ic[place]) / standard_error(daily, 0))
    return Placebo(ic, p_values, float(kstest(p_values, "uniform").pvalue))
