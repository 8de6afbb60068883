"""The systems around single mixers: their entries in the catalogue, and what their demonstrations rest on."""

import pytest
import torch

from manyhead.catalogue import load
from manyhead.systems import deconstructing_attention, mvpa, rcmha, routing_transformer, sinklora
from manyhead.testing import check_system

SLUGS = ["deconstructing_attention", "sinklora", "ssa", "rcmha", "routing_transformer", "mvpa"]


@pytest.mark.parametrize("slug", SLUGS)
def test_system_is_well_formed(slug: str) -> None:
    check_system(load(slug))


def test_other_mixers_share_the_weights_and_leave_the_model_alone() -> None:
    model = sinklora.language_model()
    seen = []
    other = sinklora.change_mixers(model, lambda mixer: seen.append(mixer) or mixer)
    assert len(seen) == sinklora.LAYERS
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    swapped = sinklora.change_mixers(model, lambda mixer: torch.nn.Identity())
    assert all(isinstance(layer.mixer, torch.nn.Identity) for layer in swapped.stack.layers)
    assert not any(isinstance(layer.mixer, torch.nn.Identity) for layer in model.stack.layers)
    sinklora.interpolate(model, 4.0)
    assert {layer.mixer.rotary_factor for layer in model.stack.layers} == {4.0}


def test_loss_through_full_caches_is_the_parallel_loss() -> None:
    torch.manual_seed(0)
    model, ids = sinklora.language_model().eval(), torch.randint(256, (sinklora.LONG + 40,))
    prompt, windows = sinklora.LONG - 20, 2
    starts = torch.linspace(0, len(ids) - sinklora.LONG - 1, windows).long()
    window = ids[starts[:, None] + torch.arange(sinklora.LONG + 1)]
    with torch.no_grad():
        chances = model(window[:, :-1]).log_softmax(-1)
    nats = -chances.gather(-1, window[:, 1:, None])[:, prompt - 1 : -1].mean()
    assert sinklora.streamed_loss(model, ids, prompt, windows) == pytest.approx(float(nats), rel=1e-4)


def test_streams_of_a_text_go_on_from_segment_to_segment() -> None:
    ids = torch.arange(rcmha.STREAMS * rcmha.SEGMENT * 3 + 5)
    segments = rcmha.streams(ids)
    assert segments.shape == (3, rcmha.STREAMS, rcmha.SEGMENT + 1)
    assert torch.equal(segments[:-1, :, -1], segments[1:, :, 0])
    assert segments[:, 0].unique().tolist() == list(range(3 * rcmha.SEGMENT + 1))


def test_hidden_labels_can_be_told_from_their_likes_only() -> None:
    pixels, label = torch.eye(300, 64), torch.arange(300) % 10
    x, name, hidden = routing_transformer.sequences(pixels, label, 3, torch.Generator().manual_seed(0))
    assert hidden.sum(1).tolist() == [routing_transformer.HIDDEN] * 3
    shown = x[..., 64:]
    assert (shown[hidden] == 0).all()
    assert torch.equal(shown[~hidden].argmax(-1), name[~hidden])
    for row in range(3):
        digit = x[row, :, :64].sum(-1).bool()  # the first 64 samples have a pixel of their own
        sample = x[row, :, :64].argmax(-1)
        pairs = {(int(s) % 10, int(n)) for s, n in zip(sample[digit], name[row][digit], strict=True)}
        assert len(pairs) == 10
        assert len({n for _, n in pairs}) == 10


def test_rivals_have_as_many_weights() -> None:
    counts = [sum(w.numel() for w in mvpa.build(kind).parameters()) for kind in ("flat", "mvpa")]
    assert abs(counts[0] / counts[1] - 1) < 0.01
    guide = torch.zeros(deconstructing_attention.LENGTH, deconstructing_attention.CHANNELS)
    base = sum(w.numel() for w in deconstructing_attention.build("standard", "uniform", guide).parameters())
    for name in ("mlp", "approximate", "nonapprox", "rndembqk", "fixedseqqk", "staticembqk"):
        model = deconstructing_attention.build(name, "uniform", guide)
        assert abs(sum(w.numel() for w in model.parameters()) / base - 1) < 3e-3
        assert torch.isfinite(model(torch.randint(256, (1, 9)))).all()
    assert all(part.size(0) > 1 and part.diff().min() > 0 for part in _subsets())


def _subsets() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [mvpa.subset(random, 2, 5) for _ in range(20)]
