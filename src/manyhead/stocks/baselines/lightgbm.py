"""Gradient-boosted trees on the newest day of each window.

Ke and others, 'LightGBM: a highly efficient gradient boosting decision tree', 2017. Trees are added until
the validation error no longer falls.
"""

from typing import Any, ClassVar

import numpy as np
import torch

from manyhead.errors import optional
from manyhead.stocks.baselines.base import Baseline, Inputs, Rows, Space, Table


class LightGBM(Baseline):
    """Trees on the factors; columns and rows of each tree are drawn under the seed."""

    random = True
    space: ClassVar[Space] = {
        "num_leaves": (31, 15, 63, 127),
        "learning_rate": (0.05, 0.02, 0.1),
        "min_data_in_leaf": (100, 20, 500),
        "lambda_l2": (1.0, 0.0, 10.0, 100.0),
        "feature_fraction": (0.8, 0.5, 1.0),
    }

    def __init__(self, choice: dict[str, Any] | None = None, seed: int = 0, trees: int = 300) -> None:
        super().__init__(choice, seed)
        self.trees = trees

    def learn(self, inputs: Inputs, train: Rows, validation: Rows) -> None:
        """Grow trees on training rows; stop by the error on validation rows."""
        boosting = optional("lightgbm", "stocks")
        self.unit = inputs.scale(train)
        settings = {
            "objective": "regression",
            "metric": "l2",
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": torch.get_num_threads(),
            "seed": self.seed,
            "verbosity": -1,
            **self.choice,
        }
        sets = [
            boosting.Dataset(*self._table(inputs, rows), free_raw_data=True) for rows in (train, validation)
        ]
        self.booster = boosting.train(
            settings,
            sets[0],
            num_boost_round=self.trees,
            valid_sets=[sets[1]],
            callbacks=[boosting.early_stopping(30, verbose=False)],
        )

    def _table(self, inputs: Inputs, rows: Rows) -> tuple[Table, Table]:
        """Lay the known cells of some rows under each other."""
        targets = inputs.targets(rows)
        known = np.isfinite(targets)
        parts = [values[known[place]] for place, values in inputs.latest(rows, self.unit)]
        return np.concatenate(parts), targets[known]

    def score(self, inputs: Inputs, rows: Rows) -> Table:
        """Sum the trees."""
        result = np.empty((len(rows), inputs.stocks), np.float32)
        threads = torch.get_num_threads()
        for place, values in inputs.latest(rows, self.unit):
            flat = self.booster.predict(values.reshape(-1, values.shape[-1]), num_threads=threads)
            result[place] = np.asarray(flat).reshape(values.shape[:2])
        return result
