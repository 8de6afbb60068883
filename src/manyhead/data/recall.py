"""Multi-query associative recall: name the value that a key came with.

Arora et al., 'Zoology', 2023, arXiv 2312.04927, in the form of Sieber et al., 2024, arXiv 2405.15731.
"""

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError

IGNORED = -100


def associative_recall(
    examples: int, length: int, pairs: int, vocab: int, *, power: float = 0.01, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Make sequences k1 v1 k2 v2 ... followed by every key once more, at gaps that favour the near.

    Args:
        examples: number of sequences.
        length: tokens of each.
        pairs: key-value pairs of each.
        vocab: tokens; keys come from the lower half without 0, values from the upper, 0 fills.
        power: a gap of 2 g tokens has a probability in proportion to (g + 1) ** (power - 1).
        seed: of NumPy's legacy generator, so that published data sets are met.

    Returns:
        Inputs and labels, `(examples, length)`; a label is the value where a key comes again, else -100.

    Raises:
        InputError: if the pairs and their repetitions do not fit.
    """
    room = (length - 2 * pairs) // 2
    if pairs < 1 or room < pairs or vocab // 2 - 1 < pairs:
        raise InputError(
            f"{pairs} pairs need a length of at least {4 * pairs} and a vocab of {2 * pairs + 2}; "
            f"got {length} and {vocab}"
        )
    random = np.random.RandomState(seed)
    chance = np.arange(1, room + 1, dtype=float) ** (power - 1)
    chance /= chance.sum()

    def draw(choices: NDArray[np.int64], p: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
        rows = [random.choice(choices, pairs, replace=False, p=p) for _ in range(examples)]
        return np.stack(rows).astype(np.int64)

    keys = draw(np.arange(1, vocab // 2))
    values = draw(np.arange(vocab // 2, vocab))
    places = 2 * pairs + 2 * draw(np.arange(room), chance)
    inputs = np.zeros((examples, length), np.int64)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    labels = np.full((examples, length), IGNORED, np.int64)
    np.put_along_axis(inputs, places, keys, 1)
    np.put_along_axis(labels, places, values, 1)
    return inputs, labels
