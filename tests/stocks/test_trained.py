"""Fitted baselines are read back as they were; a day's score does not depend on its neighbours."""

from pathlib import Path

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.baselines import BASELINES, Inputs
from manyhead.stocks.baselines.sequence import Sequence
from manyhead.stocks.baselines.tuning import baseline
from manyhead.stocks.calendar import running_index
from manyhead.stocks.dataset import Windows
from manyhead.stocks.factors import Factors
from manyhead.stocks.labels import Alignment, next_return
from manyhead.stocks.trained import by_day, load_baseline, save_baseline

DAYS, STOCKS = 330, 7
SYMBOLS = tuple(f"S{n}" for n in range(STOCKS))


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    random = np.random.default_rng(0)
    close = 20 * np.exp(np.cumsum(random.normal(0, 0.02, (DAYS, STOCKS)), axis=0))
    flow = next_return(close).astype(np.float32)
    factors = random.normal(size=(DAYS, STOCKS, 3)).astype(np.float32)
    time = running_index(DAYS + 2)
    alignment = Alignment("information", 6, 2)
    return Inputs(Windows(flow, Factors(("A", "B", "C"), factors), time, alignment), close)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_fitted_baseline_is_read_back_bit_for_bit(
    name: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sequence, "epochs", 1)
    train, validation, test = np.arange(280, 290), np.arange(292, 297), np.arange(318, 330)
    model = baseline(name)(seed=3).fit(inputs, train, validation)
    save_baseline(model, inputs, SYMBOLS, tmp_path)
    again, symbols = load_baseline(name, tmp_path)
    assert symbols == list(SYMBOLS)
    ours, theirs = by_day(model, inputs, test), by_day(again, inputs, test)
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.isfinite(ours).any()
    assert np.array_equal(by_day(again, inputs, test[-3:]), ours[-3:], equal_nan=True)
    assert np.allclose(ours, model.predict(inputs, test), atol=1e-5, equal_nan=True)


def test_a_missing_or_damaged_file_is_named(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fitted model"):
        load_baseline("ridge", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(InputError, match="is not a ridge of this run"):
        load_baseline("ridge", tmp_path)
