"""Every golden file in tests/golden equals what our code computes from its inputs."""

import numpy as np
import pytest

from tests.parity.compare import GOLDEN, compare, relative_error


@pytest.mark.parametrize("slug", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_equals_the_official_implementation(slug: str) -> None:
    errors = compare(slug)
    assert errors, f"{slug} compares nothing"
    above = [f"{error.name}: {error.value:.2e} > {error.limit:.0e}" for error in errors if not error.within]
    assert not above, "\n".join(above)


def test_an_error_is_seen_where_values_shapes_or_gaps_differ() -> None:
    official = np.array([1.0, np.nan, 4.0])
    assert relative_error(official, official) == 0
    assert relative_error(np.array([1.0, np.nan, 4.4]), official) == pytest.approx(0.1)
    assert relative_error(np.array([1.0, 2.0, 4.0]), official) == np.inf
    assert relative_error(np.array([np.nan, np.nan, 4.0]), official) == np.inf
    assert relative_error(official[:2], official) == np.inf
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == np.inf
