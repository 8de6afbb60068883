"""The network is its plain definition, in values and gradients, and has the invariants of the paper."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stockformer_step import step_flops
from manyhead.errors import InputError
from manyhead.stocks.network import Forecast, Stockformer, copying, official_parameter_count
from manyhead.stocks.network.convolution import CausalConvolution
from manyhead.stocks.network.official import official_views
from manyhead.stocks.network.reference import stockformer_reference
from tests.stocks.network.test_copying import Largest

SMALL = {"features": 5, "dim": 8, "layers": 2, "input_days": 6, "output_days": 2}


def build(**options: Any) -> Stockformer:
    torch.manual_seed(0)
    return Stockformer(**(SMALL | options)).double().eval()


def inputs(network: Stockformer, batch: int = 2, stocks: int = 7, seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    days, ahead = network.input_days, network.output_days
    day = torch.arange(days + ahead) + 40
    return {
        "low": normal(batch, days, stocks),
        "high": normal(batch, days, stocks),
        "te": torch.stack([day // 21, day % 21], -1).expand(batch, -1, -1),
        "bonus": normal(batch, days, stocks, network.features - 2),
        "trend": (normal(batch, days, stocks) > 0).double(),
        "adjgat": normal(stocks, network.dim),
    }


def total(outputs: list[Tensor]) -> Tensor:
    """One number that depends on every output differently."""
    return torch.stack([((i + 1) * out + out.square()).sum() for i, out in enumerate(outputs)]).sum()


CASES: list[dict[str, Any]] = [
    {},
    {"fusion_self": True},
    {"st_temporal": True},
    {"fusion_self": True, "st_temporal": True, "head_dim": 3, "layers": 1},
    {"output_days": 1, "input_days": 1},
    {"features": 2, "classes": 3, "output_days": 3},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_plain_definition_with_all_gradients(options: dict[str, Any], masked: bool) -> None:
    network = build(**options)
    given = inputs(network)
    for name in ("low", "high", "bonus", "adjgat"):
        given[name].requires_grad_()
    if masked:
        given["available"] = torch.rand(given["low"].shape, generator=torch.Generator().manual_seed(3)) < 0.7
    wanted = [*network.parameters(), *(given[name] for name in ("low", "high", "bonus", "adjgat"))]
    ours = network(**given)
    plain = stockformer_reference(
        official_views(network),
        **given,
        head_dim=options.get("head_dim", network.dim),
        fusion_self=options.get("fusion_self", False),
        st_temporal=options.get("st_temporal", False),
    )
    expected = [plain[name] for name in ("class", "class_low", "reg", "reg_low")]
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
    found = torch.autograd.grad(total(list(ours)), wanted)
    for one, other in zip(found, torch.autograd.grad(total(expected), wanted), strict=True):
        torch.testing.assert_close(one, other)


def test_one_stock_and_shapes() -> None:
    network = build(classes=3)
    out = network(**inputs(network, batch=1, stocks=1))
    assert out.class_logits.shape == out.class_logits_low.shape == (1, 2, 1, 3)
    assert out.returns.shape == out.returns_low.shape == (1, 2, 1)
    # Alone, a stock attends to itself: C' is Linear_v(y), and the attention that it receives is 1.
    assert torch.equal(network.spatial_attention(**inputs(network, 1, 1)), torch.ones(2, 2, 1, 1).double())


def test_no_step_over_days_sees_later_days() -> None:
    network = build()
    layer, x, day = network.encoder[0], torch.randn(2, 6, 7, 8).double(), 3
    te = torch.randn(2, 6, 1, 8).double()
    later = x.clone()
    later[:, day + 1 :] += 5.0
    for step in (lambda x: layer.attention(x, te), layer.convolution, lambda x: network.fusion(x, x.flip(2))):
        one, two = step(x), step(later)
        assert torch.equal(one[:, : day + 1], two[:, : day + 1])
        assert not torch.allclose(one[:, day + 1 :], two[:, day + 1 :])


def test_spatial_attention_stays_within_its_day() -> None:
    network = build()
    spatial, x, adjgat = network.encoder[0].spatial_low, torch.randn(2, 6, 7, 8).double(), torch.randn(7, 8)
    other = x.clone()
    other[:, 3] += 5.0
    one, two = spatial(x, adjgat.double()), spatial(other, adjgat.double())
    kept = [0, 1, 2, 4, 5]
    assert torch.equal(one[:, kept], two[:, kept])
    assert not torch.allclose(one[:, 3], two[:, 3])


def test_permuting_stocks_permutes_outputs_and_attention() -> None:
    network = build()
    given = inputs(network)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = {name: x[:, :, order] for name, x in given.items() if name not in ("te", "adjgat")}
    moved |= {"te": given["te"], "adjgat": given["adjgat"][order]}
    for one, two in zip(network(**given), network(**moved), strict=True):
        torch.testing.assert_close(one[:, :, order], two)
    attention = network.spatial_attention(**given)[:, :, order][:, :, :, order]
    torch.testing.assert_close(attention, network.spatial_attention(**moved))


def test_batch_elements_do_not_see_each_other_and_evaluation_repeats() -> None:
    network = build()
    given = inputs(network, batch=3)
    full, again = network(**given), network(**given)
    alone = network(**{name: x if name == "adjgat" else x[1:2] for name, x in given.items()})
    for one, two, three in zip(full, again, alone, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one[1:2], three)


def test_training_repeats_bit_for_bit() -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(5)
        network = Stockformer(**SMALL)
        given = {name: x.float() if x.is_floating_point() else x for name, x in inputs(network).items()}
        optimizer = torch.optim.Adam(network.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            total(list(network(**given))).backward()
            optimizer.step()
        return [p.detach().clone() for p in network.parameters()]

    for one, two in zip(trained(), trained(), strict=True):
        assert torch.equal(one, two)


def test_one_output_day_attends_to_itself() -> None:
    network = build(output_days=1)
    low, high = torch.randn(2, 1, 7, 8).double(), torch.randn(2, 1, 7, 8).double()
    fusion = network.fusion
    assert fusion is not None
    value = torch.relu(fusion.key_value(high))[..., 8:]
    z = torch.nn.functional.layer_norm(fusion.out(value) + low, (8,))
    torch.testing.assert_close(fusion(low, high), fusion.feed(z))


def test_spatial_attention_is_the_mean_of_the_copied_rows() -> None:
    network = build(layers=1, dropout=0.0)
    given = inputs(network, batch=1, stocks=5)
    plain = stockformer_reference(official_views(network), **given, head_dim=8)
    found = network.spatial_attention(**given)[0]
    for branch, x, name in ((0, plain["tatt0"], "ssal"), (1, plain["tcn0"], "ssah")):
        part, y = f"features.dual_encoder.0.{name}", x[0] + given["adjgat"]
        weights = official_views(network)
        query = y @ weights[f"{part}.qfc.weight"].T + weights[f"{part}.qfc.bias"]
        key = y @ weights[f"{part}.kfc.weight"].T + weights[f"{part}.kfc.bias"]
        attention = (query @ key.mT / 8**0.5).softmax(-1)
        rows = attention.argmax(1)
        mean = torch.stack([attention[day, rows[day]] for day in range(6)]).mean(0)
        torch.testing.assert_close(found[branch], mean)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5).double())


def test_absent_stocks_change_nothing_for_the_others() -> None:
    network = build()
    given = inputs(network)
    available = torch.ones(2, 6, 7, dtype=torch.bool)
    available[:, :, 4] = False
    changed = {name: x.clone() for name, x in given.items()}
    changed["bonus"][:, :, 4] += 3.0
    others = [0, 1, 2, 3, 5, 6]
    for one, two in zip(
        network(**given, available=available), network(**changed, available=available), strict=True
    ):
        torch.testing.assert_close(one[:, :, others], two[:, :, others])
    assert not torch.allclose(
        network(**given).returns[:, :, others], network(**changed).returns[:, :, others]
    )


def test_ablations() -> None:
    whole = build()
    given = inputs(whole)
    joined = given | {"low": given["low"] + given["high"], "high": torch.zeros_like(given["high"])}
    coupled = build(decouple=False)
    for one, two in zip(coupled(**given), coupled(**joined), strict=True):
        torch.testing.assert_close(one, two)
    assert not torch.allclose(whole(**given).returns, whole(**joined).returns)
    added = build(fusion="addition")
    assert added.fusion is None
    assert torch.isfinite(added(**given).returns).all()
    still = build(temporal=False)
    layer = still.encoder[0]
    low, high, te = torch.randn(2, 6, 7, 8).double(), torch.randn(2, 6, 7, 8).double(), given["te"].double()
    one, two = layer(low, high, te[..., :1, None], given["adjgat"])
    torch.testing.assert_close(one, low + layer.spatial_low(low, given["adjgat"]))
    torch.testing.assert_close(two, high + layer.spatial_high(high, given["adjgat"]))


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = CausalConvolution(16, 0.2)
    x = torch.randn(4, 10, 50, 16, requires_grad=True)
    clean = layer.eval()(x)
    noisy = layer.train()(x)
    active = clean > 0
    kept = (noisy > 0) & active
    assert not (noisy[~active] > 0).any()
    torch.testing.assert_close(noisy[kept], clean[kept] / 0.8, rtol=1e-4, atol=1e-6)
    assert 1 - kept.sum() / active.sum() == pytest.approx(0.2, abs=0.02)  # 16,000 active: five sigmas
    assert not torch.equal(noisy, layer(x))
    weight = torch.randn_like(x)
    noisy = layer(x)
    found = torch.autograd.grad((noisy * weight).sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad(
        (layer.eval()(x) * (noisy > 0) / 0.8 * weight).sum(), [x, *layer.parameters()]
    )
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_gradients_of_the_blocks_against_finite_differences() -> None:
    network = build(dim=3, features=3, layers=1, input_days=3, st_temporal=True)
    layer = network.encoder[0]
    low, high = (torch.randn(2, 3, 4, 3).double().requires_grad_() for _ in range(2))
    te, adjgat = torch.randn(2, 3, 1, 3).double().requires_grad_(), torch.randn(4, 3).double()
    assert torch.autograd.gradcheck(lambda *x: layer(*x, adjgat), [low, high, te])


def test_bfloat16_stays_near_float32() -> None:
    torch.manual_seed(0)
    network = Stockformer(features=20, dim=32, layers=2, input_days=10).eval()
    given = {n: x.float() if x.is_floating_point() else x for n, x in inputs(network, 2, 30).items()}

    def run(enabled: bool) -> tuple[Forecast, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = network(**given)
        grads = torch.autograd.grad(total(list(out)), network.parameters())
        return out, torch.cat([g.flatten() for g in grads])

    (exact, slope), (rough, rough_slope) = run(False), run(True)
    for one, two in zip(exact, rough, strict=True):
        assert two.dtype == torch.float32
        # A tie in the rounded weights copies another row, so single outputs may differ by more than rounding.
        assert (one - two).abs().mean() < 0.05 * one.abs().mean() + 0.01
    assert torch.cosine_similarity(slope, rough_slope, dim=0) > 0.97


def test_a_step_holds_no_stocks_squared_times_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "TILE_BYTES", 2**16)
    monkeypatch.setattr(copying, "KEEP_BYTES", 0)
    network = Stockformer(features=4, dim=16, layers=1, input_days=4)
    given = {n: x.float() if x.is_floating_point() else x for n, x in inputs(network, 1, 200).items()}
    with Largest() as seen:
        total(list(network(**given))).backward()
    # Neither N^2 D nor N^2 T: the copied rows of one day at most, or the projections.
    assert seen.elements <= max(200 * 200, 4 * 200 * 3 * 16)


def test_flops_of_the_benchmark_are_those_of_the_plain_definition() -> None:
    sizes = {"features": 7, "dim": 8, "layers": 2, "days": 6, "ahead": 2}
    network = Stockformer(7, 8, 2, 6, 2)
    given = {n: x.float() if x.is_floating_point() else x for n, x in inputs(network, 2, 9).items()}
    with FlopCounterMode(display=False) as counted:
        plain = stockformer_reference(official_views(network), **given, head_dim=8)
        total([plain[name] for name in ("class", "class_low", "reg", "reg_low")]).backward()
    assert counted.get_total_flops() == pytest.approx(step_flops(2, 9, **sizes), rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 1}, "features"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"fusion": "product"}, "fusion"),
        ({"head_dim": 0}, "head_dim"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Stockformer(**(SMALL | options))


@pytest.mark.parametrize("name", ["low", "high", "te", "bonus", "trend", "adjgat"])
def test_wrong_shapes_are_named(name: str) -> None:
    network = build()
    given = inputs(network)
    given[name] = given[name][..., :-1]
    with pytest.raises(InputError, match="must have shape"):
        network(**given)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 0)])
def test_inputs_without_stocks_are_refused(shape: tuple[int, ...]) -> None:
    network = build()
    with pytest.raises(InputError, match="none empty"):
        network(**(inputs(network) | {"low": torch.zeros(shape)}))


def test_the_released_size_has_the_papers_parameters() -> None:
    assert official_parameter_count(Stockformer(363)) == 976_219


def test_float32_at_the_released_sizes() -> None:
    torch.manual_seed(2)
    network = Stockformer(363).eval()
    given = {n: x.float() if x.is_floating_point() else x for n, x in inputs(network, 1, 30).items()}
    given["low"].requires_grad_()
    ours = network(**given)
    plain = stockformer_reference(official_views(network), **given, head_dim=128)
    expected = [plain[name] for name in ("class", "class_low", "reg", "reg_low")]
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    found, wanted = (torch.autograd.grad(total(list(x)), given["low"])[0] for x in (ours, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
