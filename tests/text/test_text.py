"""The text generator: tokens are lossless, models are whole or not there, bad input is one message."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhead.cli import main
from manyhead.errors import InputError
from manyhead.networks.generation import generate
from manyhead.text import TextModel, Tokenizer, Writer, train_text
from manyhead.text.train import read_texts

SOURCE = "".join(f"def add_{n}(x, y):\n    return x + y + {n}\n\n\n" for n in range(900)).encode()
LEARNT = Tokenizer.learn(SOURCE, 320)


@given(st.binary(max_size=60))
def test_every_sequence_of_bytes_comes_back(content: bytes) -> None:
    assert LEARNT.decode(LEARNT.encode(content)) == content


@given(st.text(alphabet="def ad_(xy):\n", max_size=40))
def test_known_text_takes_no_more_tokens_than_bytes(text: str) -> None:
    ids = LEARNT.encode(text.encode())
    assert len(ids) <= len(text)
    assert LEARNT.decode(ids) == text.encode()


def test_pairs_are_merged_by_frequency_as_in_the_paper() -> None:
    # 'ab' comes seven times, then 'abc' four: merges of the algorithm by hand
    learnt = Tokenizer.learn(b"abc abc abc abc ab ab ab", 258)
    assert learnt.spelling[256:] == [b"ab", b" ab"]
    assert learnt.encode(b" abab") == [257, 256]
    whole = Tokenizer.learn(b"abc abc abc abc ab ab ab", 300)
    assert b" abc" in whole.spelling
    assert len(whole) < 300  # nothing comes twice any more
    assert Tokenizer.from_json(whole.to_json()).spelling == whole.spelling


@pytest.mark.parametrize(
    "text", ["", "[]", '{"tokenizer": "words"}', '{"tokenizer": "byte pairs", "merges": [[1, 999]]}']
)
def test_what_is_no_tokeniser_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Tokenizer.from_json(text)


@pytest.fixture(scope="module")
def writer() -> Writer:
    return train_text(
        SOURCE, steps=300, sizes=TextModel(32, 1, 2, 32), vocabulary=300, batch=8, rate=1e-2, seed=0
    )


def test_it_learns_what_the_text_is_like(writer: Writer) -> None:
    assert writer.record["held-out bits a byte"] < 1.5  # 8 without any knowledge
    said = "".join(writer.write("def add_7(x, y):\n    return", 8, temperature=0.0))
    assert "x" in said


def test_writing_equals_the_network_and_goes_on_where_the_context_is_full(writer: Writer) -> None:
    ids = writer.read("def add")
    expected = generate(writer.network, [ids], 10)[0]
    said = "".join(writer.write("def add", 10, temperature=0.0))
    assert said.encode() == writer.tokenizer.decode(expected)
    long = [*writer.write("def ", 100, temperature=1.0, top_k=20, top_p=0.9, seed=3)]
    assert long == [*writer.write("def ", 100, temperature=1.0, top_k=20, top_p=0.9, seed=3)]
    ids = writer.tokenizer.encode("".join(long).encode())
    assert len("".join(long)) > 100 * 0.9  # a token is a byte at least
    assert all(isinstance(piece, str) for piece in long)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 7:
            raise Killed

    options = {"steps": 40, "sizes": TextModel(16, 1, 2, 16), "vocabulary": 270, "batch": 4, "every": 0.0}
    with pytest.raises(Killed):
        train_text(SOURCE, folder=tmp_path, report=kill, **options)  # type: ignore[arg-type]
    began: list[int] = []
    report = lambda step, steps, loss: began.append(step)  # noqa: E731
    again = train_text(SOURCE, folder=tmp_path, report=report, **options)  # type: ignore[arg-type]
    assert began[0] == 7  # the checkpoint after step 6 was the last
    # from the same checkpoint, and from the end of training, to the same weights
    twice = train_text(SOURCE, folder=tmp_path, **options)  # type: ignore[arg-type]
    for left, right in zip(again.network.parameters(), twice.network.parameters(), strict=True):
        assert torch.equal(left, right)
    with pytest.raises(InputError, match="another text or other settings"):
        train_text(SOURCE + b"x", folder=tmp_path, **options)  # type: ignore[arg-type]
    (tmp_path / "training.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="remove it to begin again"):
        train_text(SOURCE, folder=tmp_path, **options)  # type: ignore[arg-type]


def test_time_or_steps_are_given_and_not_both() -> None:
    for both in ({}, {"seconds": 1.0, "steps": 5}):
        with pytest.raises(InputError, match="give seconds or steps"):
            train_text(SOURCE, **both)
    with pytest.raises(InputError, match="steps is at least 1, got 0"):
        train_text(SOURCE, steps=0)
    with pytest.raises(InputError, match="seconds is above zero, got -1"):
        train_text(SOURCE, seconds=-1.0)


def test_the_same_steps_give_the_same_weights() -> None:
    sizes = TextModel(16, 1, 2, 16)
    left, right = (train_text(SOURCE, steps=5, sizes=sizes, vocabulary=270, batch=4) for _ in range(2))
    assert left.record["steps"] == 5
    for a, b in zip(left.network.parameters(), right.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_is_saved_and_loaded_and_replaced_as_a_whole(tmp_path: Path, writer: Writer) -> None:
    writer.save(tmp_path)
    back = Writer.load(tmp_path)
    assert back.record == writer.record
    x = torch.tensor([writer.read("def f(x")])
    assert torch.equal(back.network(x), writer.network(x))
    assert back.network.output.weight is back.network.embedding.tokens.weight
    with torch.no_grad():
        back.network.output.weight += 1
    back.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # the older weights are gone
    assert torch.equal(Writer.load(tmp_path).network.output.weight, back.network.output.weight)


def test_a_kill_between_the_files_leaves_the_old_model(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.save(tmp_path)
    other = Writer.load(tmp_path)
    with torch.no_grad():
        other.network.output.weight += 1
    monkeypatch.setattr("manyhead.text.model.write_text", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        other.save(tmp_path)
    kept = Writer.load(tmp_path).network.output.weight
    assert torch.equal(kept, writer.network.output.weight)


@pytest.fixture
def model(tmp_path: Path, writer: Writer) -> Path:
    writer.save(tmp_path / "model")
    return tmp_path / "model"


def cut(folder: Path, pattern: str) -> None:
    (file,) = folder.glob(pattern)
    file.write_bytes(file.read_bytes()[:-20])


def other_tokenizer(folder: Path) -> None:
    (file,) = folder.glob("tokenizer-*.json")
    file.write_text(Tokenizer.learn(SOURCE, 262).to_json())


def named_other_tokenizer(folder: Path) -> None:
    """A tokeniser of another model, with its own checksum in the record."""
    import hashlib

    content = Tokenizer.learn(SOURCE, 262).to_json().encode()
    (folder / "tokenizer-other.json").write_bytes(content)
    held = json.loads((folder / "model.json").read_text())
    held["tokenizer"] = {"file": "tokenizer-other.json", "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "model.json").write_text(json.dumps(held))


FAULTS = {
    "no folder": (lambda folder: folder.rename(folder.parent / "away"), "there is no text model in"),
    "truncated weights": (lambda folder: cut(folder, "weights-*"), "is truncated, altered"),
    "truncated record": (lambda folder: cut(folder, "model.json"), "model.json is damaged"),
    "truncated tokeniser": (lambda folder: cut(folder, "tokenizer-*"), "is truncated, altered"),
    "weights gone": (
        lambda folder: next(folder.glob("weights-*")).unlink(),
        "the weights of the model in",
    ),
    "wrong tokeniser": (other_tokenizer, "is not the tokenizer that the model"),
    "tokeniser of another model": (named_other_tokenizer, "they are of different models"),
    "empty record": (lambda folder: (folder / "model.json").write_text("{}"), "is not a text model's"),
}


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["manyhead", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_model_is_one_message(
    model: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = FAULTS[fault]
    damage(model)
    assert run_cli(monkeypatch, "generate", "--model", str(model), "--prompt", "def ") == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "\udcff"}, "the prompt is not text"),
        ({"prompt": "x = 1\n" * 60}, "the model reads at most 32: shorten it"),
        ({"temperature": "-1"}, "temperature is at least 0"),
        ({"top-k": "0"}, "top_k at least 1"),
        ({"top-p": "1.5"}, "top_p above 0 up to 1"),
        ({"tokens": "0"}, "tokens is at least 1"),
    ],
)
def test_a_bad_prompt_or_option_is_one_message(
    model: Path,
    options: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [part for name, value in ({"prompt": "x"} | options).items() for part in (f"--{name}", value)]
    assert run_cli(monkeypatch, "generate", "--model", str(model), *given) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_train_then_generate_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_bytes(SOURCE)
    (tmp_path / "code" / "b.bin").write_bytes(b"\0\1\2" * 9000)  # no text
    assert read_texts([tmp_path / "code"]) == SOURCE
    folder = str(tmp_path / "model")
    sizes = {"channels": "16", "depth": "1", "heads": "2", "context": "16", "vocabulary": "280"}
    options = [part for name, value in sizes.items() for part in (f"--{name}", value)]
    arguments = ["--output", folder, "--text", str(tmp_path / "code"), "--minutes", "0.005", *options]
    assert run_cli(monkeypatch, "train-text", *arguments) == 0
    assert "bits a byte on held-out text" in capsys.readouterr().out
    assert run_cli(monkeypatch, "generate", "--model", folder, "--prompt", "def ", "--tokens", "20") == 0
    assert capsys.readouterr().out.startswith("def ")
    for bad, message in {
        ("--minutes", "0"): "--minutes is above zero",
        ("--steps", "0"): "--steps is at least 1",
        ("--heads", "3"): "heads must divide channels",
        ("--depth", "0"): "depth is a whole number above zero",
        ("--vocabulary", "100"): "vocabulary is at least 256",
        ("--text", str(tmp_path / "absent")): "cannot be read",
        ("--context", "200000"): "too few for windows",
    }.items():
        assert run_cli(monkeypatch, "train-text", *arguments, *bad) == 2
        assert message in capsys.readouterr().err
