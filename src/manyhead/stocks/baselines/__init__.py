"""Baselines on Stockformer's own inputs, tuned on validation rows with an equal number of trials."""

from manyhead.stocks.baselines.base import Baseline, Inputs
from manyhead.stocks.baselines.tuning import BASELINES, Tuned, baseline, is_random, tune

__all__ = ["BASELINES", "Baseline", "Inputs", "Tuned", "baseline", "is_random", "tune"]
