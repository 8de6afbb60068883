"""Packed blocks hold every token once, in order, and no block holds two documents."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.data.blocks import pack_blocks
from manyhead.errors import InputError


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    block_length=st.integers(1, 5),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_tokens_survive_in_order_and_documents_do_not_share_blocks(lengths, block_length, blocks, seed):
    documents = [[100 * i + j for j in range(n)] for i, n in enumerate(lengths, 1)]
    ids, real = pack_blocks(documents, block_length, blocks, pad=-1, seed=seed)
    assert ids.shape == real.shape
    assert ids.shape[1:] == (blocks, block_length)
    assert ids[real].tolist() == [token for document in documents for token in document]
    assert (ids[~real] == -1).all()
    for block, mask in zip(ids.reshape(-1, block_length), real.reshape(-1, block_length), strict=True):
        assert len(set(block[mask] // 100)) <= 1


def test_every_phase_comes_up_and_nothing_is_refused():
    phases = {int(pack_blocks([[1]], 4, 1, seed=seed)[1].argmax()) for seed in range(60)}
    assert phases == {0, 1, 2, 3}
    with pytest.raises(InputError):
        pack_blocks([], 4, 1)
