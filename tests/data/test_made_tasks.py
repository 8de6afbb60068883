"""Tasks made from images: streams of classes, composites with several labels, dense labels."""

import pytest
import torch

from manyhead.data.composites import compose
from manyhead.data.dense_tasks import dense_tasks
from manyhead.data.stream import task_stream
from manyhead.errors import InputError


def sizes(*arguments, **options) -> list[int]:
    return [len(stage.classes) for stage in task_stream(*arguments, **options)]


def test_a_stream_divides_classes_as_the_protocol_says() -> None:
    assert sizes(10, base=0, step=2) == [2] * 5  # B0-C2
    assert sizes(80, base=40, step=10) == [40, 10, 10, 10, 10]  # B40-C10 of COCO
    assert sizes(20, base=10, step=3) == [10, 3, 3, 3, 1]
    assert sizes(4, base=4) == [4]
    assert sizes(3, step=5) == [3]
    stages = list(task_stream([7, 3, 5, 1], step=3))
    assert [stage.classes for stage in stages] == [(7, 3, 5), (1,)]
    assert stages[1].seen == (7, 3, 5, 1)
    shuffled = task_stream(10, seed=4).groups
    assert shuffled == task_stream(10, seed=4).groups != task_stream(10, seed=5).groups
    assert sorted(c for group in shuffled for c in group) == list(range(10))


def test_a_stage_shows_its_own_classes_and_tests_all_that_were_seen() -> None:
    first, second = task_stream(4, step=2)
    several = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert first.rows(several).tolist() == [0, 2]
    assert second.rows(several).tolist() == [0, 1]
    assert first.test_rows(several).tolist() == [0, 2]
    assert second.test_rows(several).tolist() == [0, 1, 2]
    assert second.visible(several).tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    one = torch.tensor([3, 0, 1, 2])
    assert second.rows(one).tolist() == [0, 3]
    assert second.visible(one).tolist() == [3, -100, -100, 2]
    assert len(second.test_rows(one)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": []}, "classes must be at least one and each come once"),
        ({"classes": [1, 1]}, "each come once, got .1, 1."),
        ({"classes": 4, "step": 0}, "step must be at least 1"),
        ({"classes": 4, "base": 5}, "base from 0 to the 4 classes, got 2 and 5"),
    ],
)
def test_bad_streams_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        task_stream(**options)
    with pytest.raises(InputError, match="labels must be"):
        next(iter(task_stream(2))).rows(torch.zeros(2, 2, 2))


def test_canvases_hold_one_to_three_objects_whose_classes_are_their_labels() -> None:
    objects = torch.arange(1.0, 11)[:, None, None, None].expand(-1, 1, 14, 14)
    canvases = compose(objects, torch.arange(10), 200, seed=0)
    quarters = canvases.image.unfold(2, 14, 14).unfold(3, 14, 14)[:, 0].amax((-1, -2)).flatten(1)
    filled = (quarters > 0).sum(1)
    assert set(filled.tolist()) == {1, 2, 3}
    for row, target in zip(quarters, canvases.target, strict=True):
        assert {int(v) - 1 for v in row if v} == set(target.nonzero().flatten().tolist())
    chosen = canvases.with_any([2, 5])
    assert chosen.target[:, [2, 5]].any(1).all()
    assert len(chosen) == int(canvases.target[:, [2, 5]].any(1).sum())
    with pytest.raises(InputError, match=r"objects must be \(n, channels, side, side\)"):
        compose(objects[:, :, :7], torch.arange(10), 1, seed=0)
    with pytest.raises(InputError, match="labels must be from 0 to 4"):
        compose(objects, torch.arange(10), 1, seed=0, classes=5)


def test_dense_labels_of_a_step_and_of_a_ramp() -> None:
    step = torch.zeros(12, 14)
    step[:, 7:] = 1.0  # brightness rises to the right between columns 6 and 7
    ramp = torch.linspace(0, 1, 12)[:, None].expand(12, 14)  # downwards, a gradient of 2/11 a pixel
    found = dense_tasks(torch.stack([step, ramp]), torch.tensor([3, 1]), classes=5, noise=0.0, hole=0)
    assert torch.equal(found.image, found.clean)
    assert set(found.kind[0, :, :7].flatten().tolist()) == {5}
    assert set(found.kind[0, :, 7:].flatten().tolist()) == {3}
    inner = found.edge[0, 0, 1:-1, 1:-1]
    assert inner.sum(0).tolist() == [0] * 5 + [10, 10] + [0] * 5
    torch.testing.assert_close(found.direction[0, :, 5, 6], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found.direction[1, :, 5, 6], torch.tensor([0.0, 1.0]))
    assert not found.edge[1, 0, 1:-1, 1:-1].any()


def test_the_input_is_spoilt_by_noise_and_one_hole() -> None:
    images = torch.full((300, 20, 24), 255, dtype=torch.uint8)
    found = dense_tasks(images, torch.zeros(300), noise=0.3, hole=8, seed=2)
    assert found.image.shape == (300, 1, 20, 24)
    holes = found.image == 0
    assert (holes.sum((1, 2, 3)) == 64).all()
    ever = holes.any(0)[0]  # every row and column is hit at some time
    assert ever.any(0).all()
    assert ever.any(1).all()
    assert float((found.image - 1)[~holes].std()) == pytest.approx(0.3, rel=0.02)
    again = dense_tasks(images, torch.zeros(300), noise=0.3, hole=8, seed=2)
    assert torch.equal(found.image, again.image)
    front, back = found.split(100)
    assert (len(front), len(back), front.background) == (100, 200, 10)
    assert torch.equal(back.batch(torch.tensor([0]))[0], found.image[100:101])


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 8, 8, 3), {}, "images must be grey"),
        ((3, 8, 8), {}, "with n labels; got .3, 8, 8. and .2,."),
        ((2, 8, 8), {"hole": 9}, "hole must be from 0 to the 8 pixels"),
        ((2, 8, 8), {"hole": 2, "noise": -1}, "noise not negative, got 2 and -1"),
    ],
)
def test_bad_images_are_refused(shape, options, message) -> None:
    with pytest.raises(InputError, match=message):
        dense_tasks(torch.zeros(shape), torch.zeros(2), **options)
