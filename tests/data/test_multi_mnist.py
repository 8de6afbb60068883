"""Two images on one canvas: where they lie, whose labels they carry, and that splits share no digit."""

import pytest
import torch

from manyhead import data
from manyhead.data.multi_mnist import multi_mnist, pair_images
from manyhead.errors import InputError


def test_each_image_lies_in_its_corner_and_the_larger_pixel_wins() -> None:
    # image k is the constant (k + 1) / 10, so that a pixel tells which image it came from
    images = (torch.arange(10) + 1).view(10, 1, 1).expand(10, 4, 4) / 10
    pairs = pair_images(images, torch.arange(10), count=50, seed=3, canvas=6)
    first, second = pairs.targets["first"], pairs.targets["second"]
    assert torch.allclose(pairs.inputs[:, 0, 0, 0], (first + 1) / 10)
    assert torch.allclose(pairs.inputs[:, 0, 5, 5], (second + 1) / 10)
    assert torch.allclose(pairs.inputs[:, 0, 3, 3], (torch.maximum(first, second) + 1) / 10)
    assert not pairs.inputs[:, 0, 0, 5].any()
    assert len(pairs) == 50
    batch = pairs.batch(torch.tensor([4, 2]))
    assert torch.equal(batch["inputs"], pairs.inputs[[4, 2]])
    assert batch["targets"]["second"].tolist() == second[[4, 2]].tolist()


def test_the_draw_follows_the_seed_and_bytes_become_shares() -> None:
    images, labels = torch.randint(256, (20, 5, 5), dtype=torch.uint8), torch.arange(20)
    one, same, other = (pair_images(images, labels, 8, seed=seed).inputs for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.max() <= 1


@pytest.mark.parametrize(
    ("shape", "labels", "canvas", "message"),
    [
        ((5, 4, 3), 5, 36, "images must be square and grey"),
        ((5, 4, 4), 4, 36, "images must be square and grey.*got .5, 4, 4. and .4,."),
        ((5, 4, 4), 5, 3, "canvas must be at least the side of an image, 4, got 3"),
    ],
)
def test_bad_images_are_refused(shape, labels, canvas, message) -> None:
    with pytest.raises(InputError, match=message):
        pair_images(torch.zeros(shape), torch.zeros(labels), 2, canvas=canvas)


@pytest.mark.skipif(not data.present("mnist_10k"), reason="mnist_10k is not on this machine")
def test_multi_mnist_has_three_parts_of_canvases() -> None:
    parts = multi_mnist(30, 20, 10, seed=1)
    assert [tuple(part.inputs.shape) for part in parts] == [(n, 1, 36, 36) for n in (30, 20, 10)]
    assert all(int(labels.max()) <= 9 for part in parts for labels in part.targets.values())
