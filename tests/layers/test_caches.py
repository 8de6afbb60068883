"""Caches of fixed size: what they keep, by brute force, and that streams equal their parallel forms."""

import math

import pytest
import torch

from manyhead.errors import InputError
from manyhead.layers.heavy_hitters import HeavyHitterCache, halves
from manyhead.layers.sink_cache import SinkCache
from manyhead.mixers.evicting import HeavyHitterAttention, SinkWindowAttention
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.generation import generate
from manyhead.networks.transformer import Transformer
from manyhead.testing.mixers import check_mixer


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(kv_heads=None):
    torch.manual_seed(0)
    return MultiHeadAttention(16, 4, kv_heads=kv_heads, causal=True, rotary=1.0).eval()


@torch.no_grad()
def stepped(mixer, x):
    state, outs = mixer.initial_state(len(x)), []
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outs.append(y)
    return torch.stack(outs, 1), state


class ByHand:
    """H2O for one head of one sample: a dictionary from position to key, value and score."""

    def __init__(self, heavy, recent):
        self.heavy, self.recent, self.held, self.seen = heavy, recent, {}, 0

    def attend(self, query, key, value):
        """`query` (queries, d): those that share this head; returns outputs."""
        at, self.seen = self.seen, self.seen + 1
        self.held[at] = [key, value, 0.0]
        places = sorted(self.held)
        logits = query @ torch.stack([self.held[p][0] for p in places]).T / math.sqrt(len(key))
        weights = logits.softmax(-1)
        for n, place in enumerate(places):
            self.held[place][2] += float(weights[:, n].sum())
        out = weights @ torch.stack([self.held[p][1] for p in places])
        self.evict()
        return out

    def prefill(self, query, key, value):
        """`query` (queries, tokens, d); nothing is dropped before the prompt's end."""
        outs = []
        for at in range(len(key)):
            keep, self.evict = self.evict, lambda: None
            outs.append(self.attend(query[:, at], key[at], value[at]))
            self.evict = keep
        self.evict()
        return torch.stack(outs, 1)

    def evict(self):
        while len(self.held) > self.heavy + self.recent:
            newest = set(sorted(self.held)[-self.recent :])
            rest = [place for place in self.held if place not in newest]
            del self.held[min(rest, key=lambda place: self.held[place][2])]


@pytest.mark.parametrize(("heavy", "recent"), [(3, 4), (0, 5), (4, 1), (40, 40)])
@pytest.mark.parametrize("prompt", [0, 1, 6, 15])
@pytest.mark.parametrize("group", [1, 2])
def test_heavy_hitters_are_those_of_the_policy_by_hand(heavy, recent, prompt, group):
    batch, heads, length, d = 2, 2, 30, 4
    q, k, v = tokens(batch, heads, group, length, d), *(tokens(2, batch, heads, length, d, seed=1) * 1.5)
    cache = HeavyHitterCache.empty(batch, heads, heavy, recent, d, q)
    outs = []
    if prompt:
        out, cache = cache.prefill(q[..., :prompt, :], k[:, :, :prompt], v[:, :, :prompt])
        outs = list(out.unbind(-2))
    for t in range(prompt, length):
        before = cache.scores.clone(), cache.positions.clone()
        out, cache = cache.attend(q[..., t, :], k[:, :, t], v[:, :, t])
        outs.append(out)
        stayed = (cache.positions == before[1]) & (before[1] >= 0)
        assert (cache.scores >= before[0])[stayed].all()  # the sum of a kept key never falls
        assert cache.held <= heavy + recent
    found = torch.stack(outs, -2)
    for b in range(batch):
        for h in range(heads):
            hand = ByHand(heavy, recent)
            parts = []
            if prompt:
                parts.append(hand.prefill(q[b, h, :, :prompt], k[b, h, :prompt], v[b, h, :prompt]))
            parts += [
                hand.attend(q[b, h, :, t], k[b, h, t], v[b, h, t])[:, None] for t in range(prompt, length)
            ]
            torch.testing.assert_close(found[b, h], torch.cat(parts, 1), atol=1e-5, rtol=1e-5)
            kept = cache.positions[b, h, : cache.held].tolist()
            assert sorted(kept) == sorted(hand.held)
            for place, score in zip(kept, cache.scores[b, h].tolist(), strict=False):
                assert score == pytest.approx(hand.held[place][2], rel=1e-4)


@pytest.mark.parametrize("kv_heads", [None, 2])
@torch.no_grad()
def test_a_budget_for_all_is_full_attention_and_none_for_heavy_ones_a_sliding_window(kv_heads):
    full, x = attention(kv_heads), tokens(2, 25, 16)
    out, _ = stepped(HeavyHitterAttention(full, 10, 15), x)
    torch.testing.assert_close(out, full(x), atol=1e-5, rtol=1e-5)
    out, _ = stepped(HeavyHitterAttention(full, 0, 6), x)
    # a step looks at what is stored and at its own token: a window one longer than the budget
    torch.testing.assert_close(out, SinkWindowAttention(full, 7, 0)(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize(("window", "sinks"), [(5, 4), (1, 2), (6, 0), (50, 4)])
def test_sinks_and_a_window_stream_as_their_mask_says(kv_heads, window, sinks):
    mixer = SinkWindowAttention(attention(kv_heads), window, sinks)
    done = check_mixer(mixer, (2, 40, 16))
    assert {"causal", "recurrent form", "rows sum to one", "matrix causal"} <= set(done)
    matrix = mixer.mixing_matrix(tokens(1, 30, 16))
    assert ((matrix > 0).sum(-1) <= window + sinks).all()
    assert (matrix[..., :sinks][..., sinks:, :] > 0).all()


@torch.no_grad()
def test_memory_does_not_grow_with_the_stream():
    for mixer in (SinkWindowAttention(attention(), 8, 4), HeavyHitterAttention(attention(), 6, 6)):
        _, after = stepped(mixer, tokens(1, 20, 16))
        _, later = stepped(mixer, tokens(1, 200, 16))
        assert after.nbytes == later.nbytes == 2 * 12 * 16 * 4  # keys and values, 12 tokens, float32
        assert later.length == 200


def test_a_transformer_writes_with_heavy_hitters_as_without_while_all_fit():
    torch.manual_seed(0)
    model = Transformer(20, 16, 2, mixers=lambda n: attention(), positions="none").eval()
    torch.nn.init.normal_(model.embedding.tokens.weight)
    expected = generate(model, [[1, 2, 3, 4, 5]], 12)
    for layer in model.stack.layers:
        layer.mixer = HeavyHitterAttention(layer.mixer, 10, 10)
    assert generate(model, [[1, 2, 3, 4, 5]], 12) == expected
    for layer in model.stack.layers:
        layer.mixer.heavy = layer.mixer.recent = 2
    assert len(generate(model, [[1, 2, 3, 4, 5]], 12)[0]) == 12


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SinkCache.empty(1, 1, -1, 4, 2, torch.zeros(1)),
        lambda: HeavyHitterCache.empty(1, 1, 2, 0, 2, torch.zeros(1)),
        lambda: SinkWindowAttention(attention(), 0),
        lambda: HeavyHitterAttention(MultiHeadAttention(16, 4), 2, 2),
        lambda: HeavyHitterAttention(attention(), -1, 2),
    ],
)
def test_what_has_no_meaning_is_refused(wrong):
    with pytest.raises(InputError):
        wrong()


def test_a_share_of_the_prompt_is_halved():
    assert halves(200, 0.2) == (20, 20)
    assert halves(15, 1.0) == (7, 8)
    assert halves(3, 0.4) == (0, 1)
    for wrong in ((10, 0.0), (10, 1.1), (3, 0.1)):
        with pytest.raises(InputError, match="share"):
            halves(*wrong)


def test_a_prompt_is_read_into_an_empty_cache_only():
    part = torch.zeros(1, 1, 3, 2)
    _, cache = HeavyHitterCache.empty(1, 1, 2, 2, 2, part).prefill(part[:, None], part, part)
    with pytest.raises(InputError, match="empty"):
        cache.prefill(part[:, None], part, part)
