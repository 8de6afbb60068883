"""The ledger: any change is found, kills and full disks leave it whole, processes may share it."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyhead.errors import InputError
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import Head, Ledger, config_hash, data_hash, deflated_sharpe
from tests.stocks.portfolio.markets import smooth_panel

DATA, OTHER = "a" * 64, "b" * 64


def filled(path: Path, count: int = 5) -> Ledger:
    ledger = Ledger(path)
    for number in range(count):
        ledger.record(DATA, {"topk": number}, {"sharpe": number / 10, "ic": float("nan")}, f"run {number}")
    return ledger


def test_entries_come_back_and_trials_are_counted_once(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "deep" / "ledger.jsonl")
    ledger.record(DATA, {"topk": 3}, {"sharpe": 9.0})  # the same configuration again
    ledger.record(OTHER, {"topk": 3}, {"sharpe": 7.0})
    entries = ledger.entries()
    assert [entry.index for entry in entries] == list(range(7))
    assert entries[0].metrics == {"sharpe": 0.0, "ic": None}
    assert entries[2].note == "run 2"
    assert ledger.trials(DATA) == 5
    assert ledger.trials(OTHER) == 1
    assert sorted(ledger.metric(DATA, "sharpe")) == [0.0, 0.1, 0.2, 0.4, 9.0]
    assert ledger.verify().whole
    returns = np.random.default_rng(0).normal(0.001, 0.01, 100)
    assert deflated_sharpe(returns, sharpes=ledger.metric(DATA, "sharpe")).trials == 5


@pytest.mark.parametrize("line", range(5))
@pytest.mark.parametrize("what", ["metric", "hash", "remove", "swap", "garbage", "reseal"])
def test_every_tampering_is_found(tmp_path: Path, line: int, what: str) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = filled(path)
    head = ledger.head()
    lines = path.read_text().splitlines()
    body = json.loads(lines[line])
    if what == "metric":
        body["metrics"]["sharpe"] += 1
    elif what == "hash":
        body["hash"] = "0" * 64
    elif what == "reseal":  # changed with its own hash made right again
        import hashlib

        body["metrics"]["sharpe"] += 1
        plain = {name: value for name, value in body.items() if name != "hash"}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        body["hash"] = hashlib.sha256(text.encode()).hexdigest()
    lines[line] = json.dumps(body, sort_keys=True, separators=(",", ":"))
    if what == "remove":
        del lines[line]
    elif what == "swap":
        lines[line], lines[line - 1] = lines[line - 1], lines[line]
    elif what == "garbage":
        lines[line] = "not an entry"
    path.write_text("\n".join(lines) + "\n")
    assert not ledger.verify(head).whole
    if not (line == 4 and what in ("remove", "reseal")):  # the end can only be checked against a head
        assert not ledger.verify().whole
        with pytest.raises(InputError, match="cannot be trusted"):
            ledger.trials(DATA)


def test_a_head_noted_earlier_stays_valid_while_the_ledger_grows(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", 2)
    head = ledger.head()
    ledger.record(DATA, "c" * 64, {})
    assert ledger.verify(head).whole
    assert ledger.verify(Head(3, head.hash)) != ledger.verify()
    assert Ledger(tmp_path / "absent").verify().whole
    assert "not in the ledger" in Ledger(tmp_path / "absent").verify(head).problem


@pytest.mark.parametrize("kept", [1, 40, 150])
def test_an_append_cut_short_by_a_kill_is_removed_by_the_next(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = filled(path)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole + last[:kept])
    assert ledger.verify().whole
    assert len(ledger.entries()) == 5
    ledger.record(DATA, {"topk": 99}, {"sharpe": 1.0})
    assert path.read_bytes().startswith(whole)
    assert ledger.verify().entries == 6
    first = tmp_path / "first.jsonl"
    first.write_bytes(last[:kept])  # killed within the very first append
    Ledger(first).record(DATA, {}, {})
    assert Ledger(first).verify().entries == 1


def test_a_failed_write_leaves_the_ledger_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = filled(path)
    whole = path.read_bytes()
    real = os.write
    for faulty in (
        lambda descriptor, content: real(descriptor, content[:20]),  # the disk fills up
        lambda descriptor, content: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    ):
        monkeypatch.setattr(os, "write", faulty)
        with pytest.raises(OSError, match=r"could be written|No space"):
            ledger.record(DATA, {}, {})
        monkeypatch.undo()
        assert path.read_bytes() == whole
    broken = whole[:-10] + b"xxxxxxxxx\n"
    path.write_bytes(broken)
    with pytest.raises(InputError, match=r"last entry.*broken"):
        ledger.record(DATA, {}, {})
    assert path.read_bytes() == broken


def append_many(path: Path, name: int, count: int) -> None:
    for number in range(count):
        Ledger(path).record(DATA, {"process": name, "number": number}, {"sharpe": 0.0})


def test_processes_may_append_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(path, name, 25)) for name in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert Ledger(path).verify().entries == 75
    assert Ledger(path).trials(DATA) == 75


def test_hashes_tell_data_and_configurations_apart() -> None:
    panel = smooth_panel()
    same = Panel(panel.dates.copy(), panel.symbols, {k: v.copy() for k, v in panel.fields.items()}, ("said",))
    assert data_hash(panel) == data_hash(same)
    for change in ("value", "symbol", "field", "date"):
        fields = {name: values.copy() for name, values in panel.fields.items()}
        dates, symbols = panel.dates.copy(), list(panel.symbols)
        if change == "value":
            fields["close"][3, 4] = np.nextafter(fields["close"][3, 4], 1e9)
        elif change == "symbol":
            symbols[0] = "X"
        elif change == "field":
            fields["high"] = fields.pop("open")
        else:
            dates[-1] += 1
        assert data_hash(Panel(dates, tuple(symbols), fields)) != data_hash(panel), change
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    with pytest.raises(InputError, match="metric 'ic'"):
        Ledger("unused").record(DATA, {}, {"ic": "good"})  # type: ignore[dict-item]
