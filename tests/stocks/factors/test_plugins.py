"""Users' own factors: what is accepted, what is said when something is wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.canary import check_functions
from manyhead.stocks.factors import extra_factors
from tests.stocks.factors.panels import random_panel

PANEL = random_panel(30, 4, seed=9)

CODE = """
import numpy as np
def range_share(panel):
    return (panel["high"] - panel["low"]) / panel["close"]
def pair(panel):
    return {"GAP": panel["open"] / panel["close"] - 1, "ONE": np.ones(panel["close"].shape)}
def tomorrow(panel):
    return {"NEXT": np.roll(panel["close"], -1, axis=0), "NOW": panel["close"]}
def wrong_shape(panel):
    return panel["close"][:-1]
def text(panel):
    return [["a"] * 4] * 30
def broken(panel):
    return panel["close"] / panel["no_such_field"]
number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_factors.py").write_text(CODE)
    (tmp_path / "bad_syntax.py").write_text("def (")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_factors", "bad_syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_arrays_and_mappings_become_named_columns() -> None:
    factors = extra_factors(PANEL, ["my_factors:pair", "my_factors:range_share"])
    assert factors.names == ("GAP", "ONE", "range_share")
    assert factors.values.dtype == np.float32
    expected = (PANEL["high"] - PANEL["low"]) / PANEL["close"]
    np.testing.assert_array_equal(factors.values[..., 2], expected)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("my_factors", "must be written 'module:function'"),
        ("my_factors:", "must be written 'module:function'"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("bad_syntax:f", "importing 'bad_syntax' failed with SyntaxError"),
        ("my_factors:absent", "has no function 'absent'"),
        ("my_factors:number", "has no function 'number'"),
        ("my_factors:wrong_shape", r"must be \(days, symbols\) = \(30, 4\), got \(29, 4\)"),
        ("my_factors:text", "is not numeric"),
        ("my_factors:broken", "no_such_field"),
    ],
)
def test_what_is_wrong_is_said(target: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        extra_factors(PANEL, [target])


def test_names_must_differ() -> None:
    with pytest.raises(InputError, match="'GAP' comes twice"):
        extra_factors(PANEL, ["my_factors:pair", "my_factors:pair"])
    with pytest.raises(InputError, match="at least one"):
        extra_factors(PANEL, [])


def test_a_factor_that_reads_tomorrow_is_found() -> None:
    functions = ["my_factors:tomorrow", "my_factors:range_share"]
    assert {leak.stage for leak in check_functions(functions, PANEL, [20])} == {"NEXT"}
