"""Documents as blocks of tokens, each beginning at a random place of its first block.

Ho et al., 'Block Transformer', 2024, arXiv 2406.02657, appendix: random left padding lets a model see
every phase of the blocks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError


def pack_blocks(
    documents: Sequence[Sequence[int]], block_length: int, blocks: int, *, pad: int = 0, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pack documents into rows of blocks; a document never shares a block with another.

    Args:
        documents: token ids of each document.
        block_length: tokens of a block.
        blocks: blocks of a row; the last row may end with empty ones.
        pad: token id that fills incomplete blocks.
        seed: of the random left padding by 0 to block_length - 1 tokens.

    Returns:
        Ids and which of them are real, each `(rows, blocks, block_length)`.

    Raises:
        InputError: if there is no document, or a size is below one.
    """
    if not documents or block_length < 1 or blocks < 1:
        raise InputError(
            f"give documents, and block_length and blocks of at least 1; got {len(documents)} documents, "
            f"{block_length} and {blocks}"
        )
    random = np.random.default_rng(seed)
    ids: list[int] = []
    real: list[bool] = []
    for document in documents:
        left = int(random.integers(block_length)) if len(document) else 0
        right = -(left + len(document)) % block_length
        ids += [pad] * left + list(document) + [pad] * right
        real += [False] * left + [True] * len(document) + [False] * right
    row = block_length * blocks
    spare = -len(ids) % row
    shape = -1, blocks, block_length
    return (
        np.array(ids + [pad] * spare, np.int64).reshape(shape),
        np.array(real + [False] * spare, bool).reshape(shape),
    )
