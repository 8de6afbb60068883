"""Train a text generator within a budget of time."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.errors import InputError
from manyhead.networks.transformer import Transformer
from manyhead.text.model import TextModel, Writer
from manyhead.text.tokenizer import BYTES, Tokenizer
from manyhead.training.budget import affordable_steps
from manyhead.training.checkpoint import CheckpointError, load_state, save_state

CHECKPOINT = "training.safetensors"  # there as long as a training has not ended
HELD_OUT = 20  # every twentieth part of the text is for judging


def read_texts(paths: Sequence[str | Path]) -> bytes:
    """Bytes of files, and of the text files below folders; of the standard library without any.

    Raises:
        InputError: if a path cannot be read, or all together hold less than 20,000 bytes.
    """
    if not paths:
        from manyhead import data

        return str(data.load("python_source")).encode()
    contents = []
    for path in map(Path, paths):
        try:
            files = [f for f in sorted(path.rglob("*")) if f.is_file()] if path.is_dir() else [path]
            contents += [file.read_bytes() for file in files]
        except OSError as fault:
            raise InputError(f"--text: {path} cannot be read: {fault.strerror}") from None
    # a file with a null byte is no text
    text = b"\n".join(content for content in contents if b"\0" not in content)
    if len(text) < 20_000:
        raise InputError(f"--text: {len(text)} bytes of text were found, at least 20,000 are needed")
    return text


def train_text(
    text: bytes,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    sizes: TextModel | None = None,
    vocabulary: int = 1024,
    batch: int = 8,
    rate: float = 3e-3,
    seed: int = 0,
    folder: str | Path | None = None,
    every: float = 30.0,
    report: Callable[[int, int, float], None] | None = None,
) -> Writer:
    """Learn a tokeniser and a network from text.

    The number of steps is given, or chosen so that training takes about `seconds` of one thread; the rate
    rises for a twentieth of them and falls to zero, as in `OneCycleLR`.

    Args:
        text: bytes, at least 20,000.
        seconds: of training.
        steps: of training, in place of seconds: on one machine, the same steps give the same weights.
        sizes: of the network; `TextModel()` if left out.
        vocabulary: tokens, at least 256.
        batch: windows of a step.
        rate: highest learning rate of AdamW.
        seed: of weights and windows.
        folder: where a checkpoint is kept while training lasts; a run that was killed goes on from it, if
            it had the same text and arguments.
        every: seconds between checkpoints.
        report: called with the step, the number of steps and the loss.

    Returns:
        The trained generator; its record holds bits a byte on text that was not trained on.

    Raises:
        InputError: if a size, the time or the steps cannot be, there is too little text for a window, or the
            checkpoint is of another run.
    """
    if (seconds is None) == (steps is None):
        raise InputError(f"give seconds or steps, one of them; got {seconds} and {steps}")
    if seconds is not None and seconds <= 0:
        raise InputError(f"training takes time: seconds is above zero, got {seconds}")
    if steps is not None and steps < 1:
        raise InputError(f"steps is at least 1, got {steps}")
    if vocabulary < BYTES:
        raise InputError(f"vocabulary is at least {BYTES}, the bytes; got {vocabulary}")
    sizes = sizes or TextModel()
    begun = time.perf_counter()
    tokenizer = Tokenizer.learn(text, vocabulary)
    ids = torch.tensor(tokenizer.encode(text))
    block = len(ids) // HELD_OUT  # the last twentieth is held out
    train, test = ids[:-block], ids[-block:]
    if len(test) <= sizes.context + 1:
        raise InputError(f"{len(ids)} tokens of text are too few for windows of {sizes.context}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = sizes.network(len(tokenizer))
    random = torch.Generator().manual_seed(seed)
    loss_of = partial(_loss, network, train, sizes.context, batch, random)
    path = None if folder is None else Path(folder) / CHECKPOINT
    run: dict[str, Any] = {
        "text": hashlib.sha256(text).hexdigest(),
        "arguments": [asdict(sizes), seconds, steps, vocabulary, batch, rate, seed],
    }
    held = _held(path, run)
    if held is not None:
        steps = held["steps"]
    elif seconds is not None:
        steps = affordable_steps(seconds, [loss_of], 1_000_000)
    assert steps is not None
    network.zero_grad()
    random.manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.05)
    done, spent = 0, 0.0
    if held is not None:
        done, spent = held["done"], held["spent"]
        network.load_state_dict(held["network"])
        optimizer.load_state_dict(held["optimizer"])
        schedule.load_state_dict(held["schedule"])
        random.set_state(held["random"])
    saved = time.perf_counter()
    for step in range(done, steps):
        loss = loss_of()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step + 1, steps, float(loss.detach()))
        if path is not None and time.perf_counter() - saved > every:
            state = {
                "steps": steps,
                "done": step + 1,
                "spent": spent + time.perf_counter() - begun,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": random.get_state(),
            }
            save_state(path, run | state)
            saved = time.perf_counter()
    writer = Writer(sizes, network.eval(), tokenizer)
    writer.record.update(
        {
            "bytes": len(text),
            "tokens": len(ids),
            "bytes a token": len(text) / len(ids),
            "steps": steps,
            "batch": batch,
            "seed": seed,
            "seconds": spent + time.perf_counter() - begun,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "held-out bits a byte": writer.bits_a_byte(test),
        }
    )
    return writer


def _held(path: Path | None, run: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint of this very run, or None where there is none.

    Raises:
        InputError: if it is of another run, or damaged.
    """
    if path is None or not path.exists():
        return None
    try:
        held: dict[str, Any] = load_state(path)
    except CheckpointError as fault:
        raise InputError(f"{fault}: remove it to begin again") from None
    if any(held.get(key) != value for key, value in run.items()):
        raise InputError(
            f"{path} is of a run with another text or other settings: give these, or remove it to begin again"
        )
    return held


def _loss(network: Transformer, ids: Tensor, context: int, batch: int, random: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - context, (batch, 1), generator=random)
    rows = ids[starts + torch.arange(context + 1)]
    return cross_entropy(network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
