"""The canary finds planted leaks of many kinds, says where they came in, and is silent on clean code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyhead.stocks.canary import REPLACEMENTS, check_factor, check_functions, check_pipeline, replaced
from manyhead.stocks.config import build
from manyhead.stocks.factors import alpha158, alpha360
from manyhead.stocks.panel import Panel
from manyhead.stocks.prices import read_prices
from manyhead.stocks.splits import choose_splits
from tests.stocks.market import SMALL, market, written

Table = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return read_prices(written(market(), tmp_path_factory.mktemp("prices") / "prices.parquet"))


def close(panel: Panel) -> Table:
    return panel["close"].astype(np.float64)


def filled(values: Table) -> Table:
    return np.nan_to_num(values, nan=1.0)


def ahead(values: Table, days: int) -> Table:
    """The value of a later day."""
    moved = np.full_like(values, np.nan)
    moved[:-days] = values[days:]
    return moved


def backfilled(values: Table) -> Table:
    copy = values.copy()
    for row in range(len(copy) - 2, -1, -1):
        gap = np.isnan(copy[row])
        copy[row, gap] = copy[row + 1, gap]
    return copy


def centred(values: Table, reach: int) -> Table:
    return np.stack(
        [values[max(0, row - reach) : row + reach + 1].mean(axis=0) for row in range(len(values))]
    )


def interpolated(values: Table) -> Table:
    copy, rows = values.copy(), np.arange(len(values))
    for column in copy.T:
        known = np.isfinite(column)
        column[:] = np.interp(rows, rows[known], column[known])
    return copy


def smoothed_both_ways(values: Table) -> Table:
    forward, backward = values.copy(), values.copy()
    for row in range(1, len(values)):
        forward[row] = 0.8 * forward[row - 1] + 0.2 * values[row]
    for row in range(len(values) - 2, -1, -1):
        backward[row] = 0.8 * backward[row + 1] + 0.2 * values[row]
    return forward + backward


LEAKY: dict[str, Callable[[Panel], Table]] = {
    "tomorrow's close": lambda p: ahead(close(p), 1),
    "tomorrow's return": lambda p: ahead(close(p), 1) / close(p) - 1,
    "the label": lambda p: ahead(close(p), 2) / ahead(close(p), 1) - 1,
    "a label shifted by one": lambda p: ahead(close(p), 1) / close(p),
    "return of the coming week": lambda p: ahead(close(p), 5) / close(p),
    "next month's mean volume": lambda p: ahead(filled(p["volume"]), 20),
    "tomorrow's open gap": lambda p: ahead(p["open"], 1) / close(p),
    "tomorrow's high": lambda p: ahead(p["high"], 1),
    "tomorrow's low": lambda p: ahead(p["low"], 1),
    "centred rolling mean": lambda p: centred(filled(close(p)), 3),
    "centred volume": lambda p: centred(filled(p["volume"]), 10),
    "scaler over all dates": lambda p: (
        (close(p) - np.nanmean(close(p), axis=0)) / np.nanstd(close(p), axis=0)
    ),
    "range over all dates": lambda p: (close(p) - np.nanmin(close(p), 0)) / np.ptp(filled(close(p)), axis=0),
    "median over all dates": lambda p: close(p) - np.nanmedian(close(p), axis=0),
    "one scale for everything": lambda p: close(p) / np.nanstd(close(p)),
    "rank over all dates": lambda p: filled(close(p)).argsort(axis=0).argsort(axis=0).astype(float),
    "quantile clip over all dates": lambda p: np.minimum(close(p), np.nanquantile(close(p), 0.9, axis=0)),
    "back-filled gap": lambda p: backfilled(ahead(close(p), 1) * 0 + close(p)),
    "interpolated gap": lambda p: interpolated(close(p)),
    "price over the last price": lambda p: close(p) / filled(close(p))[-1],
    "drawdown to the end": lambda p: filled(close(p)) / np.maximum.accumulate(filled(close(p))[::-1])[::-1],
    "days to the next peak": lambda p: np.maximum.accumulate(filled(close(p))[::-1])[::-1],
    "share of later up days": lambda p: np.cumsum((filled(close(p)) > 50)[::-1], axis=0)[::-1].astype(float),
    "mean of all later days": lambda p: np.cumsum(filled(close(p))[::-1], axis=0)[::-1],
    "correlation over all dates": lambda p: (
        filled(close(p)) @ np.corrcoef(np.diff(filled(close(p)), axis=0), rowvar=False)
    ),
    "principal component of all dates": lambda p: (
        filled(close(p)) @ np.linalg.svd(filled(close(p)), full_matrices=False)[2].T
    ),
    "trend line of all dates": lambda p: (
        close(p)
        - np.polyval(
            np.polyfit(np.arange(p.days), np.nan_to_num(close(p).mean(axis=1), nan=50), 1), np.arange(p.days)
        )[:, None]
    ),
    "Fourier low pass": lambda p: np.fft.irfft(
        np.fft.rfft(filled(close(p)), axis=0) * (np.arange(p.days // 2 + 1) < 20)[:, None], p.days, axis=0
    ),
    "smoothing both ways": lambda p: smoothed_both_ways(filled(close(p))),
    "universe by future volume": lambda p: np.where(
        filled(p["volume"])[-50:].sum(axis=0) > np.median(filled(p["volume"])[-50:].sum(axis=0)),
        close(p),
        np.nan,
    ),
    "who is still listed at the end": lambda p: np.where(np.isfinite(close(p)[-1]), close(p), np.nan),
    "number of days that will exist": lambda p: close(p) * np.isfinite(close(p)).sum(axis=0),
    "winsorised by future extremes": lambda p: np.clip(
        close(p), 0, np.nanmax(close(p)[p.days // 2 :], axis=0)
    ),
    "group by future volatility": lambda p: close(p) * np.nanstd(np.diff(close(p), axis=0), axis=0),
}

CLEAN: dict[str, Callable[[Panel], Table]] = {
    "past return": lambda p: np.vstack([np.ones((1, len(p.symbols))), close(p)[1:] / close(p)[:-1]]),
    "rank within the day": lambda p: filled(close(p)).argsort(axis=1).argsort(axis=1).astype(float),
    "expanding mean": lambda p: np.cumsum(filled(close(p)), axis=0) / np.arange(1, p.days + 1)[:, None],
    "constant": lambda p: np.ones((p.days, len(p.symbols))),
    "bar range": lambda p: p["high"] / p["low"],
}
ROWS = (90, 200, 280)


@pytest.mark.parametrize("name", sorted(LEAKY))
def test_a_planted_leak_is_found_and_located(name: str, panel: Panel) -> None:
    with np.errstate(all="ignore"):
        if name == "back-filled gap":  # visible only where a gap ends after the decision
            holes = close(panel).copy()
            holes[200, :3] = np.nan
            panel = Panel(panel.dates, panel.symbols, {**panel.fields, "close": holes}, panel.warnings)
        if name in ("interpolated gap",):
            holes = close(panel).copy()
            holes[199:201] = np.nan
            panel = Panel(panel.dates, panel.symbols, {**panel.fields, "close": holes}, panel.warnings)
        leaks = check_factor(_tolerant(LEAKY[name]), panel, ROWS, name)
    assert leaks, f"{name} was not noticed"
    assert all(leak.stage == name and leak.changed <= leak.decision for leak in leaks)


def _tolerant(factor: Callable[[Panel], Table]) -> Callable[[Panel], Table]:
    """Some planted factors cannot digest missing prices: those then count as all missing."""

    def computed(panel: Panel) -> Table:
        try:
            return factor(panel)
        except (np.linalg.LinAlgError, ValueError, TypeError):
            return np.full((panel.days, len(panel.symbols)), np.nan)

    return computed


@pytest.mark.parametrize("name", sorted(CLEAN))
def test_a_clean_factor_raises_no_alarm(name: str, panel: Panel) -> None:
    with np.errstate(all="ignore"):
        assert check_factor(CLEAN[name], panel, ROWS, name) == []


@pytest.mark.parametrize("factors", [alpha158, alpha360])
def test_the_published_factor_sets_raise_no_alarm(factors: Callable[[Panel], Any], panel: Panel) -> None:
    assert check_factor(lambda p: {"set": factors(p).values}, panel, [200], "set") == []


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_replacement_changes_everything_after_the_row_and_nothing_before(
    replacement: str, panel: Panel
) -> None:
    other = replaced(panel, 100, replacement)
    for name, values in panel.fields.items():
        assert np.array_equal(values[:101], other[name][:101], equal_nan=True)
        known = np.isfinite(values[101:])
        assert not (values[101:][known] == other[name][101:][known]).any()


def leaks_of(panel: Panel, settings: dict[str, Any], preset: str = "fast", **options: Any) -> list[Any]:
    config = build(SMALL, settings, preset=preset)
    (split,) = choose_splits(config, panel.days).values()
    return check_pipeline(panel, split, config, **options)


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_the_clean_presets_raise_no_alarm_down_to_scores_and_trades(preset: str, panel: Panel) -> None:
    settings = {"training": {"epochs": 1}, "splits": {"within": False}}
    assert leaks_of(panel, settings, preset, rows=[265, 280], replacements=["noise"]) == []


@pytest.mark.parametrize(
    ("leak", "stage"),
    [
        ("universe_all_dates", "universe"),
        ("scaler_all_dates", "scaled factors"),
        ("label_as_factor", "scaled factors"),
        ("graph_all_dates", "relations"),
    ],
)
def test_a_leak_in_the_pipeline_is_located_at_its_stage(leak: str, stage: str, panel: Panel) -> None:
    settings = {"leaks": {leak: True}, "factors": {"scaling": "training"}}
    found = leaks_of(panel, settings, rows=[262], train=False)
    assert {one.stage for one in found} == {stage}
    assert "changed when prices after" in str(found[0])


def test_a_users_factor_is_named_when_it_looks_ahead(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_canary.py").write_text(
        "import numpy as np\n"
        "def peek(panel):\n    return np.roll(panel['close'], -1, axis=0)\n"
        "def fair(panel):\n    return panel['close']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    leaks = check_functions(["mine_canary:fair", "mine_canary:peek"], panel, [100])
    assert {leak.stage for leak in leaks} == {"peek"}
