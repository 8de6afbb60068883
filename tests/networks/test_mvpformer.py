"""MVPFormer: any set of channels, causal, told-apart negatives, and adaptation of the named parts only."""

import math

import pytest
import torch

from manyhead.errors import InputError
from manyhead.layers.lora import merge_lora
from manyhead.networks.mvpformer import MVPFormer, NextSegment, SeriesClassifier, adapt, contrast


def model(**options):
    torch.manual_seed(0)
    settings = {"segments": 12, "channels": 6, "dropout": 0.0, "window": 2, "last_global": False} | options
    made = MVPFormer(16, 16, 2, 4, 2, 24, **settings).eval()
    for weight in made.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return made


def series(batch, segments, channels):
    return torch.randn(batch, 16 * segments, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("segments", "channels"), [(1, 1), (12, 6), (5, 3)])
@torch.no_grad()
def test_any_number_of_segments_and_channels(segments, channels):
    out = model()(series(2, segments, channels))
    assert out.shape == (2, segments, channels, 16)
    assert torch.isfinite(out).all()


@torch.no_grad()
def test_the_past_does_not_know_the_future_and_a_longer_record_begins_like_a_shorter():
    made, x = model(), series(2, 8, 4)
    torch.testing.assert_close(made(x[:, : 5 * 16]), made(x)[:, :5], atol=1e-4, rtol=1e-4)
    y = x.clone()
    y[:, 5 * 16 :] += 1
    assert torch.equal(made(x)[:, :5], made(y)[:, :5])


def test_a_blocks_number_may_divide_its_logits():
    scaled, plain = model(layer_scaled=True), model()
    assert [block.mixer.scale for block in scaled.blocks] == [0.5, 0.25]
    assert [block.mixer.scale for block in plain.blocks] == [0.5, 0.5]


def test_tables_are_shared_between_blocks():
    made = model()
    first, second = (block.mixer for block in made.blocks)
    assert first.positions is second.positions
    assert first.channels is second.channels
    counted = sum(weight.numel() for weight in made.parameters())
    separate = sum(weight.numel() for block in made.blocks for weight in block.parameters())
    assert separate - 18 * 16 < counted  # the tables stand once


def test_the_loss_is_the_formula_over_the_drawn_others():
    tokens = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    predicted = torch.randn(2, 3, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, right = contrast(predicted, tokens, 6, 0.5, torch.Generator().manual_seed(2))
    drawn = torch.randint(23, (18, 6), generator=torch.Generator().manual_seed(2))
    every, total, hits = tokens.flatten(0, 2), 0.0, 0

    def cosine(a, b):
        return float((a @ b / (a.norm() * b.norm())).detach())

    for n, (b, t, c) in enumerate((b, t, c) for b in range(2) for t in range(3) for c in range(3)):
        own = b * 12 + (t + 1) * 3 + c
        others = [int(place) + (int(place) >= own) for place in drawn[n]]
        assert own not in others
        logits = torch.tensor([cosine(predicted[b, t, c], every[place]) / 0.5 for place in [own, *others]])
        total -= float(logits.log_softmax(0)[0])
        hits += int(logits.argmax() == 0)
    assert float(loss.detach()) == pytest.approx(total / 18, rel=1e-4)
    assert float(right) == pytest.approx(hits / 18)
    torch.autograd.backward(loss)
    assert tokens.grad[:, 0].abs().sum() == 0  # first segments are only ever drawn, without gradient
    assert tokens.grad[:, 1:].abs().sum() > 0


def test_others_equal_to_the_true_one_are_left_out():
    tokens = torch.ones(2, 3, 2, 4)
    loss, right = contrast(torch.randn(2, 2, 2, 4), tokens, 5)
    assert float(loss) == 0
    assert float(right) == 1


def test_pre_training_learns_to_tell_segments():
    torch.manual_seed(0)
    made = model()
    learner = NextSegment(made, 16, negatives=10)
    t = torch.arange(16 * 6) / 16
    x = torch.stack([torch.sin(2 * math.pi * t[:, None] * f + torch.rand(1, 3)) for f in torch.rand(24) * 3])
    optimizer = torch.optim.Adam(learner.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss, _ = learner(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_adaptation_trains_queries_values_and_head_only_and_merges():
    classifier, x = SeriesClassifier(model(), 16, 3), series(4, 5, 3)
    before = classifier(x)
    names = adapt(classifier, rank=2)
    assert torch.equal(classifier(x), before)
    assert {name.split(".")[-2] if "lora" in name else name for name in names} == {
        "q_proj", "kv_proj", "head.weight",
    }  # fmt: skip
    keys = classifier.model.blocks[0].mixer.kv_proj.weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        classifier(x).square().sum().backward()
        optimizer.step()
    after = classifier.model.blocks[0].mixer.kv_proj.weight
    assert torch.equal(after[:8], keys[:8])  # keys stay
    assert not torch.equal(after[8:], keys[8:])
    learned = classifier(x)
    merge_lora(classifier)
    torch.testing.assert_close(classifier(x), learned, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 17, 3), (1, 13 * 16, 3), (1, 32, 7), (1, 0, 3)])
def test_records_that_do_not_fit_are_refused(shape):
    with pytest.raises(InputError, match="whole segments"):
        model()(torch.zeros(shape))
