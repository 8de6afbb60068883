"""No opinion: every stock that trades gets the same score."""

import numpy as np

from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, Table


class EqualWeight(Baseline):
    """A constant score. It has no IC; its forecast is the mean return of the validation rows."""

    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Take the mean return of validation rows as the forecast."""
        returns = inputs.returns(validation)
        self.mean = float(np.nanmean(returns)) if np.isfinite(returns).any() else 0.0

    def score(self, inputs: Inputs, rows: Rows) -> Table:
        """Return the constant where there is a price."""
        return np.where(np.isfinite(inputs.close[rows]), self.mean, np.nan).astype(np.float32)
