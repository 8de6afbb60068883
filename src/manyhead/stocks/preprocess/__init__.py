"""Factor pre-processing: an ordered pipeline, fitted on training rows, applied row by row."""

from manyhead.stocks.preprocess.daily import (
    ClipOutliers,
    CrossSectionZScore,
    ExcludeOutliers,
    FillMissing,
    ForwardFill,
    InfiniteToMean,
)
from manyhead.stocks.preprocess.inputs import InputReport, dead_inputs
from manyhead.stocks.preprocess.neutralise import Neutralise, log_dollar_volume
from manyhead.stocks.preprocess.pipeline import Daily, Derived, Fitted, Pipeline, Step
from manyhead.stocks.preprocess.scalers import TrainingZScore, Winsorise
from manyhead.stocks.preprocess.skill import factor_skill, notable_factors
from manyhead.stocks.preprocess.targets import learn_labels

__all__ = [
    "ClipOutliers",
    "CrossSectionZScore",
    "Daily",
    "Derived",
    "ExcludeOutliers",
    "FillMissing",
    "Fitted",
    "ForwardFill",
    "InfiniteToMean",
    "InputReport",
    "Neutralise",
    "Pipeline",
    "Step",
    "TrainingZScore",
    "Winsorise",
    "dead_inputs",
    "factor_skill",
    "learn_labels",
    "log_dollar_volume",
    "notable_factors",
]
