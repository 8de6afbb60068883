"""Checkpoints keep every value exactly, and a file that is not whole is never read as one."""

import collections
import math
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.training import CheckpointError, FolderInUse, load_state, save_state
from manyhead.training.checkpoint import CHECKPOINT, RunFolder, pack, run_folder, unpack

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        alike = first.dtype == second.dtype and first.shape == second.shape
        return alike and pickle.dumps(first.tolist()) == pickle.dumps(second.tolist())
    if isinstance(first, np.ndarray):
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and first.tobytes() == second.tobytes()
        )
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and math.isnan(first):
        return math.isnan(second)
    return type(first) is type(second) and first == second


def tensors():
    return st.builds(
        lambda dtype, shape, seed: (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(
            dtype
        ),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 3), max_size=3),
        st.integers(0, 99),
    )


def arrays():
    return st.builds(
        lambda dtype, n: np.arange(n).astype(dtype),
        st.sampled_from(["f4", "f8", "i8", "u4"]),
        st.integers(0, 4),
    )


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    tensors(),
    arrays(),
    st.sampled_from(DTYPES),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.booleans()), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_every_nested_value_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, tree) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    save_state(path, tree)
    assert same(tree, load_state(path))


def test_tied_sliced_transposed_and_complex_tensors_come_back() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    tree = {"a": weight, "b": weight, "c": weight[1], "d": weight.T, "e": torch.complex(weight, weight + 1)}
    tree |= {
        "f": collections.Counter({3: 2, 5: 1}),
        "g": torch.device("cpu"),
        "h": np.float64(0.1),
        "i": np.array(3),
    }
    back = unpack(*pack(tree))
    for name in "abcde":
        assert torch.equal(back[name], tree[name])
    assert back["f"] == tree["f"]
    assert isinstance(back["f"], collections.Counter)
    assert back["g"] == tree["g"]
    assert back["h"] == 0.1
    assert back["i"].shape == ()


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(TypeError, match=r"schedule\.0\.f holds a function"):
        pack({"schedule": [{"f": lambda: None}]})


def test_a_checkpoint_cut_anywhere_or_with_any_bit_flipped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    tree = {"weights": torch.randn(20), "step": 3, "history": [{"loss": 0.1}]}
    save_state(path, tree)
    refused = 0
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_state(path)
    for place in range(0, len(content), 3):
        altered = bytearray(content)
        altered[place] ^= 1 << (place % 8)
        path.write_bytes(altered)
        try:
            assert same(load_state(path), tree), "a damaged checkpoint was read as another one"
        except CheckpointError:
            refused += 1
    assert refused > len(content) // 3 - 10  # what is left is white space in the header
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        load_state(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_state(path)


def test_weights_are_plain_safetensors_that_others_can_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "best.safetensors"
    save_state(path, {"layer.weight": torch.ones(2, 3)})
    assert load_file(path)["layer.weight"].shape == (2, 3)


def _hold(path: Path, ready, done) -> None:
    folder = RunFolder(path)
    folder.open()
    ready.set()
    done.wait()


def test_a_living_writer_keeps_others_out_and_a_dead_one_does_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, done))
    process.start()
    ready.wait()
    with pytest.raises(FolderInUse, match=f"in use by another run \\(process {process.pid}\\)"):
        RunFolder(tmp_path).open()
    process.kill()
    process.join()
    folder = RunFolder(tmp_path)
    folder.open()  # the lock of the dead is void
    with pytest.raises(FolderInUse):
        RunFolder(tmp_path).open()
    folder.close()
    RunFolder(tmp_path).open()


def test_opening_removes_what_a_killed_writer_left_half_written(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.abc.part").write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("kept")
    folder = RunFolder(tmp_path)
    folder.open()
    folder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mine.txt"]


def test_only_the_best_weights_that_the_checkpoint_names_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open()
    for epoch in (1, 2, 3):
        folder.save_best(epoch, {"w": torch.tensor(float(epoch))})
    folder.save({"x": 1}, best_epoch=2)
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-00002.safetensors"]
    assert folder.load_best(2)["w"] == 2
    folder.close()


def test_a_folder_is_asked_for_and_never_overwritten_by_accident(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resume=True needs the folder"), run_folder(None, resume=True):
        pass
    save_state(tmp_path / CHECKPOINT, {})
    with pytest.raises(InputError, match="already holds a run"), run_folder(tmp_path, resume=False):
        pass
