"""The entries of Aaren, DSF, CAB and Block Transformer in the catalogue."""

import pytest

from manyhead.catalogue import load
from manyhead.testing import check_system


@pytest.mark.parametrize("slug", ["aaren", "dsf", "cab", "block_transformer"])
def test_system_is_well_formed(slug):
    check_system(load(slug))


def test_truncation_errors_fall_as_theory_says():
    from manyhead.systems.dsf import truncation

    assert all(found.holds for found in truncation(0))
