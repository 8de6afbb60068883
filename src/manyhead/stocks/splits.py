"""Rolling splits of a calendar into training, validation and test days."""

from dataclasses import dataclass

from manyhead.errors import InputError
from manyhead.stocks.config import Config


@dataclass(frozen=True)
class Split:
    """Three adjoining spans of calendar rows, each half-open: train, then validation, then test."""

    start: int
    train_end: int
    validation_end: int
    test_end: int

    @property
    def train(self) -> range:
        return range(self.start, self.train_end)

    @property
    def validation(self) -> range:
        return range(self.train_end, self.validation_end)

    @property
    def test(self) -> range:
        return range(self.validation_end, self.test_end)


def rolling_splits(
    days: int, train: int = 486, validation: int = 81, test: int = 81, step: int = 60
) -> list[Split]:
    """Cut a calendar into overlapping sub-datasets, oldest first (Stockformer, section 4.1).

    The paper's sizes are the defaults: with 20 input and 2 output days, 81 test rows give 60
    predictions, so that a step of 60 makes the predictions of consecutive splits tile the calendar.
    The splits are laid so that the last one ends with the calendar.

    Args:
        days: rows of the calendar.
        train: training rows of a split.
        validation: validation rows, directly after.
        test: test rows, directly after.
        step: rows between the starts of consecutive splits.

    Raises:
        InputError: if a length is not positive or the calendar is shorter than one split.
    """
    for name, length in {"train": train, "validation": validation, "test": test, "step": step}.items():
        if length < 1:
            raise InputError(f"{name} must be at least 1 day, got {length}")
    whole = train + validation + test
    if days < whole:
        raise InputError(
            f"the prices cover {days} days; one split needs {whole} "
            f"(train {train} + validation {validation} + test {test})"
        )
    first = (days - whole) % step
    return [
        Split(start, start + train, start + train + validation, start + whole)
        for start in range(first, days - whole + 1, step)
    ]


def choose_splits(config: Config, days: int) -> dict[int, Split]:
    """Return the splits of a run by index, oldest first; index 0 is the oldest that the calendar holds."""
    wanted = config.splits
    every = rolling_splits(days, wanted.train, wanted.validation, wanted.test, wanted.step or wanted.test)
    numbered = dict(enumerate(every))
    if wanted.count == "all":
        return numbered
    if wanted.count > len(every):
        raise InputError(
            f"splits.count asks for {wanted.count} splits, the prices hold {len(every)} "
            f"({days} days; train {wanted.train}, validation {wanted.validation}, test {wanted.test})"
        )
    return {index: numbered[index] for index in sorted(numbered)[-wanted.count :]}
