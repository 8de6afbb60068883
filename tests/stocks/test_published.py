"""A checkpoint of the released layout is read without being run, kept, and used on any panel."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open

from manyhead.errors import InputError
from manyhead.stocks.canary import replaced
from manyhead.stocks.network import Stockformer, official_state_dict
from manyhead.stocks.panel import Panel
from manyhead.stocks.prices import read_prices
from manyhead.stocks.published import columns_of, read_published, save_published, untrained
from manyhead.stocks.published_scores import score_published
from tests.stocks.market import market, written
from tests.stocks.test_commands import manyhead

WIDTH = 363
DEAD = [f"VOLUME{lag}" for lag in range(1, 60)]


def network(seed: int = 0, features: int = WIDTH) -> Stockformer:
    """A small network of the released input width, its live columns moved as training moves them."""
    torch.manual_seed(seed)
    made = Stockformer(features, 6, 2, 20, 2, head_dim=6)
    live = [2 + place for place, name in enumerate(columns_of(features)) if name not in DEAD]
    with torch.no_grad():
        made.start.first.weight[:, live] *= 2.5
    return made.eval()


def checkpoint(folder: Path, seed: int = 0, features: int = WIDTH) -> Path:
    """A pickled state dict as the released training script leaves it."""
    state = {f"module.{name}": value for name, value in official_state_dict(network(seed, features)).items()}
    torch.save(state, folder / "saved_model.pth")
    return folder / "saved_model.pth"


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return read_prices(written(market(days=200, symbols=9), tmp_path_factory.mktemp("prices") / "p.parquet"))


def test_columns_are_the_files_of_the_released_folder_in_alphabetical_order() -> None:
    names = columns_of(WIDTH)
    assert names[:4] == ("CLOSE0", "CLOSE1", "CLOSE10", "CLOSE11")
    assert names.index("LABEL0") == 120  # between HIGH9 and LOW0
    # with return and trend in front, the columns that the card finds untrained
    assert [2 + names.index(name) for name in sorted(DEAD)] == list(range(244, 303))
    assert columns_of(362) == tuple(name for name in names if name != "LABEL0")
    with pytest.raises(InputError, match="reads 50 inputs"):
        columns_of(50)


def test_inputs_whose_weights_never_moved_are_told_from_those_that_did() -> None:
    assert untrained(network(), columns_of(WIDTH)) == tuple(sorted(DEAD))
    torch.manual_seed(0)
    assert (
        untrained(Stockformer(WIDTH, 6, 1), columns_of(WIDTH)) == ()
    )  # nothing was trained: nothing is known


def test_weights_survive_the_way_into_safetensors_with_what_they_are(tmp_path: Path) -> None:
    model = read_published(checkpoint(tmp_path))
    assert model.network.state_dict().keys() == network().state_dict().keys()
    for name, value in network().state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value), name
    save_published(model, tmp_path / "kept.safetensors")
    with safe_open(tmp_path / "kept.safetensors", framework="pt") as stored:
        facts = json.loads(stored.metadata()["manyhead"])
    assert facts["sizes"]["features"] == WIDTH
    assert "LABEL0" in facts["factors"]
    again = read_published(tmp_path / "kept.safetensors")
    assert again.facts() == model.facts()
    for name, value in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name


def test_no_score_sees_a_later_day(tmp_path: Path, panel: Panel) -> None:
    model = read_published(checkpoint(tmp_path))
    scores = score_published(model, panel, days=8)
    assert scores["date"].n_unique() == 8
    assert scores["probability"].is_between(0, 1).all()
    row = panel.days - 4
    altered = score_published(model, replaced(panel, row, "noise"), days=8)
    known = pl.col("date") <= panel.dates[row].item()
    assert scores.filter(known).equals(altered.filter(known))
    assert not scores.filter(~known).equals(altered.filter(~known))


def test_the_label_of_a_window_is_known_at_its_decision(tmp_path: Path, panel: Panel) -> None:
    """Two days lie between a window's last row and the decision: LABEL0 there needs no later close."""
    model = read_published(checkpoint(tmp_path))
    until = Panel(
        panel.dates[:-3], panel.symbols, {name: value[:-3] for name, value in panel.fields.items()}, ()
    )
    short, long = score_published(model, until, days=2), score_published(model, panel, days=5)
    joined = short.join(long, on=["date", "symbol"], suffix="_long")
    assert joined.height == short.height
    # the same 567 rows at most, of which this panel has fewer: the scaler sees the same ones
    assert joined["score"].equals(joined["score_long"].rename("score"))


def test_columns_that_were_never_trained_are_fed_zeros(tmp_path: Path, panel: Panel) -> None:
    model = read_published(checkpoint(tmp_path))
    other = network()
    dead = [2 + model.factors.index(name) for name in DEAD]
    with torch.no_grad():
        other.start.first.weight[:, dead] *= -1
    torch.save(official_state_dict(other), tmp_path / "other.pth")
    same = score_published(read_published(tmp_path / "other.pth"), panel, days=2)
    assert score_published(model, panel, days=2).equals(same)


def test_given_node_vectors_follow_their_symbols(tmp_path: Path, panel: Panel) -> None:
    model = read_published(checkpoint(tmp_path))
    nodes = np.random.default_rng(0).standard_normal((len(panel.symbols), 6)).astype(np.float32)
    order = np.arange(len(panel.symbols))[::-1]
    turned = panel.select([panel.symbols[place] for place in order])
    ours = score_published(model, panel, days=2, nodes=nodes)
    theirs = score_published(model, turned, days=2, nodes=nodes[order])
    assert np.allclose(ours["score"], theirs["score"], atol=1e-5)
    assert ours["symbol"].equals(theirs["symbol"])
    with pytest.raises(InputError, match=r"nodes must be \(9, 6\)"):
        score_published(model, panel, nodes=nodes[:3])


class Malicious:
    """A pickle that leaves a file when it is read by an ordinary reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", ["zip", "plain"])
def test_a_malicious_pickle_is_refused_unread(protocol: str, tmp_path: Path) -> None:
    file, mark = tmp_path / "saved_model.pth", tmp_path / "harm"
    content = {"features.pre_l.bias": Malicious(mark)}
    if protocol == "zip":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    done = manyhead("stocks", "import-official", str(file))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "could run code" in done.stderr
    assert not mark.exists()
    assert list(tmp_path.glob("*.safetensors")) == []


def test_what_is_no_checkpoint_ends_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("date,close\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    whole = checkpoint(tmp_path).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 40)
    for name in ("text.pth", "empty.pth", "other.pth", "list.pth", "half.pth", "bad.safetensors", "none.pth"):
        done = manyhead("stocks", "import-official", str(tmp_path / name))
        assert done.returncode == 2, name
        assert done.stderr.count("\n") == 1, done.stderr
        assert name in done.stderr


def test_the_command_keeps_the_weights_and_scores_prices(tmp_path: Path) -> None:
    prices = written(market(days=120, symbols=6), tmp_path / "prices.parquet")
    out = tmp_path / "scores.parquet"
    words = ["stocks", "import-official", str(checkpoint(tmp_path)), "--prices", prices, "--days", "3"]
    done = manyhead(*words, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "LABEL0, the label" in done.stdout
    assert "59 inputs were never trained" in done.stdout
    assert pl.read_parquet(out).columns == ["date", "symbol", "score", "probability"]
    kept = tmp_path / "saved_model.safetensors"
    again = manyhead("stocks", "import-official", str(kept), *words[3:], "--out", str(tmp_path / "again.csv"))
    assert again.returncode == 0, again.stderr
    assert pl.read_csv(tmp_path / "again.csv").height == pl.read_parquet(out).height
    assert manyhead("stocks", "import-official", str(kept), "--out", str(out)).returncode == 2
