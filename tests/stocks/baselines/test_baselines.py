"""Each baseline finds a signal planted for it, repeats under its seed, and reads nothing from the future."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from manyhead.errors import InputError
from manyhead.stocks.baselines import BASELINES, Inputs, baseline, is_random, tune
from manyhead.stocks.baselines.base import mean_ic
from manyhead.stocks.baselines.reversal import past_return
from manyhead.stocks.baselines.ridge import Ridge
from manyhead.stocks.baselines.sequence import Sequence
from manyhead.stocks.baselines.tcn import Convolutions
from manyhead.stocks.calendar import running_index
from manyhead.stocks.dataset import Windows
from manyhead.stocks.factors import Factors
from manyhead.stocks.labels import Alignment, next_return

DAYS, STOCKS, WIDTH = 220, 16, 3
TRAIN, VALIDATION, TEST = range(20, 150), range(150, 185), range(185, 218)
SEQUENCES = ("lstm", "gru", "transformer", "tcn")
LEARNED = ("ridge", "lightgbm", *SEQUENCES)
# smaller than the defaults, so that the tests stay short
SMALL: dict[str, dict[str, Any]] = {
    "ridge": {},
    "lightgbm": {"num_leaves": 15, "learning_rate": 0.1},
    "lstm": {"hidden": 16, "learning_rate": 1e-2},
    "gru": {"hidden": 16, "learning_rate": 1e-2},
    "transformer": {"dim": 16, "heads": 2, "learning_rate": 1e-2},
    "tcn": {"channels": 16, "learning_rate": 1e-2},
}


def planted(kind: str = "newest", align: str = "information", seed: int = 0) -> Inputs:
    """A market whose next returns follow a factor that was known: of the newest day, or of three before."""
    generator = np.random.default_rng(seed)
    factors = generator.standard_normal((DAYS, STOCKS, WIDTH)).astype(np.float32)
    alignment = Alignment(align, 8, 2)  # type: ignore[arg-type]
    sample = alignment.window(0)
    behind = sample.decision - sample.factors[-1]  # days by which the factors of a window are old
    signal = np.roll(factors[..., 0] if kind == "newest" else factors[..., 1], behind, axis=0)
    if kind == "older":
        signal = np.roll(signal, 3, axis=0)
    daily = 0.01 * generator.standard_normal((DAYS, STOCKS))
    daily[2:] += 0.015 * signal[:-2]  # row t is bought at t+1 and sold at t+2
    close = 100 * np.exp(np.cumsum(daily, axis=0))
    flow = next_return(close).astype(np.float32)
    names = tuple(f"factor{index}" for index in range(WIDTH))
    return Inputs(Windows(flow, Factors(names, factors), running_index(DAYS + 2), alignment), close)


def rows(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    windows = inputs.windows
    train = windows.decision_rows(TRAIN, labelled=True)
    validation = windows.decision_rows(VALIDATION, labelled=True)
    return train, validation, windows.decision_rows(TEST)


def fitted(name: str, inputs: Inputs, seed: int = 0) -> np.ndarray:
    train, validation, test = rows(inputs)
    model = baseline(name)(SMALL.get(name), seed)
    return model.fit(inputs, train, validation).predict(inputs, test)


@pytest.mark.parametrize("align", ["information", "official"])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_baselines_find_what_the_newest_day_tells(name: str, align: str) -> None:
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    inputs = planted("newest", align)
    test = rows(inputs)[2]
    returns = inputs.returns(test)
    scores = fitted(name, inputs)
    assert mean_ic(scores, returns) > 0.5  # the signal itself has 0.83
    shuffled = np.random.default_rng(1).permuted(returns, axis=1)
    assert abs(mean_ic(scores, shuffled)) < 0.2


@pytest.mark.parametrize("name", SEQUENCES)
def test_networks_over_windows_find_what_an_older_day_tells(name: str) -> None:
    inputs = planted("older")
    returns = inputs.returns(rows(inputs)[2])
    assert mean_ic(fitted(name, inputs), returns) > 0.4
    assert abs(mean_ic(fitted("ridge", inputs), returns)) < 0.2  # it sees the newest day only


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_score_does_not_change_when_anything_after_its_decision_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sequence, "epochs", 2)
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    inputs = planted()
    train, validation, test = rows(inputs)
    decision = int(test[0])
    factors, close = inputs.windows.factors.values.copy(), inputs.close.copy()  # type: ignore[attr-defined]
    factors[decision + 1 :] = 7
    close[decision + 1 :] *= 1.5 + np.random.default_rng(5).random(close[decision + 1 :].shape)
    flow = next_return(close).astype(np.float32)
    assert not np.array_equal(flow[decision - 1], inputs.windows.flow[decision - 1])
    windows = replace(inputs.windows, flow=flow, factors=Factors(inputs.windows.factors.names, factors))
    before, after = (
        baseline(name)(SMALL.get(name)).fit(market, train, validation).predict(market, test[:1])
        for market in (inputs, Inputs(windows, close))
    )
    assert np.array_equal(before, after, equal_nan=True)


@pytest.mark.parametrize("name", LEARNED)
def test_a_seed_repeats_and_only_random_baselines_depend_on_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sequence, "epochs", 2)
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    inputs = planted(seed=2)
    torch.manual_seed(99)
    first = fitted(name, inputs, seed=1)
    state = torch.random.get_rng_state()
    assert np.array_equal(first, fitted(name, inputs, seed=1))
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's generator is left alone
    assert np.array_equal(first, fitted(name, inputs, seed=2)) != is_random(name)


def test_scores_are_in_units_of_returns() -> None:
    inputs = planted()
    returns = inputs.returns(rows(inputs)[2])
    forecast = fitted("ridge", inputs)
    known = np.isfinite(returns)
    slope, level = np.polyfit(forecast[known], returns[known], 1)
    assert slope == pytest.approx(1, abs=0.15)
    assert abs(level) < 0.003
    assert ((forecast > 0) == (returns > 0))[known].mean() > 0.7


def test_ridge_solves_its_equation() -> None:
    inputs = planted()
    train, validation, _ = rows(inputs)
    model = Ridge({"penalty": 0.3})
    model.fit(inputs, train, validation)
    x = np.concatenate([values for _, values in inputs.latest(train, inputs.scale(train))])
    y = inputs.targets(train)
    known = np.isfinite(y)
    x, y = x[known].astype(np.float64), y[known].astype(np.float64)
    centred = (x - x.mean(axis=0)) / x.std(axis=0)
    weight = model.weight * x.std(axis=0)
    gradient = centred.T @ (centred @ weight - (y - y.mean())) / len(y) + 0.3 * weight
    assert np.abs(gradient).max() < 1e-6


def test_a_constant_input_does_not_disturb_ridge() -> None:
    inputs = planted()
    values = inputs.windows.factors.values.copy()  # type: ignore[attr-defined]
    values[..., 2] = 1.0
    windows = replace(inputs.windows, factors=Factors(inputs.windows.factors.names, values))
    constant = Inputs(windows, inputs.close)
    train, validation, _ = rows(constant)
    model = Ridge().fit(constant, train, validation)
    assert model.weight[2] == 0
    assert np.isfinite(model.weight).all()


@pytest.mark.parametrize("name", ["ridge", "lightgbm", "gru"])
def test_missing_returns_of_some_stocks_are_no_obstacle(name: str) -> None:
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    inputs = planted()
    flow, close = inputs.windows.flow.copy(), inputs.close.copy()
    flow[:, 0] = np.nan
    close[:, 0] = np.nan
    flow[np.random.default_rng(0).random(flow.shape) < 0.3] = np.nan
    gapped = Inputs(replace(inputs.windows, flow=flow), close)
    scores = fitted(name, gapped)
    assert np.isfinite(scores).all()
    assert mean_ic(scores, inputs.returns(rows(inputs)[2])) > 0.4


def test_past_returns_use_the_last_price_known() -> None:
    close = np.arange(1.0, 31.0)[:, None] * np.ones(3)
    close[5, 1] = np.nan
    close[25, 2] = np.nan
    at = np.array([25, 4])
    expected = np.array([[26 / 6 - 1, 26 / 5 - 1, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(past_return(close, at, 20), expected, rtol=1e-6)
    np.testing.assert_allclose(past_return(close, at, 20, 10)[0, 0], 16 / 6 - 1, rtol=1e-6)


def test_prices_that_revert_or_trend_are_found() -> None:
    generator = np.random.default_rng(0)
    days = 600
    trend = 0.002 * generator.standard_normal((1, 12)) + 0.01 * generator.standard_normal((days, 12))
    noise = np.cumsum(0.01 * generator.standard_normal((days, 12)), axis=0)
    swing = noise - np.stack([noise[max(0, day - 30) : day + 1].mean(axis=0) for day in range(days)])
    for name, close in (("momentum", np.exp(np.cumsum(trend, axis=0))), ("reversal", np.exp(3 * swing))):
        flow = next_return(close).astype(np.float32)
        windows = Windows(
            flow, Factors((), np.zeros((days, 12, 0), np.float32)), running_index(days + 2), Alignment()
        )
        inputs = Inputs(windows, close)
        train, validation, test = np.arange(300, 350), np.arange(350, 400), np.arange(400, 590)
        scores = baseline(name)().fit(inputs, train, validation).predict(inputs, test)
        assert mean_ic(scores, inputs.returns(test)) > 0.05


def test_equal_weight_has_no_opinion() -> None:
    inputs = planted()
    scores = fitted("equal_weight", inputs)
    assert len(np.unique(scores)) == 1
    assert np.isnan(mean_ic(scores, inputs.returns(rows(inputs)[2])))
    train, validation, _ = rows(inputs)
    assert np.isnan(tune("equal_weight", inputs, train, validation).validation_ic)


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_gets_the_same_number_of_different_trials(name: str) -> None:
    kind = baseline(name)
    for trials in (1, 3, 6):
        choices = kind.choices(trials, seed=4)
        assert len(choices) == (trials if kind.space else 1)
        assert len({tuple(sorted(choice.items())) for choice in choices}) == len(choices)
        assert choices == kind.choices(trials, seed=4)


def test_the_choice_is_made_on_validation_and_written_down() -> None:
    inputs = planted()
    train, validation, _ = rows(inputs)
    told: list[str] = []
    tuned = tune("ridge", inputs, train, validation, trials=4, progress=told.append)
    assert len(tuned.ledger) == len(told) == 4
    assert tuned.validation_ic == max(trial["validation_ic"] for trial in tuned.ledger)
    assert {**tuned.choice, "validation_ic": tuned.validation_ic} in tuned.ledger
    again = mean_ic(tuned.model.predict(inputs, validation), inputs.returns(validation))
    assert again == tuned.validation_ic


def test_targets_have_mean_zero_and_spread_one_each_day() -> None:
    returns = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    returns[1, :4] = np.nan
    returns[2] = 0.25
    returns[3] = np.nan
    days = np.arange(5)
    inputs = planted()
    flow = np.full_like(inputs.windows.flow, np.nan)
    flow[:5, :9] = returns
    ours = Inputs(replace(inputs.windows, flow=flow), inputs.close).targets(days)[:, :9]
    assert np.array_equal(np.isnan(ours), np.isnan(returns))
    assert (ours[2] == 0).all()
    np.testing.assert_allclose(np.nanmean(ours[[0, 1, 4]], axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.nanstd(ours[[0, 1, 4]], axis=1, ddof=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("days", [1, 8, 20])
def test_the_convolutions_read_the_whole_window_and_nothing_later(days: int, kernel: int) -> None:
    torch.manual_seed(0)
    network = Convolutions(2, days, 8, kernel, 0.0).eval()
    window = torch.randn(16, days, 2, requires_grad=True)
    network(window).sum().backward()
    assert window.grad is not None
    assert (window.grad.abs().sum(dim=(0, 2)) > 0).all()
    states = network.blocks(window.detach().transpose(1, 2))
    later = window.detach().clone()
    later[:, -1] = 9
    assert torch.equal(network.blocks(later.transpose(1, 2))[..., :-1], states[..., :-1])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda i, t, v: tune("perceptron", i, t, v), "perceptron"),
        (lambda i, t, v: tune("ridge", i, t, v, trials=0), "trials"),
        (lambda i, t, v: tune("ridge", i, t[:0], v), "train"),
        (lambda i, t, v: tune("ridge", i, t, v[:0]), "validation"),
        (lambda i, t, v: Ridge({"alpha": 1.0}), "alpha"),
        (lambda i, t, v: Inputs(i.windows, i.close[1:]), "close"),
    ],
)
def test_wrong_arguments_are_named(call: Any, names: str) -> None:
    inputs = planted()
    train, validation, _ = rows(inputs)
    with pytest.raises(InputError, match=names):
        call(inputs, train, validation)
