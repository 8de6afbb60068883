"""Data sets by name: where they are looked for, what they give, and what is said where they are not."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest

from manyhead import data
from manyhead.data import fetchers
from manyhead.errors import InputError

KEPT = os.environ.get("MANYHEAD_DATA", "")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No folder of data sets but an empty one, and an empty cache."""
    monkeypatch.setenv("MANYHEAD_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_every_entry_is_complete() -> None:
    for name, entry in data.DATASETS.items():
        assert name == entry.name
        assert entry.description.endswith(".")
        for text in (entry.license, entry.size, entry.form, entry.how):
            assert text
        assert bool(entry.files) == (entry.read is not None)
        assert bool(entry.files) != (entry.bundled is not None)
        assert (entry.client is None) == (entry.fetch is None)
        text = data.describe(name)
        assert entry.license in text
        assert entry.how in text


def test_import_reads_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, manyhead.data;"
        "print([m for m in ('polars', 'pandas', 'sklearn', 'skfolio', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_unknown_name(empty: Path) -> None:
    for call in (data.load, data.path, data.present, data.describe):
        with pytest.raises(InputError, match=r"no data set 'sp501'; there are breast_cancer, .*sp500"):
            call("sp501")


@pytest.mark.parametrize("name", [name for name, entry in data.DATASETS.items() if entry.files])
def test_absent_sets_say_how_to_get_them(empty: Path, name: str) -> None:
    assert data.present(name) is None
    with pytest.raises(InputError) as raised:
        data.load(name, fetch=False)
    assert "MANYHEAD_DATA" in str(raised.value)
    assert data.DATASETS[name].how in str(raised.value)
    assert data.DATASETS[name].files[0] in str(raised.value)


def test_a_folder_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYHEAD_DATA", "/no/such/folder")
    with pytest.raises(InputError, match="MANYHEAD_DATA: '/no/such/folder' is no folder"):
        data.load("cora")


def test_damaged_files_are_named(empty: Path) -> None:
    (empty / "cora.npz").write_bytes(b"PK\x03\x04 cut")
    (empty / "ml-100k.inter").write_text("user_id:token\titem_id:integer\n1\t2\n")
    for end in ("item", "user"):
        (empty / f"ml-100k.{end}").write_text("user_id:token\n1\n")
    with pytest.raises(InputError, match=r"data set 'cora': .*cora\.npz cannot be read"):
        data.load("cora")
    with pytest.raises(InputError, match="the type 'integer'"):
        data.load("ml-100k")


def test_pickled_objects_are_not_unpacked(empty: Path) -> None:
    np.savez(empty / "mnist_10k.npz", image=np.array([print], dtype=object))
    with pytest.raises(InputError, match="mnist_10k"):
        data.load("mnist_10k")


def test_forms_of_small_files(empty: Path) -> None:
    (empty / "rt_polarity_pos.txt").write_bytes("a caf\u00e9 .\n\n  good \n".encode("latin-1"))
    assert data.load("rt_polarity_pos") == ["a caf\u00e9 .", "good"]
    (empty / "rt_polarity_neg.txt").write_bytes("a caf\u00e9 .\n".encode())
    assert data.load("rt_polarity_neg") == ["a caf\u00e9 ."]
    samples = np.arange(10, dtype=np.int16)
    np.savez(
        empty / "spoken_digits_8khz.npz", samples=samples, offset=[0, 4, 10], digit=[3, 4], speaker=["a", "b"]
    )
    found = data.load("spoken_digits_8khz")
    assert [list(recording) for recording in found["samples"]] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    (empty / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\n1\t2\t3.5\n")
    (empty / "ml-100k.item").write_text('item_id:token\tmovie_title:token_seq\n2\t"8 1/2\n')
    (empty / "ml-100k.user").write_text("user_id:token\tage:token\n1\t24\n")
    found = data.load("ml-100k")
    assert found["inter"].row(0) == ("1", "2", 3.5)
    assert found["item"]["movie_title"][0] == '"8 1/2'


def test_shipped_tables() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for name, shape in {
        "digits": (1797, 64),
        "iris": (150, 4),
        "wine": (178, 13),
        "breast_cancer": (569, 30),
    }.items():
        found = data.load(name)
        assert found["feature"].shape == shape
        assert len(found["target"]) == shape[0]
        assert len(found["feature_names"]) == shape[1]
        assert data.present(name) == "sklearn"


def test_standard_library_as_text() -> None:
    text = data.load("python_source")
    assert "def dataclass(" in text
    assert text == data.load("python_source")
    assert len(text) > 10**6


def test_skfolio_prices() -> None:
    pytest.importorskip("skfolio", reason="skfolio is not installed")
    table = data.load("skfolio_sp500")
    assert table.columns == ["date", "symbol", "close"]
    assert table["symbol"].n_unique() == 20
    assert table.schema["date"] == pl.Date


def planetoid(root: str, name: str) -> list[SimpleNamespace]:
    """Four papers in a path 0-1-2-3 (given both ways, unordered), as PyTorch Geometric gives a graph."""
    torch = pytest.importorskip("torch")
    edges = torch.tensor([[1, 0, 3, 2, 2, 1], [0, 1, 2, 3, 1, 2]])
    masks = torch.eye(4, dtype=torch.bool)
    features = torch.tensor([[0, 0.5, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    return [
        SimpleNamespace(
            x=features, edge_index=edges, y=labels, train_mask=masks[0], val_mask=masks[1], test_mask=masks[2]
        )
    ]


def test_fetching_a_graph_writes_our_form(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_geometric.datasets")
    module.Planetoid = planetoid  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_geometric", ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", module)
    graph = data.load("citeseer")
    np.testing.assert_array_equal(graph["edge"], [[0, 1], [1, 2], [2, 3]])
    np.testing.assert_array_equal(graph["feature"], [[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]])
    assert [list(graph[part]) for part in ("train", "val", "test")] == [[0], [1], [2]]
    assert data.present("citeseer") == str(empty)


def test_fetching_text_and_digits(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = ModuleType("datasets")
    hub.load_dataset = lambda *_, split: {"text": [" = A = \n", "", f" {split} \n"]}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert data.load("wikitext2_valid") == " = A = \n validation \n"

    pixels = np.repeat(np.arange(10003) % 251, 784).reshape(10003, 784)
    bunch = SimpleNamespace(data=pixels, target=np.array([str(i % 10) for i in range(10003)]))
    openml = ModuleType("sklearn.datasets")
    openml.fetch_openml = lambda *_, **__: bunch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sklearn.datasets", openml)
    digits = data.load("mnist_10k")
    assert digits["image"].shape == (10000, 28, 28)
    assert digits["image"].dtype == digits["label"].dtype == np.uint8
    assert (digits["label"][0], digits["image"][0, 0, 0]) == (3, 3)  # the last 10,000 of 10,003


def test_a_fetch_that_fails_says_why_and_leaves_nothing(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    hub = ModuleType("datasets")
    hub.load_dataset = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(InputError, match="datasets could not fetch it: no route to host; set MANYHEAD_DATA"):
        data.load("wikitext2_test")
    assert not list(empty.glob("*.txt"))


def test_without_a_folder_fetches_go_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MANYHEAD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetchers.save_arrays(tmp_path / "manyhead" / "mnist_10k.npz", image=np.zeros(3), label=np.ones(3))
    assert data.present("mnist_10k") == str(tmp_path / "manyhead")
    assert list(data.load("mnist_10k")["label"]) == [1, 1, 1]


def test_the_command_lists_and_describes() -> None:
    from typer.testing import CliRunner

    from manyhead.cli import app

    runner = CliRunner()
    listing = runner.invoke(app, ["data"])
    assert listing.exit_code == 0
    for name in data.DATASETS:
        assert name[:8] in listing.output
    assert data.DATASETS["cora"].license in runner.invoke(app, ["data", "cora"]).output


SHAPES = {
    "cifar10_12k": {"train_image": (12000, 32, 32, 3), "test_label": (3000,)},
    "mnist_10k": {"image": (10000, 28, 28)},
    "cora": {"feature": (2708, 1433), "edge": (5278, 2), "train": (140,), "val": (500,), "test": (1000,)},
    "citeseer": {"feature": (3327, 3703), "edge": (4552, 2), "train": (120,), "val": (500,), "test": (1000,)},
}


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name, entry in data.DATASETS.items() if entry.files])
def test_real_files(name: str) -> None:
    if not KEPT or data.present(name) is None:
        pytest.skip(f"MANYHEAD_DATA names no folder with {data.DATASETS[name].files[0]}")
    found = data.load(name)
    for key, shape in SHAPES.get(name, {}).items():
        assert found[key].shape == shape
    lengths = {"sp500_sectors": 503, "rt_polarity_pos": 5331, "rt_polarity_neg": 5331, "sp500": 1664811}
    if name in lengths:
        assert len(found) == lengths[name]
    if name == "ml-100k":
        assert [len(found[part]) for part in ("inter", "item", "user")] == [100000, 1682, 943]
    if name == "spoken_digits_8khz":
        assert len(found["samples"]) == 3000
        assert len(set(found["speaker"])) == 6
    if name.startswith("wikitext2"):
        assert len(found) > 10**6
