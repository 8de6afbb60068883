"""What one test measured must not choose the kernels of another."""

import pytest

from manyhead import planning


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_MEASURED", {})
