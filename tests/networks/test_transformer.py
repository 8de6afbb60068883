"""Transformers of any mixers: streaming equals parallel, hybrids, arrangements, and writing on."""

import pytest
import torch

from manyhead.errors import InputError
from manyhead.mixers.aaren import Aaren
from manyhead.mixers.gated_rnn import RGLRU
from manyhead.mixers.linear_attention import LinearAttention
from manyhead.mixers.local import LocalAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.mixers.nystrom import NystromAttention
from manyhead.mixers.performer import Performer
from manyhead.mixers.selective import S6
from manyhead.networks.generation import NOTHING, choose, generate, stream
from manyhead.networks.transformer import EncoderDecoder, Transformer


def hybrid(depth):
    return [
        Aaren(16, 2),
        LocalAttention(16, 2, causal=True, width=4),
        S6(16, 4),
        LinearAttention(16, 2, causal=True),
        RGLRU(16),
        MultiHeadAttention(16, 2, causal=True, rotary=0.5),
    ][depth]


MODELS = {
    "rotary": lambda: Transformer(20, 16, 2, 2),
    "learned post rms swiglu": lambda: Transformer(
        20, 16, 2, 2, positions="learned", arrangement="post", norm="rms", activation="swiglu"
    ),
    "relative parallel": lambda: Transformer(
        20, 16, 2, 2, positions="relative", arrangement="parallel", tie=False, activation="geglu"
    ),
    "sinusoidal": lambda: Transformer(20, 16, 2, 2, positions="sinusoidal", activation="relu"),
    "hybrid": lambda: Transformer(20, 16, 6, mixers=hybrid, positions="none"),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_stream_in_pieces_equals_parallel_and_is_causal(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    ids = torch.randint(20, (2, 30))
    whole = model(ids)
    state, parts = model.initial_state(2, 30), []
    for piece in ids.split([1, 12, 1, 1, 15], 1):
        logits, state = model.extend(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    changed = torch.cat([ids[:, :17], (ids[:, 17:] + 1) % 20], 1)
    assert torch.equal(model(changed)[:, :17], whole[:, :17])


def test_greedy_is_argmax_of_the_parallel_pass_and_ragged_prompts_do_not_mix():
    torch.manual_seed(0)
    model = MODELS["hybrid"]().eval()
    torch.nn.init.normal_(model.embedding.tokens.weight)
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    together = generate(model, prompts, 8)
    for prompt, new in zip(prompts, together, strict=True):
        assert generate(model, [prompt], 8) == [new]
        text = torch.tensor([prompt + new])
        assert model(text)[0, len(prompt) - 1 : -1].argmax(-1).tolist() == new
    pieces = list(stream(model, prompts, 8))
    assert pieces[0].tolist()[0] == NOTHING
    assert pieces[0].tolist()[1] == together[1][0]


def test_writing_stops_at_the_stop_token():
    torch.manual_seed(0)
    model = MODELS["rotary"]().eval()
    torch.nn.init.normal_(model.embedding.tokens.weight)
    free = generate(model, [[1, 2]], 10)[0]
    stopped = generate(model, [[1, 2], [3]], 10, stop=free[2])[0]
    assert stopped == free[: free.index(free[2]) + 1]


def test_drawing_obeys_temperature_k_and_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, -1)
    generator = torch.Generator().manual_seed(0)

    def shares(**options):
        return choose(logits, generator=generator, **options).bincount(minlength=4) / 4000

    assert shares().tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(shares(temperature=1.0), logits[0].exp(), rtol=0, atol=0.03)
    flat = logits[0].div(2).softmax(-1)
    torch.testing.assert_close(shares(temperature=2.0), flat, rtol=0, atol=0.03)
    two = torch.tensor([0.625, 0.375, 0, 0])
    torch.testing.assert_close(shares(temperature=1.0, top_k=2), two, rtol=0, atol=0.03)
    torch.testing.assert_close(shares(temperature=1.0, top_p=0.7), two, rtol=0, atol=0.03)
    assert shares(temperature=1.0, top_p=1e-6).tolist() == [1, 0, 0, 0]
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}):
        with pytest.raises(InputError):
            choose(logits, **wrong)


@torch.no_grad()
def test_encoder_decoder_streams_as_it_trains():
    torch.manual_seed(0)
    model = EncoderDecoder(
        20, 15, 16, 2, 2, encoder=lambda depth: NystromAttention(16, 2, landmarks=4)
    ).eval()
    source, target = torch.randint(20, (2, 11)), torch.randint(15, (2, 7))
    whole = model(source, target)
    given = model.given(source)
    state, parts = given.initial_state(2, 7), []
    for piece in target.split([3, 1, 3], 1):
        logits, state = given.extend(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    assert len(generate(given, [[0], [0]], 5)[1]) == 5


@pytest.mark.parametrize("kind", [MultiHeadAttention, LinearAttention])
@pytest.mark.parametrize("arrangement", ["pre", "post", "parallel"])
@torch.no_grad()
def test_a_context_is_read_once_however_many_tokens_are_written(arrangement, kind):
    torch.manual_seed(0)
    looks = lambda depth: kind(16, 2, causal=True, cross=True)  # noqa: E731
    model = EncoderDecoder(20, 15, 16, 2, 2, arrangement=arrangement, cross=looks).eval()
    read = []
    for layer in model.decoder.layers:
        layer.cross.k_proj.register_forward_hook(lambda *seen: read.append(seen[2].shape[1]))
    source, target = torch.randint(20, (2, 11)), torch.randint(15, (2, 9))
    whole = model(source, target)
    assert read == [11, 11]
    given = model.given(source)
    state, parts = given.initial_state(2, 9), []
    for piece in target.split(1, 1):
        logits, state = given.extend(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    assert read == [11] * 4  # once more for each of the two layers


@torch.no_grad()
def test_cross_attention_that_cannot_remember_looks_at_the_context_itself():
    torch.manual_seed(0)
    looks = lambda depth: Performer(16, 2, causal=True, cross=True)  # noqa: E731
    model = EncoderDecoder(20, 15, 16, 2, 2, cross=looks).eval()
    source, target = torch.randint(20, (2, 11)), torch.randint(15, (2, 5))
    whole = model(source, target)
    given = model.given(source)
    state = given.initial_state(2, 5)
    logits, _ = given.extend(target, state)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)


def test_ties_weights_and_refuses_what_does_not_fit():
    model = MODELS["rotary"]()
    short = Transformer(20, 16, 2, 2, positions="learned", longest=4)
    assert model.output.weight is model.embedding.tokens.weight
    for wrong, message in {
        lambda: Transformer(20, 16, 2, mixers=[Aaren(16, 2)], positions="none"): "1 mixers",
        lambda: Transformer(20, 16, mixers=hybrid, positions="none"): "depth",
        lambda: Transformer(20, 16, 6, mixers=hybrid): "positions='none'",
        lambda: Transformer(20, 16, 2, 2, causal=False).initial_state(1): "token by token",
        lambda: Transformer(20, 16, 2, 2, norm="batch"): "norm is one of",
        lambda: short(torch.zeros(1, 5).long()): "learned",
        lambda: generate(model, [[]], 3): "prompts",
    }.items():
        with pytest.raises(InputError, match=message):
            wrong()
