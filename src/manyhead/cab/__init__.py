"""The comprehensive attention benchmark as a tool: tasks x mixers x the four uses under one budget.

Zhang et al., 'CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling', 2022, arXiv
2210.07661; small tasks on data that every machine has, or on yours. `manyhead bench cab` runs it.
"""

from manyhead.cab.budgets import BUDGETS, Budget
from manyhead.cab.run import Settings, run_cab
from manyhead.cab.tasks import TASKS, Task

__all__ = ["BUDGETS", "TASKS", "Budget", "Settings", "Task", "run_cab"]
