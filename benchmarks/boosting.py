"""R-MTGB against scikit-learn's gradient boosting with as many trees, in processor seconds.

Both fit stumps. scikit-learn gets the pooled table and n_shared + 2 n_split + n_own trees. Run:

    python benchmarks/boosting.py [--long] [--json FILE]

`--long` adds 100 tasks of 100,000 rows each, with few trees; seconds a tree are what it is about.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.ensemble import GradientBoostingRegressor

from manyhead.boosting.estimators import RobustMultiTaskGradientBoostingRegressor
from manyhead.files import write_text


def table(tasks: int, rows: int, inputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Tasks with a common smooth function and noise; the last column is the task."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (tasks * rows, inputs)).astype(np.float32)
    y = np.sin(3 * x).sum(1) + 0.1 * random.standard_normal(len(x), dtype=np.float32)
    task = np.repeat(np.arange(tasks, dtype=np.float32), rows)
    return np.column_stack([x, task]), y


def seconds(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Processor seconds of a fit; both libraries use one core here, and other programs do not count."""
    started = time.process_time()
    model.fit(x, y)
    return time.process_time() - started


def case(
    tasks: int, rows: int, blocks: tuple[int, int, int], splitters: tuple[str, ...], their_trees: int = 0
) -> list[dict[str, Any]]:
    """Time the estimator with each splitter, block by block, and scikit-learn on one table.

    With `their_trees` scikit-learn fits only so many, and its seconds are scaled to as many as ours.
    """
    x, y = table(tasks, rows)
    trees = blocks[0] + 2 * blocks[1] + blocks[2]  # as if block 3 were one tree over all rows
    fitted = their_trees or trees
    theirs = seconds(GradientBoostingRegressor(n_estimators=fitted, max_leaf_nodes=2), x[:, :-1], y)
    theirs *= trees / fitted
    found = []
    for splitter in splitters:

        def fit(*lengths: int, how: str = splitter) -> float:
            model = RobustMultiTaskGradientBoostingRegressor(*lengths, splitter=how, random_state=0)  # type: ignore[arg-type]
            return seconds(model, x, y)

        whole, setup = fit(*blocks), fit(0, 0, 0)
        shared = (fit(blocks[0], 0, 0) - setup) / blocks[0]
        split = (fit(0, blocks[1], 0) - setup) / blocks[1]
        row = {
            "tasks": tasks,
            "rows_of_a_task": rows,
            "blocks": blocks,
            "scikit_learn_trees_fitted": fitted,
            "splitter": splitter,
            "seconds": whole,
            "scikit_learn_seconds": theirs,
            "ratio": whole / theirs,
            "block_2_over_block_1_iteration": split / shared,
        }
        print(json.dumps(row), flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--long", action="store_true", help="add 100 tasks of 100,000 rows each")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    rows = case(10, 300, (50, 150, 50), ("exact", "histogram"))
    rows += case(100, 1_000, (10, 30, 10), ("exact", "histogram"))
    if wanted.long:
        rows += case(100, 100_000, (2, 4, 2), ("histogram",), their_trees=1)
    result = {
        "command": "python benchmarks/boosting.py" + (" --long" if wanted.long else ""),
        "machine": f"{os.cpu_count()} cores {platform.machine()}, scikit-learn {sklearn.__version__}",
        "rows": rows,
    }
    if wanted.json:
        write_text(wanted.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
