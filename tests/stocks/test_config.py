"""A configuration is one checked value: presets, TOML and options merge; faults are named with their path."""

from pathlib import Path
from typing import Any

import pytest

from manyhead.errors import InputError
from manyhead.stocks.config import PRESETS, Config, build, read_toml, write_toml


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_toml_carries_a_configuration_there_and_back(preset: str, tmp_path: Path) -> None:
    config = build({"training": {"seeds": [3, 1]}, "splits": {"count": "all"}}, preset=preset)
    file = tmp_path / "config.toml"
    file.write_text(write_toml(config))
    assert build(read_toml(file)) == config


def test_later_layers_win_and_sections_merge() -> None:
    config = build({"model": {"dim": 32, "layers": 1}}, {"model": {"dim": 16}}, preset="paper")
    assert (config.model.dim, config.model.layers) == (16, 1)
    assert config.model.alignment == "official"  # the preset's, untouched by either layer
    assert config.preset == "paper"


def test_only_the_leaky_preset_leaks() -> None:
    assert not build(preset="fast").leaks.on()
    assert not build(preset="paper").leaks.on()
    assert len(build(preset="official_leaky").leaks.on()) == 8


def test_the_digest_follows_the_settings() -> None:
    assert Config().digest() == build().digest()
    assert Config().digest() != build({"model": {"dim": 65}}).digest()
    assert Config().digest("data") == build({"model": {"dim": 65}}).digest("data")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modle": {}}, ["unknown key 'modle'", "model"]),
        ({"model": {"dimension": 3}}, ["unknown key 'model.dimension'", "dim"]),
        ({"model": {"dim": 0}}, ["model.dim", "greater than or equal to 1", "got 0"]),
        ({"model": {"dim": "wide"}}, ["model.dim", "valid integer", "'wide'"]),
        ({"model": {"alignment": "official", "output_days": 1}}, ["official", "output_days"]),
        ({"model": {"tasks": []}}, ["tasks"]),
        ({"splits": {"count": "some"}}, ["splits.count"]),
        ({"preset": "quick"}, ["preset", "fast", "'quick'"]),
        ({"training": {"learning_rate": -1}}, ["training.learning_rate", "greater than 0", "got -1"]),
    ],
)
def test_a_fault_is_named_with_its_path_what_came_and_what_is_accepted(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as fault:
        build(settings)
    assert all(word in str(fault.value) for word in words), str(fault.value)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("[model\ndim = 3")
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML"):
        read_toml(file)
    with pytest.raises(InputError, match="cannot read the configuration"):
        read_toml(tmp_path / "absent.toml")
