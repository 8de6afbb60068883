"""Sprites: areas, symmetries and centres follow from the factors that the labels name."""

import numpy as np
import pytest

from manyhead.data.sprites import RADIUS, SHAPES, draw, sprites
from manyhead.errors import InputError

AREA = {"square": 2.0, "ellipse": np.pi * 0.6}  # of radius 1


def one(shape: str, scale: float = 1.0, angle: float = 0.0, x: float = 0.5, y: float = 0.5, side: int = 64):
    values = (np.array([v]) for v in (scale, angle, x, y))
    return draw(np.array([SHAPES.index(shape)]), *values, side=side, oversample=3)[0]


@pytest.mark.parametrize("shape", list(AREA))
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_the_area_is_that_of_the_shape_whatever_its_turn(shape: str, angle: float) -> None:
    for scale in (0.5, 1.0):
        expected = AREA[shape] * (RADIUS * scale * 64) ** 2
        assert one(shape, scale, angle).sum() == pytest.approx(expected, rel=0.02)


def test_sprites_lie_at_their_place_within_the_image() -> None:
    pixels = np.arange(64) + 0.5
    for shape in SHAPES:
        for x, y in ((0.0, 1.0), (0.25, 0.5), (1.0, 0.0)):
            image = one(shape, 1.0, 0.4, x, y)
            # nothing is cut off: the area is the same wherever it lies
            assert image.sum() == pytest.approx(one(shape, 1.0, 0.4).sum(), rel=0.01)
            if shape != "heart":  # its centre of mass is not its centre
                centre = (image.sum(0) @ pixels, image.sum(1) @ pixels) / image.sum() / 64
                assert centre == pytest.approx([RADIUS + (1 - 2 * RADIUS) * v for v in (x, y)], abs=0.003)


def test_squares_and_ellipses_repeat_and_hearts_do_not() -> None:
    quarter = np.pi / 2
    assert np.abs(one("square", angle=0.3) - one("square", angle=0.3 + quarter)).mean() < 1e-3
    assert np.abs(one("ellipse", angle=0.3) - one("ellipse", angle=0.3 + 2 * quarter)).mean() < 1e-3
    assert np.abs(one("ellipse", angle=0.3) - one("ellipse", angle=0.3 + quarter)).mean() > 0.01
    assert np.abs(one("heart", angle=0.3) - one("heart", angle=0.3 + 2 * quarter)).mean() > 0.01
    # a quarter turn of the sprite in the middle is a quarter turn of the image, counter-clockwise
    turned = np.rot90(one("heart"))
    np.testing.assert_allclose(one("heart", angle=quarter), turned, atol=0.35)
    assert np.abs(one("heart", angle=quarter) - turned).mean() < 1e-3


def test_labels_cover_every_factor_and_follow_the_seed() -> None:
    found, again, other = (sprites(400, seed, side=16, orientations=8, positions=4) for seed in (1, 1, 2))
    assert found.image.shape == (400, 1, 16, 16)
    assert found.image.dtype == np.float32
    assert found.classes == {"shape": 3, "scale": 6, "orientation": 8, "x": 4, "y": 4}
    for name, number in found.classes.items():
        assert set(found.labels[name]) == set(range(number))
    assert np.array_equal(found.image, again.image)
    assert not np.array_equal(found.image, other.image)
    assert 0 <= found.image.min() < found.image.max() == 1
    # larger scale labels have larger areas, x goes to the right
    area, place = found.image.sum((1, 2, 3)), found.image[:, 0].sum(1) @ np.arange(16)
    squares = found.labels["shape"] == 0
    assert np.corrcoef(area[squares], found.labels["scale"][squares])[0, 1] > 0.95
    assert np.corrcoef(place / area, found.labels["x"])[0, 1] > 0.95


def test_noise_is_added_to_the_clean_image() -> None:
    clean, noisy = sprites(50, 3, side=32), sprites(50, 3, side=32, noise=0.2)
    assert np.array_equal(clean.labels["x"], noisy.labels["x"])
    assert (noisy.image - clean.image).std() == pytest.approx(0.2, rel=0.02)


def test_factors_become_tasks() -> None:
    found = sprites(10, side=8)
    pairs = found.tasks("shape", "orientation")
    assert list(pairs.targets) == ["shape", "orientation"]
    assert list(found.tasks().targets) == list(found.labels)
    assert pairs.inputs.shape == (len(found), 1, 8, 8)
    with pytest.raises(InputError, match="no factor 'colour'; the factors are shape, scale"):
        found.tasks("colour")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"side": 0}, "side must be at least 1"),
        ({"noise": -1.0}, "noise must not be negative"),
        ({"turn": 0.0}, "turn must be above zero"),
    ],
)
def test_bad_numbers_are_named(options, message) -> None:
    with pytest.raises(InputError, match=message):
        sprites(**({"count": 1} | options))
