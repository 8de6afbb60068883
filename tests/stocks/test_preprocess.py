"""Pre-processing: each step against its definition; what it learns from; that no row sees the future."""

from itertools import pairwise

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.factors import (
    Factors,
    LaggedAlpha360,
    RollingAlpha158,
    alpha158,
    alpha360,
    join,
    store,
)
from manyhead.stocks.panel import Panel
from manyhead.stocks.preprocess import (
    ClipOutliers,
    CrossSectionZScore,
    ExcludeOutliers,
    FillMissing,
    ForwardFill,
    InfiniteToMean,
    Neutralise,
    Pipeline,
    Step,
    TrainingZScore,
    Winsorise,
    dead_inputs,
    learn_labels,
    log_dollar_volume,
)
from manyhead.stocks.preprocess.neutralise import residual, sector_codes
from tests.stocks.factors.panels import altered_after, random_panel

NAN, INF = np.nan, np.inf


def apply(step: Step, values: np.ndarray, fit: range | None = None) -> np.ndarray:
    """Run one step over (days, symbols, factors)."""
    values = np.asarray(values, np.float32)
    source = Factors(tuple(f"F{i}" for i in range(values.shape[-1])), values)
    pipeline = Pipeline((step,))
    return pipeline.fit(source, fit or range(len(values))).apply(source).rows(0, len(values))


def day(*values: float) -> np.ndarray:
    """One day of one factor."""
    return np.array(values, np.float32)[None, :, None]


def noise(*shape: int, gaps: float = 0.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(2, 3, shape).astype(np.float32)
    values[random.random(shape) < gaps] = NAN
    return values


def test_an_infinity_becomes_the_mean_of_the_day() -> None:
    out = apply(InfiniteToMean(), day(1, INF, 3, -INF, NAN))
    np.testing.assert_array_equal(out, day(1, 2, 3, 2, NAN))


def test_gaps_are_filled_from_the_newest_earlier_day_up_to_the_limit() -> None:
    series = np.array([NAN, 1, NAN, NAN, NAN, 5, NAN])[:, None, None]
    filled = {limit: apply(ForwardFill(limit), series)[:, 0, 0].tolist() for limit in (1, 2, None)}
    for limit, expected in {
        1: [NAN, 1, 1, NAN, NAN, 5, 5],
        2: [NAN, 1, 1, 1, NAN, 5, 5],
        None: [NAN, 1, 1, 1, 1, 5, 5],
    }.items():
        np.testing.assert_array_equal(filled[limit], expected)
    with pytest.raises(InputError, match="limit must be at least 1"):
        ForwardFill(0)


def test_values_beyond_three_sigma_are_excluded() -> None:
    values = noise(1, 400, 2)
    values[0, 7, 0], values[0, 9, 1] = 40, -50
    out = apply(ExcludeOutliers(3), values)
    sd, mean = values.std(axis=1, ddof=1), values.mean(axis=1)
    expected = np.where(np.abs(values - mean) > 3 * sd, NAN, values)
    np.testing.assert_array_equal(out, expected)
    assert np.isnan(out[0, 7, 0])
    assert np.isnan(out[0, 9, 1])


def test_both_tails_are_clipped_to_the_median_deviation() -> None:
    out = apply(ClipOutliers(3), day(-100, 1, 2, 3, 4, 5, 100, NAN))
    reach = 3 * 1.4826 * 2  # median 3, distances 103 2 1 0 1 2 97 -> 2
    np.testing.assert_allclose(out, day(3 - reach, 1, 2, 3, 4, 5, 3 + reach, NAN), rtol=1e-6)
    out = apply(ClipOutliers(0.1, spread="mean"), day(0, 4, 12))
    reach = 0.1 * 1.4826 * 4  # median 4, mean distance (4 + 0 + 8) / 3
    np.testing.assert_allclose(out, day(4 - reach, 4, 4 + reach), rtol=1e-6)


def test_a_mostly_constant_column_is_not_clipped_flat() -> None:
    values = day(0, 0, 0, 0, 0, 7, -3)
    np.testing.assert_array_equal(apply(ClipOutliers(), values), values)


def test_the_z_score_of_a_day() -> None:
    values = noise(3, 50, 4, gaps=0.2)
    out = apply(CrossSectionZScore(), values)
    wide = values.astype(np.float64)
    expected = (wide - np.nanmean(wide, axis=1, keepdims=True)) / np.nanstd(
        wide, axis=1, ddof=1, keepdims=True
    )
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-7)


def test_constant_columns_become_zero_and_infinities_missing() -> None:
    nearly = np.float32(0.1) * np.float32(3)
    values = np.stack([day(1, 1, 1, NAN), day(nearly, 0.3, nearly, 0.3), day(1, 2, INF, 3)])[
        ..., 0
    ].transpose(1, 2, 0)
    out = apply(CrossSectionZScore(), values)
    np.testing.assert_array_equal(out[0, :, 0], [0, 0, 0, NAN])
    np.testing.assert_array_equal(out[0, :, 1], [0, 0, 0, 0])
    np.testing.assert_allclose(out[0, :, 2], [-1, 0, NAN, 1])


def least_squares(y: np.ndarray, size: np.ndarray | None, sectors: np.ndarray) -> np.ndarray:
    """The definition: one regression a factor on [size, dummies], its missing rows left out."""
    dummies = (sectors[:, None] == np.unique(sectors)).astype(float)
    design = dummies if size is None else np.column_stack([size, dummies])
    left = np.full(y.shape, NAN)
    for factor in range(y.shape[1]):
        known = np.isfinite(y[:, factor]) & np.isfinite(design).all(axis=1)
        x = design[known]
        left[known, factor] = y[known, factor] - x @ np.linalg.lstsq(x, y[known, factor], rcond=None)[0]
    return left


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("sectors", [1, 5, 40])
def test_neutralisation_is_the_residual_of_least_squares(sized: bool, sectors: int) -> None:
    random = np.random.default_rng(sectors)
    y = noise(40, 7, gaps=0.15, seed=sectors).astype(np.float64)
    y[:, 6] = 1
    size = random.normal(20, 2, 40) if sized else None
    if size is not None:
        size[[3, 11]] = NAN
    codes = random.integers(0, sectors, 40)
    ours = residual(y.T, size, codes).T
    np.testing.assert_allclose(ours, least_squares(y, size, codes), atol=1e-9)


def test_neutral_factors_have_no_size_and_no_sector_left() -> None:
    values, size = noise(2, 60, 3, seed=4), noise(2, 60, seed=5).astype(np.float64)
    sectors = ["energy", "tech", None] * 20
    out = apply(Neutralise(size, sectors), values)
    for number in range(3):
        np.testing.assert_allclose(out[:, sector_codes(sectors) == number].sum(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose((out * size[..., None]).sum(axis=1), 0, atol=1e-3)
    # without either, only the mean goes; a day whose sizes are all unknown is handled like that
    np.testing.assert_allclose(
        apply(Neutralise(), values), values - values.mean(axis=1, keepdims=True), atol=1e-5
    )
    unknown = np.full((2, 60), NAN)
    np.testing.assert_array_equal(apply(Neutralise(unknown), values), apply(Neutralise(), values))
    with pytest.raises(InputError, match="59 sectors do not fit 60 symbols"):
        Neutralise(size, sectors[:-1])


def test_what_size_and_sector_explain_leaves_zero_not_amplified_rounding() -> None:
    random = np.random.default_rng(1)
    size = random.normal(20, 2, (1, 60))
    sectors = ["a", "b", "c"] * 20
    effect = np.array([0.1, 0.7, -0.3] * 20)
    values = np.stack([np.full((1, 60), 0.3), 0.05 * size + effect, size**2], axis=-1)
    pipeline = Pipeline((Neutralise(size, sectors), CrossSectionZScore(), FillMissing()))
    source = Factors(("constant", "explained", "curved"), values.astype(np.float32))
    out = pipeline.fit(source, range(0, 1)).apply(source).rows(0, 1)
    assert (out[..., :2] == 0).all()
    np.testing.assert_allclose(out[..., 2].std(ddof=1), 1, rtol=1e-5)


def test_the_size_proxy_is_the_log_of_the_median_money() -> None:
    panel = random_panel(30, 3, gaps=0.1, seed=8)
    proxy = log_dollar_volume(panel)
    assert proxy is not None
    money = panel["close"] * panel["volume"]
    for row, symbol in [(29, 2), (12, 1), (22, 0)]:
        recent = money[max(0, row - 19) : row + 1, symbol]
        if np.isfinite(recent).sum() >= 5:
            np.testing.assert_allclose(proxy[row, symbol], np.log(np.nanmedian(recent)), rtol=1e-6)
        else:
            assert np.isnan(proxy[row, symbol])
    assert np.isnan(proxy[:4]).all()
    assert log_dollar_volume(Panel(panel.dates, panel.symbols, {"close": panel["close"]})) is None


def test_the_training_z_score_learns_from_training_rows_only() -> None:
    values = noise(70, 6, 3, gaps=0.1)
    values[..., 2] = 1
    out = apply(TrainingZScore(), values, range(5, 50))
    seen = values[5:50].astype(np.float64)
    mean, std = np.nanmean(seen, axis=(0, 1)), np.nanstd(seen, axis=(0, 1))
    np.testing.assert_allclose(out[..., :2], (values[..., :2] - mean[:2]) / std[:2], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(out[..., 2], values[..., 2])  # no spread: left as it is
    values[50:] *= 100
    assert apply(TrainingZScore(), values, range(5, 50))[:50].tobytes() == out[:50].tobytes()


def test_winsorising_clips_to_training_quantiles() -> None:
    values = np.arange(1000, dtype=np.float32).reshape(100, 10, 1)
    out = apply(Winsorise(tail=0.1), values, range(0, 50))  # training values 0..499
    np.testing.assert_array_equal(np.unique(out), np.arange(49, 451))
    with pytest.raises(InputError, match="tail"):
        Winsorise(0.5)


def full_pipeline(panel: Panel) -> Pipeline:
    sectors = [["a", "b", None][index % 3] for index in range(len(panel.symbols))]
    return Pipeline(
        (
            InfiniteToMean(),
            Winsorise(0.01),
            ForwardFill(3),
            ClipOutliers(3),
            ExcludeOutliers(2.5),
            Neutralise(log_dollar_volume(panel), sectors),
            CrossSectionZScore(),
            TrainingZScore(),
            FillMissing(),
        )
    )


def test_rows_are_bit_identical_however_they_are_asked_for() -> None:
    panel = random_panel(100, 12, seed=4, gaps=0.05)
    raw = join([LaggedAlpha360(panel, (0, 1, 5, 59)), alpha158(panel, (5, 20))])
    clean = full_pipeline(panel).fit(raw, range(0, 70)).apply(raw)
    whole = store(clean).values
    assert np.isfinite(whole).all()
    for edges in ([0, 1, 2, 50, 100], [0, 99, 100], [0, 33, 66, 100]):
        pieces = [clean.rows(start, stop) for start, stop in pairwise(edges)]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_a_fitted_pipeline_survives_storage() -> None:
    panel = random_panel(80, 10, seed=4, gaps=0.05)
    raw, pipeline = LaggedAlpha360(panel, (0, 1, 5)), full_pipeline(panel)
    fitted = pipeline.fit(raw, range(0, 50))
    state = fitted.state()
    assert sorted(state) == ["1.lower", "1.upper", "7.mean", "7.std"]
    again = pipeline.restore({name: array.copy() for name, array in state.items()})
    assert again.apply(raw).rows(0, 80).tobytes() == fitted.apply(raw).rows(0, 80).tobytes()
    with pytest.raises(InputError, match=r"no place for state '9\.mean'"):
        pipeline.restore({"9.mean": state["7.mean"]})
    with pytest.raises(InputError, match="training rows"):
        pipeline.fit(raw, range(0, 81))


@pytest.mark.parametrize("row", [60, 85, 98])
def test_no_row_of_any_factor_sees_a_later_price(row: int) -> None:
    panel = random_panel(100, 12, seed=6, gaps=0.04)
    before, after = [], []
    for found, prices in ((before, panel), (after, altered_after(panel, row))):
        for raw in (LaggedAlpha360(prices), RollingAlpha158(prices)):
            clean = full_pipeline(prices).fit(raw, range(0, 61)).apply(raw)
            found += [raw.rows(0, row + 1), clean.rows(0, row + 1)]
    for one, other in zip(before, after, strict=True):
        assert one.tobytes() == other.tobytes()
    # and the test can fail: a scaler fitted past the row moves what lies before it
    raw = alpha360(panel, (1, 2)), alpha360(altered_after(panel, row), (1, 2))
    leaky = [
        Pipeline((TrainingZScore(),)).fit(source, range(0, 100)).apply(source).rows(0, row + 1)
        for source in raw
    ]
    assert leaky[0].tobytes() != leaky[1].tobytes()


def with_a_day_without_volume(level: float) -> Panel:
    panel = random_panel(140, 20, seed=2)
    volume = panel["volume"] * np.float32(level)
    volume[80, 3] = 0
    return Panel(panel.dates, panel.symbols, {**panel.fields, "volume": volume})


QLIB = Pipeline((InfiniteToMean(), TrainingZScore(), FillMissing()))
LAGGED_VOLUMES = tuple(f"VOLUME{lag}" for lag in range(59, 0, -1))


def test_one_day_without_volume_kills_59_inputs_as_in_the_released_model() -> None:
    raw = alpha360(with_a_day_without_volume(level=1e4))
    rows = range(0, 140)
    report = dead_inputs(QLIB.fit(raw, rows).apply(raw), rows)
    assert report.zero == LAGGED_VOLUMES
    assert report.constant == ("CLOSE0", "VOLUME0")
    assert "59 factors are zero" in report.sentences()[0]


def test_volumes_too_small_to_overflow_swamp_the_same_inputs() -> None:
    raw = alpha360(with_a_day_without_volume(level=1e-3))
    rows = range(0, 140)
    report = dead_inputs(QLIB.fit(raw, rows).apply(raw), rows)
    assert set(report.swamped) | set(report.constant) == {"CLOSE0", "VOLUME0", *LAGGED_VOLUMES}
    assert report.zero == ()
    # sqrt(2800 stock-days) = 53 standard deviations, but for the lags that have fewer values
    assert set(LAGGED_VOLUMES[-10:]) <= set(report.exploding)


def test_missing_instead_of_zero_and_winsorising_heal_them() -> None:
    panel = with_a_day_without_volume(level=1e4)
    rows = range(0, 140)
    volume = np.where(panel["volume"] == 0, np.float32(NAN), panel["volume"])
    healed = alpha360(Panel(panel.dates, panel.symbols, {**panel.fields, "volume": volume}))
    clipping = Pipeline((InfiniteToMean(), Winsorise(0.001), TrainingZScore(), FillMissing()))
    for raw, pipeline in ((healed, clipping), (healed, QLIB), (alpha360(panel), clipping)):
        report = dead_inputs(pipeline.fit(raw, rows).apply(raw), rows)
        assert report.zero == report.swamped == report.exploding == report.missing == ()
        assert report.constant == ("CLOSE0", "VOLUME0")


def test_mostly_missing_inputs_are_named() -> None:
    values = noise(40, 5, 3)
    values[:30, :, 1] = NAN
    values[..., 2] = NAN
    report = dead_inputs(Factors(("A", "B", "C"), values), range(0, 40))
    assert report.missing == ("B", "C")
    assert report.zero == report.constant == ()
    with pytest.raises(InputError, match="at least one row"):
        dead_inputs(Factors(("A", "B", "C"), values), range(3, 3))


def test_labels_are_scored_by_day_and_left_missing_unless_qlib_is_wanted() -> None:
    label = noise(30, 8, gaps=0.2).astype(np.float64)
    label[5] = NAN
    plain = learn_labels(label)
    np.testing.assert_array_equal(np.isnan(plain), np.isnan(label))
    np.testing.assert_allclose(np.nanmean(plain[:5], axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(plain[:5], axis=1, ddof=1), 1)
    quirk = learn_labels(label, range(0, 20), qlib_compat=True)
    assert np.isnan(quirk[5]).all()  # all average: no spread
    assert np.isfinite(quirk[:5]).all()
    with pytest.raises(InputError, match="fit_rows"):
        learn_labels(label, qlib_compat=True)
