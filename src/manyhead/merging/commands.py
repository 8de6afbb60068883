"""`manyhead merge`: merge checkpoints on disk, and rebuild models from an archive of masks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from manyhead.errors import InputError

app = typer.Typer(help="Merge fine-tuned checkpoints of one base, in bounded memory.", add_completion=False)
DTYPES = ("float32", "float16", "bfloat16", "float64")


def _named(models: list[str]) -> dict[str, str]:
    """Task names from NAME=PATH, or the file's own name."""
    named: dict[str, str] = {}
    for text in models:
        name, _, path = text.partition("=") if "=" in text else (Path(text).stem, "", text)
        if ":" in name or not name:
            raise InputError(f"a task's name is not empty and has no ':', got {name!r} in {text!r}")
        if name in named:
            raise InputError(f"two models are called {name!r}; name them with --model NAME=PATH")
        named[name] = path
    return named


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(piece) for piece in text.split(","))
    except ValueError:
        raise InputError(f"--lambda takes numbers separated by commas, got {text!r}") from None


@app.callback(invoke_without_command=True)
def merge_command(
    context: typer.Context,
    base: Annotated[str | None, typer.Option(help="Checkpoint of the pre-trained model.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A fine-tuned checkpoint, PATH or TASK=PATH; several times.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The .safetensors file to write.")] = None,
    method: Annotated[
        str,
        typer.Option(help="average, arithmetic, ties, consensus, tall-masks or magnitude-masks."),
    ] = "arithmetic",
    alpha: Annotated[float | None, typer.Option(help="Scaling of the merged vector.")] = None,
    keep: Annotated[float | None, typer.Option(help="Per cent of each task vector kept.")] = None,
    how: Annotated[str, typer.Option(help="How TIES combines: mean, sum or max.")] = "mean",
    on: Annotated[str, typer.Option(help="What masks are made on: arithmetic or ties.")] = "arithmetic",
    lam: Annotated[str, typer.Option("--lambda", help="TALL thresholds: one, or one a model.")] = "0.4",
    at_least: Annotated[int, typer.Option(help="Consensus keeps what so many tasks use.")] = 2,
    exact_k: Annotated[bool, typer.Option(help="Keep exactly the share asked for.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Tensors left as in the base, such as 'head.*'; several times.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the output; the base's if left out.")] = None,
    cast: Annotated[bool, typer.Option(help="Accept models of another floating-point dtype.")] = False,
    max_memory: Annotated[str | None, typer.Option(help="Memory to keep to, such as 2GiB.")] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Python file with evaluate(path, task) -> a score for every sample.")
    ] = None,
    publish_worse: Annotated[
        bool, typer.Option(help="Publish even a result worse than the best single model.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check from headers alone and print the plan.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Merge checkpoints. A killed merge goes on where it was when the same command runs again."""
    if context.invoked_subcommand is not None:
        return
    if base is None or not model or out is None:
        raise InputError("a merge needs --base PATH, --model PATH (several times) and --out FILE.safetensors")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype is one of {', '.join(DTYPES)}; got {dtype!r}")

    import torch

    from manyhead.merging.preflight import preflight
    from manyhead.merging.receipt import load_evaluate, merge
    from manyhead.merging.recipe import Recipe

    recipe = Recipe(
        method=method,  # type: ignore[arg-type]
        alpha=alpha,
        keep=keep,
        how=how,  # type: ignore[arg-type]
        on=on,  # type: ignore[arg-type]
        lam=_numbers(lam),
        at_least=at_least,
        exact=exact_k,
        exclude=tuple(exclude or ()),
    )
    judge = load_evaluate(evaluate) if evaluate else None
    plan = preflight(
        base,
        _named(model),
        recipe,
        out,
        max_memory=max_memory,
        dtype=getattr(torch, dtype) if dtype else None,
        cast=cast,
        replace_out=force,
    )
    read = sum(f.stat().st_size for c in (plan.base, *plan.models.values()) for f in c.files)
    typer.echo(
        f"{recipe.method}: {len(plan.models)} models, {plan.weights:,} weights merged, "
        f"{plan.frozen:,} kept; reads {read / 1e6:,.1f} MB, writes {plan.layout.size / 1e6:,.1f} MB, "
        f"{plan.slab:,} weights at a time",
        err=True,
    )
    for warning in plan.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if dry_run:
        return
    with _bar() as progress:
        receipt = merge(plan, evaluate=judge, publish_worse=publish_worse, progress=progress)
    if as_json:
        import json

        typer.echo(json.dumps(receipt, indent=1))
        return
    _print(receipt, plan.out)


def _bar() -> Any:
    """A progress bar on the error stream, and the function that moves it."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def shown() -> Any:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            tasks: dict[str, Any] = {}

            def move(stage: str, done: int, of: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=of)
                bar.update(tasks[stage], completed=done)

            yield move

    return shown()


def _print(receipt: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from manyhead.merging.receipt import receipt_path

    console, run, storage = Console(), receipt["run"], receipt["storage"]
    console.print(
        f"{out}: {storage['output_bytes']:,} bytes ({storage['ratio']:.2f}x smaller than the models), "
        f"{run['seconds']:.1f} s, peak memory {run['peak_memory_bytes'] / 2**20:,.0f} MiB"
        + (", resumed" if run["resumed"] else "")
    )
    if "masks" in receipt:
        table = Table("task", "share of weights in the mask")
        for task, density in receipt["masks"]["density"].items():
            table.add_row(task, f"{density:.2%}")
        console.print(table)
    if "tasks_before_and_after" in receipt:
        table = Table("task", "samples", "base", "fine-tuned", "merged", "difference", "95 % interval")
        for task, row in receipt["tasks_before_and_after"].items():
            span = "" if row["interval_95"] is None else "[{:+.3g}, {:+.3g}]".format(*row["interval_95"])
            numbers = [f"{row[key]:.4g}" for key in ("base", "fine_tuned", "merged")]
            table.add_row(task, str(row["samples"]), *numbers, f"{row['difference']:+.3g}", span)
        console.print(table)
    console.print(f"receipt: {receipt_path(out)}")


@app.command("extract")
def extract_command(
    archive: Annotated[str, typer.Argument(help="File written by --method tall-masks or magnitude-masks.")],
    task: Annotated[str, typer.Option(help="Whose model to rebuild.")],
    out: Annotated[str, typer.Option(help="The .safetensors file to write.")],
) -> None:
    """Rebuild one task's model from an archive of masks."""
    from manyhead.merging.archive import Archive

    Archive(archive).extract(task, out)
    typer.echo(f"{out}: model of task {task}")
