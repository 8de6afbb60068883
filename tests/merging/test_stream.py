"""Merging on disk: equal to merging in memory, bounded, killed and resumed, refused where doomed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from manyhead.cli import main
from manyhead.errors import InputError
from manyhead.merging.archive import Archive
from manyhead.merging.checkpoint import Checkpoint
from manyhead.merging.masks import consensus_mask, magnitude_mask, tall_mask
from manyhead.merging.preflight import parse_bytes, preflight
from manyhead.merging.ranks import Rank, passes
from manyhead.merging.receipt import merge, receipt_path
from manyhead.merging.recipe import Recipe
from manyhead.merging.stream import journal, part
from manyhead.merging.ties import combine, elect, ties, trim
from manyhead.merging.vectors import apply, task_vectors, total

State = dict[str, torch.Tensor]
SHAPES = {"a.weight": (17, 9), "b.bias": (5,), "b.weight": (40, 31), "scalar": (), "z.weight": (3, 2, 2, 2)}


def states(tasks: int = 3, dtype: torch.dtype = torch.float32) -> tuple[State, list[State]]:
    generator = torch.Generator().manual_seed(5)

    def random() -> State:
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base = random()
    models = [{name: base[name] + 0.1 * step for name, step in random().items()} for _ in range(tasks)]
    steps = {"steps": torch.tensor([3, 4])}
    return (
        {name: tensor.to(dtype) for name, tensor in base.items()} | steps,
        [{name: tensor.to(dtype) for name, tensor in model.items()} | steps for model in models],
    )


def on_disk(folder: Path, tasks: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, Path]]:
    base, models = states(tasks, dtype)
    save_file(base, folder / "base.safetensors")
    for number, model in enumerate(models):
        save_file(model, folder / f"task{number}.safetensors")
    return folder / "base.safetensors", {f"t{n}": folder / f"task{n}.safetensors" for n in range(tasks)}


def in_memory(recipe: Recipe, base: State, vectors: torch.Tensor) -> torch.Tensor:
    """The merged vector by the readable functions on flat vectors."""
    trimmed = trim(vectors, recipe.kept, recipe.exact)
    summed = combine(trimmed, elect(trimmed), "sum")
    merged = summed if recipe.on == "ties" else total(vectors)
    if recipe.method == "average":
        return vectors.mean(0)
    if recipe.method == "arithmetic":
        return total(trimmed)
    if recipe.method == "ties":
        return ties(vectors, recipe.kept, recipe.how, recipe.exact)
    masks = [tall_mask(row, merged, recipe.lam[0]) for row in vectors]
    return merged * consensus_mask(masks, recipe.at_least)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("average"),
        Recipe("arithmetic", alpha=0.7),
        Recipe("arithmetic", keep=35),
        Recipe("ties"),
        Recipe("ties", keep=50, how="max", exact=True),
        Recipe("ties", keep=100, how="sum"),
        Recipe("consensus", lam=(0.3,)),
        Recipe("consensus", on="ties", at_least=1),
        Recipe("consensus", at_least=0),
    ],
)
@pytest.mark.parametrize("slab", [64, 2**22])
def test_the_stream_equals_merging_in_memory(tmp_path: Path, recipe: Recipe, slab: int) -> None:
    base, models = on_disk(tmp_path)
    plan = preflight(base, models, recipe, tmp_path / "out.safetensors")
    object.__setattr__(plan, "slab", slab)
    receipt = merge(plan)
    start, tuned = states()
    expected = apply(start, in_memory(recipe, start, task_vectors(start, tuned)), recipe.scale)
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    assert receipt["output"]["bytes"] == (tmp_path / "out.safetensors").stat().st_size
    assert json.loads(receipt_path(plan.out).read_text()) == json.loads(json.dumps(receipt))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["tall-masks", "magnitude-masks"])
def test_an_archive_rebuilds_every_task_at_the_measured_size(
    tmp_path: Path, method: Any, dtype: torch.dtype
) -> None:
    base, models = on_disk(tmp_path, dtype=dtype)
    recipe = Recipe(method, lam=(0.2, 0.4, 0.6), exclude=("scalar",))
    plan = preflight(base, models, recipe, tmp_path / "all.safetensors")
    receipt = merge(plan)
    archive = Archive(tmp_path / "all.safetensors")
    start, tuned = states(dtype=dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = task_vectors(
        {k: v.to(compute) if v.is_floating_point() else v for k, v in start.items()},
        [{k: v.to(compute) if v.is_floating_point() else v for k, v in m.items()} for m in tuned],
        ["scalar"],
    )
    merged = total(vectors)
    for number, task in enumerate(models):
        mask = (
            tall_mask(vectors[number], merged, recipe.lam[number])
            if method == "tall-masks"
            else magnitude_mask(vectors[number], 10)
        )
        stored = (mask * merged).to(dtype).to(compute)
        whole = {k: v.to(compute) if v.is_floating_point() else v for k, v in start.items()}
        expected = apply(whole, stored, 1.0, ["scalar"])
        archive.extract(task, tmp_path / "one.safetensors")
        found, loaded = archive.state_dict(task), load_file(tmp_path / "one.safetensors")
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.to(start[name].dtype)), name
            assert torch.equal(loaded[name], found[name]), name
        assert receipt["masks"]["density"][task] == pytest.approx(float(mask.double().mean()))
    # masks of each tensor are filled to whole bytes, and the header comes on top
    bits = receipt["storage"]["formula_bits"]["masks"]
    extra = (tmp_path / "all.safetensors").stat().st_size - len(plan.layout.header) - bits / 8
    frozen_integers = 16 - 2 * dtype.itemsize  # two int64 that the formula counts as weights
    assert frozen_integers <= extra <= frozen_integers + 3 * len(SHAPES)


def test_the_same_weights_in_shards_and_as_pytorch_files_merge_to_the_same_bytes(tmp_path: Path) -> None:
    base, models = on_disk(tmp_path)
    merge(preflight(base, models, Recipe("ties"), tmp_path / "one.safetensors"))
    start, tuned = states()
    torch.save({"state_dict": start, "epoch": 3}, tmp_path / "base.pt")
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(tuned[0])
    for number, part_names in enumerate((names[:3], names[3:])):
        save_file({n: tuned[0][n] for n in part_names}, shards / f"{number}.safetensors")
    weight_map = {n: f"{int(n in names[3:])}.safetensors" for n in names}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save(tuned[1], tmp_path / "task1.bin")
    other = {"t0": shards, "t1": tmp_path / "task1.bin", "t2": models["t2"]}
    merge(preflight(tmp_path / "base.pt", other, Recipe("ties"), tmp_path / "two.safetensors"))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 250, 499, 500])
def test_streamed_ranks_are_exact(dtype: torch.dtype, rank: int) -> None:
    values = torch.randn(500, dtype=dtype, generator=torch.Generator().manual_seed(rank)) * 1e-3
    values[::7] = values[0]  # equal magnitudes
    values[::11] = 0
    found = Rank(rank, dtype)
    for _ in range(passes(dtype)):
        for piece in values.split(123):
            found.see(piece)
        found.close()
    assert found.value == float(values.abs().sort().values[rank - 1])


KILL = """
import os, signal, sys
from manyhead.merging import stream
from manyhead.merging.preflight import preflight
from manyhead.merging.receipt import merge
from manyhead.merging.recipe import Recipe
folder, stage, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
stream.JOURNAL_EVERY = 256
models = {f"t{n}": f"{folder}/task{n}.safetensors" for n in range(3)}
recipe = Recipe(sys.argv[4], on="ties", keep=30)
plan = preflight(f"{folder}/base.safetensors", models, recipe, f"{folder}/out.safetensors")
object.__setattr__(plan, "slab", 64)
def progress(now, done, of):
    if now == stage and done == at:
        os.kill(os.getpid(), signal.SIGKILL)
merge(plan, progress=progress)
"""


@pytest.mark.parametrize(
    ("stage", "at", "method"),
    [("trim 2/2", 7, "ties"), ("merge", 14, "consensus"), ("merge", 22, "tall-masks")],
)
def test_a_merge_killed_half_way_and_resumed_gives_the_same_bytes(
    tmp_path: Path, stage: str, at: int, method: Any
) -> None:
    base, models = on_disk(tmp_path)
    recipe, out = Recipe(method, on="ties", keep=30), tmp_path / "out.safetensors"
    merge(preflight(base, models, recipe, tmp_path / "whole.safetensors"))
    killed = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path), stage, str(at), method], capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert not out.exists()
    assert part(out).exists()
    done = json.loads(journal(out).read_text())["done"]
    assert (done > 0) == (stage == "merge")
    steps: list[int] = []
    plan = preflight(base, models, recipe, out)
    receipt = merge(plan, progress=lambda now, number, of: steps.append(number) if now == "merge" else None)
    assert receipt["run"]["resumed"]
    assert steps[0] == done + 1  # what was journalled is not done again
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not part(out).exists()
    assert not journal(out).exists()


def test_an_unfinished_merge_of_other_inputs_is_not_resumed(tmp_path: Path) -> None:
    base, models = on_disk(tmp_path)
    out = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", KILL, str(tmp_path), "merge", "14", "ties"], check=False)
    changed = load_file(models["t1"])
    changed["b.bias"] += 1
    save_file(changed, models["t1"])
    receipt = merge(preflight(base, models, Recipe("ties", on="ties", keep=30), out))
    assert not receipt["run"]["resumed"]
    merge(preflight(base, models, Recipe("ties", on="ties", keep=30), tmp_path / "again.safetensors"))
    assert out.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


BOUND = """
import sys
from manyhead.merging.preflight import preflight
from manyhead.merging.receipt import merge
from manyhead.merging.recipe import Recipe
folder = sys.argv[1]
models = {f"m{n}": f"{folder}/m{n}.safetensors" for n in range(3)}
plan = preflight(f"{folder}/b.safetensors", models, Recipe("consensus", on="ties"),
                 f"{folder}/out.safetensors", max_memory=sys.argv[2])
print(merge(plan)["run"]["peak_memory_bytes"])
"""


def test_memory_stays_below_the_bound_whatever_the_size_of_the_model(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("b", "m0", "m1", "m2"):  # 4 x 48 MiB, each in one tensor: together above the bound
        values = generator.standard_normal(12 * 2**20, dtype=np.float32)
        save_file({"w": torch.from_numpy(values)}, tmp_path / f"{name}.safetensors")
    bound = 400 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", BOUND, str(tmp_path), str(bound)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= bound
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()


def test_batchnorm_statistics_are_averaged_with_a_warning(tmp_path: Path) -> None:
    start = {"w": torch.zeros(2), "bn.running_var": torch.ones(2)}
    save_file(start, tmp_path / "base.safetensors")
    for number in (1, 2):
        model = {"w": torch.full((2,), float(number)), "bn.running_var": torch.full((2,), 0.2 * number)}
        save_file(model, tmp_path / f"{number}.safetensors")
    models = {"1": tmp_path / "1.safetensors", "2": tmp_path / "2.safetensors"}
    recipe = Recipe("arithmetic", alpha=1)
    plan = preflight(tmp_path / "base.safetensors", models, recipe, tmp_path / "o.safetensors")
    assert "BatchNorm" in plan.warnings[0]
    merge(plan)
    found = load_file(plan.out)
    assert found["w"].tolist() == [3, 3]
    torch.testing.assert_close(found["bn.running_var"], torch.tensor([0.3, 0.3]))  # a sum would be negative


def scores(path: Path, task: str) -> list[float]:
    """Closeness to the task's own model on eight 'samples'."""
    own = load_file(path.parent / f"task{task[1:]}.safetensors")["b.weight"].reshape(-1)[:8]
    return (-(load_file(path)["b.weight"].reshape(-1)[:8] - own).abs()).tolist()


def test_the_receipt_has_every_task_before_and_after_with_a_paired_interval(tmp_path: Path) -> None:
    base, models = on_disk(tmp_path)
    plan = preflight(base, models, Recipe("average"), tmp_path / "out.safetensors")
    table = merge(plan, evaluate=scores)["tasks_before_and_after"]
    assert table.keys() == models.keys()
    for task, row in table.items():
        after = scores(plan.out, task)
        assert row["fine_tuned"] == 0
        assert row["merged"] == pytest.approx(np.mean(after))
        low, high = row["interval_95"]
        assert row["difference"] == pytest.approx(np.mean(after))
        assert low < row["difference"] < high
    archive = preflight(base, models, Recipe("tall-masks"), tmp_path / "all.safetensors")
    rebuilt = merge(archive, evaluate=scores)["tasks_before_and_after"]
    for task in models:
        Archive(archive.out).extract(task, tmp_path / "one.safetensors")
        expected = np.mean(scores(tmp_path / "one.safetensors", task))
        assert rebuilt[task]["merged"] == pytest.approx(expected)
    assert not list(tmp_path.glob(".*"))


def test_a_merge_worse_than_the_best_single_model_is_not_published(tmp_path: Path) -> None:
    base, models = on_disk(tmp_path)
    recipe, out = Recipe("arithmetic", alpha=20), tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="not published"):
        merge(preflight(base, models, recipe, out), evaluate=scores)
    assert not out.exists()
    merge(preflight(base, models, recipe, out), evaluate=scores, publish_worse=True)
    assert out.exists()


def broken(folder: Path, kind: str) -> dict[str, Any]:
    """Spoil one thing; return the arguments of preflight."""
    base, models = on_disk(folder)
    call: dict[str, Any] = {"base": base, "models": models, "recipe": Recipe("ties")}
    call["out"] = folder / "out.safetensors"
    model = load_file(models["t1"])
    if kind == "missing file":
        call["models"]["t1"] = folder / "absent.safetensors"
    elif kind == "missing key":
        del model["b.bias"]
    elif kind == "extra key":
        model["lora"] = torch.ones(2)
    elif kind == "shape":
        model["b.weight"] = model["b.weight"].T.contiguous()
    elif kind == "dtype":
        model["a.weight"] = model["a.weight"].half()
    elif kind == "same file":
        call["models"]["t1"] = models["t0"]
    elif kind == "model is base":
        call["models"]["t1"] = base
    elif kind == "no model":
        call["models"] = {}
    elif kind == "lambdas":
        call["recipe"] = Recipe("consensus", lam=(0.1, 0.2))
    elif kind == "empty mask":
        call["recipe"] = Recipe("consensus", at_least=4)
    elif kind == "all excluded":
        call["recipe"] = Recipe("ties", exclude=("*",))
    elif kind == "out exists":
        call["out"] = models["t2"]
    elif kind == "out suffix":
        call["out"] = folder / "out.bin"
    elif kind == "memory":
        call["max_memory"] = "10MiB"
    elif kind == "memory text":
        call["max_memory"] = "much"
    save_file(model, models["t1"]) if kind not in ("missing file", "no model", "same file") else None
    if kind == "cut off":
        whole = models["t1"].read_bytes()
        models["t1"].write_bytes(whole[:-100])
    elif kind == "no safetensors":
        models["t1"].write_bytes(b"hello")
    elif kind == "broken header":
        models["t1"].write_bytes((5).to_bytes(8, "little") + b"{]}  " + b"0" * 50)
    elif kind == "pickle":
        call["models"]["t1"] = folder / "x.pt"
        (folder / "x.pt").write_bytes(b"\x80\x04K\x01.")
    elif kind == "shard":
        call["models"]["t1"] = folder / "shards"
        (folder / "shards").mkdir()
        index = json.dumps({"weight_map": {"a": "gone.safetensors"}})
        (folder / "shards" / "model.safetensors.index.json").write_text(index)
    elif kind == "empty folder":
        call["models"]["t1"] = folder / "nothing"
        (folder / "nothing").mkdir()
    return call


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing file", "no checkpoint at .*absent"),
        ("missing key", r"task1.safetensors lacks 1 of 5 tensors of the base, the first is 'b.bias'"),
        ("extra key", "has 1 tensors that the base lacks, the first is 'lora'"),
        ("shape", r"'b.weight' is \[31, 40\] in .*task1.safetensors and \[40, 31\] in the base"),
        ("dtype", "'a.weight' is torch.float16 in .*--cast"),
        ("same file", "model 't1' and model 't0' are the same file"),
        ("model is base", "model 't1' and the base are the same file"),
        ("no model", "at least one fine-tuned model"),
        ("lambdas", "2 lambdas were given for 3 models"),
        ("empty mask", "mask would be empty: it asks for 4 of 3 tasks"),
        ("all excluded", "no floating-point tensor is left"),
        ("out exists", "exists; name another output"),
        ("out suffix", "a .safetensors file, got"),
        ("memory", "too small: this merge needs at least"),
        ("memory text", "a size is a number"),
        ("cut off", "cut off: tensor"),
        ("no safetensors", "not a safetensors file"),
        ("broken header", "broken safetensors header"),
        ("pickle", "cannot be read as a PyTorch checkpoint"),
        ("shard", "names gone.safetensors, which is not there"),
        ("empty folder", "holds no .safetensors"),
    ],
)
def test_a_doomed_merge_is_refused_from_the_headers(tmp_path: Path, kind: str, message: str) -> None:
    call = broken(tmp_path, kind)
    with pytest.raises(InputError, match=message):
        preflight(**call)
    assert not part(tmp_path / "out.safetensors").exists()


def test_nan_and_an_empty_mask_name_the_model_and_publish_nothing(tmp_path: Path) -> None:
    base, models = on_disk(tmp_path)
    out = tmp_path / "out.safetensors"
    save_file(states()[0], models["t2"])  # equals the base: no weight can be marked
    with pytest.raises(InputError, match="mask of task 't2' is empty"):
        merge(preflight(base, models, Recipe("tall-masks"), out))
    spoilt = states()[1][1]
    spoilt["b.bias"][2] = float("nan")
    save_file(spoilt, models["t1"])
    with pytest.raises(InputError, match=r"task1.safetensors: tensor 'b.bias' holds NaN"):
        merge(preflight(base, models, Recipe("ties"), out))
    assert not out.exists()


def test_excluded_heads_may_differ_and_stay_the_base(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4), "head": torch.ones(3)}, tmp_path / "base.safetensors")
    save_file({"w": torch.ones(4), "head": torch.ones(7)}, tmp_path / "m.safetensors")
    recipe = Recipe("arithmetic", alpha=1, exclude=("head*",))
    models = {"m": tmp_path / "m.safetensors"}
    plan = preflight(tmp_path / "base.safetensors", models, recipe, tmp_path / "o.safetensors")
    assert (plan.weights, plan.frozen) == (4, 3)
    merge(plan)
    found = load_file(plan.out)
    assert found["head"].tolist() == [1, 1, 1]
    assert found["w"].tolist() == [1] * 4


def test_sizes_are_powers_of_1024() -> None:
    assert parse_bytes("2GiB") == parse_bytes("2g") == 2 * 2**30
    assert parse_bytes("1.5 MB") == 3 * 2**19
    assert parse_bytes(77) == 77


def test_a_checkpoint_reads_parts_of_a_tensor(tmp_path: Path) -> None:
    base, _ = on_disk(tmp_path)
    whole = states()[0]["b.weight"].reshape(-1)
    assert torch.equal(Checkpoint(base).read("b.weight", 31, 77), whole[31:77])


def test_the_command_refuses_with_one_message_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, models = on_disk(tmp_path)
    arguments = ["merge", "--base", str(base), "--model", str(models["t0"])]
    for more, message in (
        ([], "a merge needs --base PATH"),
        (["--out", str(base)], "exists; name another output"),
        (["--out", "o.safetensors", "--method", "soup"], "method is one of average"),
        (["--out", "o.safetensors", "--lambda", "a"], "--lambda takes numbers"),
        (["--out", "o.safetensors", "--model", f"task0={models['t1']}"], "two models are called 'task0'"),
        (["--out", "o.safetensors", "--evaluate", "no.py"], "no evaluation file no.py"),
        (["--out", "o.safetensors", "--dtype", "int4"], "--dtype is one of"),
    ):
        monkeypatch.setattr(sys, "argv", ["manyhead", *arguments, *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_the_command_extracts_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, models = on_disk(tmp_path)
    out, one = tmp_path / "all.safetensors", tmp_path / "one.safetensors"
    merge(preflight(base, models, Recipe("tall-masks"), out))
    command = ["manyhead", "merge", "extract", str(out), "--task", "t2", "--out", str(one)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert torch.equal(load_file(one)["a.weight"], Archive(out).state_dict("t2")["a.weight"])
    with pytest.raises(InputError, match="has no task 't9'; its tasks are t0, t1, t2"):
        Archive(out).extract("t9", one)
    with pytest.raises(InputError, match="is no archive of masks"):
        Archive(base)


def manyhead(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "manyhead.cli", "merge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_merges_archives_and_rebuilds(tmp_path: Path) -> None:
    base, models = on_disk(tmp_path)
    named = [part for task, path in models.items() for part in ("--model", f"{task}={path}")]
    out, one = tmp_path / "all.safetensors", tmp_path / "one.safetensors"
    done = manyhead("--base", base, *named, "--out", out, "--method", "tall-masks", "--max-memory", "2GiB")
    assert done.returncode == 0, done.stderr
    assert "receipt:" in done.stdout
    Archive(out).extract("t1", one)
    assert torch.equal(load_file(one)["b.weight"], Archive(out).state_dict("t1")["b.weight"])
