"""`manyhead train-text` and `manyhead generate`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from manyhead.errors import InputError
from manyhead.text.model import TextModel, Writer
from manyhead.text.train import CHECKPOINT, read_texts, train_text


def run_train(
    output: str,
    texts: Sequence[str],
    minutes: float,
    steps: int | None,
    sizes: TextModel,
    vocabulary: int,
    seed: int,
) -> None:
    """Carry out `manyhead train-text`."""
    if minutes <= 0:
        raise InputError(f"--minutes is above zero, got {minutes:g}")
    if steps is not None and steps < 1:
        raise InputError(f"--steps is at least 1, got {steps}")
    sizes.network(256)  # sizes that cannot be are refused before the text is read
    text = read_texts(texts)
    columns = (BarColumn(), TextColumn("loss {task.fields[loss]:.2f}"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("training", total=None, loss=float("nan"))

        def report(step: int, steps: int, loss: float) -> None:
            progress.update(bar, completed=step, total=steps, loss=loss)

        options: dict[str, Any] = {"sizes": sizes, "vocabulary": vocabulary, "seed": seed}
        seconds = None if steps else 60 * minutes
        writer = train_text(text, seconds=seconds, steps=steps, folder=output, report=report, **options)
    writer.save(output)
    (Path(output) / CHECKPOINT).unlink(missing_ok=True)
    record = writer.record
    print(
        f"{output}: {record['parameters']:,} parameters, {record['steps']:,} steps, "
        f"{record['held-out bits a byte']:.3f} bits a byte on held-out text, {record['seconds']:.0f} s"
    )


def run_generate(
    model: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> None:
    """Carry out `manyhead generate`: the prompt, then what comes, as it comes."""
    if prompt == "-":
        prompt = sys.stdin.read()
    writer = Writer.load(model)
    pieces = writer.write(prompt, tokens, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
    first = next(pieces, "")  # bad options are refused before anything is printed
    sys.stdout.write(prompt + first)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
