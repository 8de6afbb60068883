"""Maps from elsewhere: the same for every text, equal to ordinary attention on the guide itself, streamed."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.mixers.foreign_maps import ForeignMapAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.self_scored import SelfScoredAttention
from manyhead.mixers.taylor import TaylorAttention
from manyhead.mixers.tokenwise import TokenwiseMixer
from manyhead.networks.foreign_maps import ForeignMapTransformer, hybrid, standard_layers
from manyhead.networks.generation import generate
from manyhead.networks.transformer import Transformer

VOCABULARY, CHANNELS, LONGEST = 20, 16, 24
OPTIONS = {"causal": True, "rotary": 1.0, "out_bias": False}


def standard():
    return MultiHeadAttention(CHANNELS, 4, **OPTIONS)


VARIANTS = {
    "mlp": lambda: TokenwiseMixer(CHANNELS),
    "approximate": lambda: TaylorAttention(CHANNELS, 4, **OPTIONS),
    "nonapprox": lambda: SelfScoredAttention(CHANNELS, 4, out_bias=False),
    "fixed": lambda: ForeignMapAttention(CHANNELS, 4, **OPTIONS),
    "static": lambda: ForeignMapAttention(CHANNELS, 4, source="embedding", **OPTIONS),
}


def network(variant, layout="uniform", layers=3, ids=False, **options):
    torch.manual_seed(0)
    guide = torch.randint(VOCABULARY, (LONGEST,)) if ids else 0.02 * torch.randn(LONGEST, CHANNELS)
    mixers = hybrid(VARIANTS[variant], standard, layout, layers)
    model = ForeignMapTransformer(VOCABULARY, CHANNELS, mixers=mixers, guide=guide, **options).eval()
    torch.nn.init.normal_(model.embedding.tokens.weight)
    return model


def text(rows=3, length=LONGEST, seed=1):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def plain(model, layers=3):
    other = Transformer(
        VOCABULARY, CHANNELS, layers, mixers=lambda n: standard(), positions="none", norm="rms",
        activation="swiglu",
    ).eval()  # fmt: skip
    weights = {name: value for name, value in model.state_dict().items() if name != "guide"}
    other.load_state_dict(weights)
    return other


@torch.no_grad()
def test_on_the_guide_itself_fixed_maps_are_ordinary_attention():
    model = network("fixed", ids=True)
    guide = model.guide[None]
    torch.testing.assert_close(model(guide), plain(model)(guide), atol=1e-5, rtol=1e-5)
    assert (model(text()) - plain(model)(text())).abs().max() > 0.01


@torch.no_grad()
def test_static_maps_of_one_layer_are_ordinary_attention():
    model = network("static", layers=1)
    torch.testing.assert_close(model(text()), plain(model, 1)(text()), atol=1e-5, rtol=1e-5)
    other = network("static", layers=1, norm_static=False)
    assert (other(text()) - model(text())).abs().max() > 1e-3
    deep = network("static", layers=2)
    assert (deep(text()) - plain(deep, 2)(text())).abs().max() > 1e-3


def test_the_drawn_guide_is_no_parameter_and_its_stream_trains_the_weights():
    model = network("fixed")
    assert "guide" not in dict(model.named_parameters())
    assert "guide" in model.state_dict()
    model(text()).square().sum().backward()
    for layer in model.stack.layers:
        assert layer.mixer.q_proj.weight.grad.abs().sum() > 0
    assert model.guide.grad is None


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("layout", ["uniform", "even"])
@torch.no_grad()
def test_no_text_changes_a_fixed_map_and_cached_maps_give_the_same(layout, ids):
    model = network("fixed", layout, ids=ids)
    seen = []
    for layer in model.stack.layers:
        if isinstance(layer.mixer, ForeignMapAttention):
            layer.mixer.register_forward_hook(
                lambda mixer, inputs, out: seen.append(mixer.map_of(inputs[0][-1:]))
            )
    first, second = text(3), text(2, seed=2)
    whole = model(first)
    count = len(seen)
    model(second)
    assert all(torch.equal(a, b) for a, b in zip(seen[:count], seen[count:], strict=True))
    assert count == (3 if layout == "uniform" else 2)
    cached = model.forward_with(first, model.cached_weights(LONGEST))
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["uniform", "even"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_variant_is_causal_and_streams(variant, layout):
    model, ids = network(variant, layout), text()
    whole = model(ids)
    changed = torch.cat([ids[:, :14], (ids[:, 14:] + 1) % VOCABULARY], 1)
    torch.testing.assert_close(model(changed)[:, :14], whole[:, :14], atol=1e-6, rtol=0)
    state, parts = model.initial_state(3, LONGEST), []
    for piece in ids.split([5, 1, 18], 1):
        logits, state = model.extend(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
    assert len(generate(model, [[1, 2], [3]], 4)[0]) == 4
    if variant == "mlp" and layout == "uniform":
        other = ids.clone()
        other[:, :10] = 0
        assert torch.equal(model(other)[:, 10:], whole[:, 10:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_as_many_as_with_standard_attention(variant):
    def count(make):
        model = ForeignMapTransformer(
            256, 128, mixers=[make(), make()], guide=torch.zeros(8, 128), hidden=512
        )
        return sum(weight.numel() for weight in model.parameters())

    makers = {
        "mlp": lambda: TokenwiseMixer(128),
        "approximate": lambda: TaylorAttention(128, 4, **OPTIONS),
        "nonapprox": lambda: SelfScoredAttention(128, 4, out_bias=False),
        "fixed": lambda: ForeignMapAttention(128, 4, **OPTIONS),
        "static": lambda: ForeignMapAttention(128, 4, source="embedding", **OPTIONS),
    }
    assert abs(count(makers[variant]) / count(lambda: MultiHeadAttention(128, 4, **OPTIONS)) - 1) < 1e-3


def test_layouts_say_where_standard_attention_stays():
    layouts = {
        "uniform": "........",
        "even": ".s.s.s.s",
        "odd": "s.s.s.s.",
        "top": "ssss....",
        "bottom": "....ssss",
        "middle": "ss....ss",
        "quarter": "...s...s",
        "first": "s.......",
        "last": ".......s",
        "bilateral": "s......s",
    }
    for layout, expected in layouts.items():
        assert "".join("s" if kept else "." for kept in standard_layers(layout, 8)) == expected
    with pytest.raises(InputError, match="layout"):
        standard_layers("sideways", 8)
    assert [type(m) for m in hybrid(VARIANTS["mlp"], standard, "even", 2)] == [
        TokenwiseMixer,
        MultiHeadAttention,
    ]


@torch.no_grad()
def test_skipping_leaves_whole_layers_out():
    model, ids = network("mlp", "even", layers=4), text()
    left = plain_layers(model, [1, 3])
    torch.testing.assert_close(model(ids, skip=lambda mixer: isinstance(mixer, TokenwiseMixer)), left(ids))
    assert torch.equal(model(ids, skip=lambda mixer: False), model(ids))


def plain_layers(model, kept):
    other = plain_like(len(kept))
    other.embedding.load_state_dict(model.embedding.state_dict())
    other.stack.norm.load_state_dict(model.stack.norm.state_dict())
    for own, level in zip(other.stack.layers, kept, strict=True):
        own.load_state_dict(model.stack.layers[level].state_dict())
    return other


def plain_like(layers):
    return Transformer(
        VOCABULARY, CHANNELS, layers, mixers=lambda n: standard(), positions="none", norm="rms",
        activation="swiglu",
    ).eval()  # fmt: skip


def test_a_missing_or_short_guide_is_refused():
    with pytest.raises(InputError, match="guide"):
        ForeignMapTransformer(VOCABULARY, CHANNELS, mixers=[VARIANTS["fixed"]()])
    with pytest.raises(InputError, match="24 tokens"):
        network("fixed")(text(1, 30))
