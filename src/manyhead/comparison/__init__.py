"""An honest comparison of balancers with single-task training on one set of tasks: `manyhead compare`."""

from manyhead.comparison.compare import compare
from manyhead.comparison.result import Comparison
from manyhead.comparison.taskset import BUDGETS, Budget, Score, TaskSet

__all__ = ["BUDGETS", "Budget", "Comparison", "Score", "TaskSet", "compare"]
