"""The module for the released checkpoint compares what it should, on a file that is written here."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manyhead.stocks.network import Stockformer, official_state_dict
from manyhead.stocks.network.reference import stockformer_reference
from tests.parity.compare import compare
from tests.parity.stockformer_checkpoint import CHECKPOINT

SIZES = {"infea": 363, "outfea": 6, "outfea_class": 2, "L": 2, "d": 6, "T1": 20, "T2": 2, "B": 1, "N": 5}


def written(folder: Path, **changed: Any) -> tuple[Path, Path]:
    """A checkpoint as the released code leaves it, and a golden file about it by the plain reference."""
    torch.manual_seed(0)
    network = Stockformer(SIZES["infea"], SIZES["outfea"], SIZES["L"], SIZES["T1"], SIZES["T2"], 2).eval()
    state = official_state_dict(network)
    torch.save(state, folder / "saved.pth")
    days, stocks = SIZES["T1"], SIZES["N"]
    given = {
        "low": torch.randn(1, days, stocks),
        "high": torch.randn(1, days, stocks),
        "te": torch.randint(0, 12, (1, days + 2, 2)),
        "bonus": torch.randn(1, days, stocks, SIZES["infea"] - 2),
        "trend": torch.randint(0, 2, (1, days, stocks)).float(),
        "adjgat": torch.randn(stocks, SIZES["outfea"]),
    }
    with torch.no_grad():
        plain = stockformer_reference(state, **given, head_dim=SIZES["d"])
    names = {
        "low": "xl",
        "high": "xh",
        "te": "te",
        "bonus": "bonus",
        "trend": "indicator",
        "adjgat": "adjgat",
    }
    arrays = {f"in_{names[key]}": value.numpy() for key, value in given.items()}
    arrays |= {f"out_{key}": plain[key].numpy() for key in ("class", "class_low", "reg", "reg_low")}
    arrays |= {f"mid_{key}": plain[key].numpy() for key in plain if key.startswith("copy_layer")}
    arrays["param_names"] = np.array(list(state))
    arrays["param_shapes"] = np.array([str(tuple(value.shape)) for value in state.values()])
    arrays["param_sums"] = np.array([float(value.double().sum()) for value in state.values()])
    arrays["sha256"] = np.array(hashlib.sha256((folder / "saved.pth").read_bytes()).hexdigest())
    arrays["config"] = np.array(json.dumps(SIZES))
    np.savez(folder / "golden.npz", **arrays | changed)
    return folder / "golden.npz", folder / "saved.pth"


def test_the_released_sizes_have_the_published_number_of_parameters() -> None:
    from manyhead.stocks.network import official_parameter_count

    assert official_parameter_count(Stockformer(363, 128, 2, 20, 2)) == 976_219


def test_with_the_checkpoint_everything_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, checkpoint = written(tmp_path)
    alone = {error.name for error in compare("stockformer_checkpoint", golden)}
    assert alone == {"parameter names", "parameter shapes"}
    monkeypatch.setenv(CHECKPOINT, str(checkpoint))
    errors = compare("stockformer_checkpoint", golden)
    assert all(error.within for error in errors), errors
    names = {error.name for error in errors}
    assert {"sha256", "parameter sums", "out_class", "out_reg_low"} < names
    assert sum(name.startswith("mid_copy_layer") for name in names) == 4


@pytest.mark.parametrize("name", ["param_sums", "out_reg", "sha256", "param_shapes"])
def test_what_differs_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, Any] = {
        "param_sums": lambda state: state * 1.01,
        "out_reg": lambda state: state + 0.1,
        "sha256": lambda state: np.array("0" * 64),
        "param_shapes": lambda state: np.where(np.arange(len(state)) == 0, "(1, 2)", state),
    }
    golden, checkpoint = written(tmp_path)
    with np.load(golden) as held:
        changed = {name: wrong[name](held[name])}
    golden, checkpoint = written(tmp_path, **changed)
    monkeypatch.setenv(CHECKPOINT, str(checkpoint))
    seen = [error.name for error in compare("stockformer_checkpoint", golden) if not error.within]
    spoken = {"param_sums": "parameter sums", "param_shapes": "parameter shapes"}
    assert seen == [spoken.get(name, name)]
