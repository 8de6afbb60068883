"""Systems of merging, boosting and many tasks: their entries, and the data that they make up."""

import pytest
import torch

from manyhead.catalogue import load
from manyhead.systems.modular_vision import Heterogeneous, Source, sprites
from manyhead.systems.multi_lane import Course, average_precision
from manyhead.systems.task_expert import gain, make_decoder, size
from manyhead.testing.systems import check_system


@pytest.mark.parametrize(
    "slug",
    [
        "tall_masks",
        "r_mtgb",
        "multi_lane",
        "flat_mtl",
        "rep_mtl",
        "controllable_mtl",
        "modular_vision",
        "task_expert",
    ],
)
def test_the_entry_of_the_catalogue_is_whole(slug: str) -> None:
    check_system(load(slug))


def test_the_mean_precision_of_perfect_scores_is_one_on_the_classes_asked_for() -> None:
    target = torch.randint(0, 2, (50, 4), generator=torch.Generator().manual_seed(0)).float()
    scores = torch.where(torch.tensor([True, False, True, True]), target, -target)
    assert average_precision(scores, target, [0, 2, 3]) == pytest.approx(1)
    assert average_precision(scores, target, [0, 1]) < 0.95


def test_forgetting_is_the_fall_of_earlier_tasks() -> None:
    course = Course(seen=[0.9, 0.7, 0.6], fresh=[0.9, 0.8, 0.7], last=[0.5, 0.7, 0.7])
    assert course.forgetting == pytest.approx((0.4 + 0.1) / 2)


def test_sprites_are_where_their_labels_say() -> None:
    found = sprites(64, seed=0)
    assert set(found.targets["shape"].tolist()) == {0, 1, 2}
    axis = torch.linspace(-1, 1, 28)
    for image, shape, place in zip(
        found.image[:, 0], found.targets["shape"], found.targets["place"], strict=True
    ):
        if shape == 2:
            continue  # a heart's centre of mass is not its centre
        mass = image / image.sum()
        centre = torch.stack([(mass.sum(1) * axis).sum(), (mass.sum(0) * axis).sum()])
        torch.testing.assert_close(centre, place, atol=0.05, rtol=0)


def test_every_step_has_a_batch_of_each_data_set_whatever_their_sizes() -> None:
    few = Source(torch.zeros(5, 1, 2, 2), {"a": torch.arange(5)})
    many = Source(torch.zeros(500, 1, 2, 2), {"b": torch.arange(500), "c": torch.arange(500)})
    mixed = Heterogeneous([few, many], steps=3, seed=0)
    first, second = mixed.batch(torch.tensor([1]))
    assert len(mixed) == 3
    assert first[1]["a"].shape == second[1]["b"].shape == (32,)
    assert torch.equal(second[1]["b"], second[1]["c"])


def test_decoders_that_are_compared_have_as_many_weights() -> None:
    full = size(make_decoder("full"))
    for kind in ("static gates", "no memory", "plain projections"):
        assert abs(size(make_decoder(kind)) / full - 1) < 0.11


def test_a_gain_counts_errors_downwards() -> None:
    better = {"class": 1.1, "intensity": 0.9, "direction": 0.9, "edge": 1.1}
    assert gain(better, dict.fromkeys(better, 1.0)) == pytest.approx(10)
    assert gain(dict.fromkeys(better, 1.0), better) < 0
