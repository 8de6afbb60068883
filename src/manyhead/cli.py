"""The `manyhead` command, thin: every subcommand parses its arguments and calls the library."""

import sys
from typing import Annotated

import typer

from manyhead import __version__
from manyhead.errors import InputError
from manyhead.merging.commands import app as merging
from manyhead.stocks.commands import app as stocks

app = typer.Typer(
    name="manyhead",
    help="Models with many heads: attention heads over token grids, task heads trained together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(merging, name="merge")
app.add_typer(stocks, name="stocks")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"manyhead {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command("systems")
def list_systems() -> None:
    """List every paper in the catalogue."""
    from manyhead.demonstration import print_catalogue

    print_catalogue()


@app.command("show")
def show_system(slug: Annotated[str, typer.Argument(help="Name of a system.")]) -> None:
    """Explain one system: its paper, its claim, which reading is followed."""
    from manyhead.demonstration import print_system

    print_system(slug)


@app.command("demo")
def demo_system(
    slug: Annotated[str, typer.Argument(help="Name of a system.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    budget: Annotated[
        float | None, typer.Option(help="Seconds a seed may take; the system's own if left out.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help="Processes that take seeds side by side; measured times then disturb each other."),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    page: Annotated[
        str | None, typer.Option(help="Folder into which SLUG.json and SLUG.md are written.")
    ] = None,
) -> None:
    """Measure a paper's claim: paper, baseline, here, interval, verdict."""
    from manyhead.demonstration import run_demo

    run_demo(slug, seeds, budget, workers=workers, as_json=as_json, page=page)


@app.command("data")
def list_data(
    name: Annotated[str | None, typer.Argument(help="Name of a data set; all if left out.")] = None,
) -> None:
    """List the data sets, their licenses, and which are on this machine."""
    from manyhead.data.listing import print_data

    print_data(name)


@app.command("compare")
def compare_balancers(
    data: Annotated[
        str, typer.Option(help="multi_mnist, or your own module:function of (seed, budget) -> TaskSet.")
    ] = "multi_mnist",
    balancers: Annotated[
        str,
        typer.Option(help="Separated by commas: names, flat-<aggregator>, arguments as in cagrad:c=0.4."),
    ] = "single,equal,log,mgda,upgrad,flat-mgda,flat-upgrad,rep",
    seeds: Annotated[str, typer.Option(help="How many ('3': 0, 1 and 2), or a list ('0,5').")] = "3",
    budget: Annotated[str, typer.Option(help="tiny, small or large: epochs and learning rates.")] = "small",
    epochs: Annotated[int | None, typer.Option(help="In place of the budget's.")] = None,
    rates: Annotated[str | None, typer.Option(help="Learning rates tried, in place of the budget's.")] = None,
    interference: Annotated[
        bool, typer.Option("--interference", help="Also leave tasks out, branch and race at equal seconds.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Local processes.")] = 1,
    threads: Annotated[int, typer.Option(help="Torch threads of each process.")] = 1,
    out: Annotated[str, typer.Option(help="Folder; a killed comparison goes on there.")] = "comparison",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare balancers with single-task training: what each gains over seeds, and what it costs."""
    from manyhead.comparison.commands import run_compare

    run_compare(
        data,
        balancers,
        seeds,
        budget,
        epochs=epochs,
        rates=rates,
        interference=interference,
        workers=workers,
        threads=threads,
        out=out,
        as_json=as_json,
    )


@app.command("chaos")
def chaos_run(
    run: Annotated[
        str | None,
        typer.Option(
            help="Your own run, package.module:function of (folder, resume); a small one if left out."
        ),
    ] = None,
    kills: Annotated[int, typer.Option(help="SIGKILLs, half of them inside a save.")] = 200,
    faults: Annotated[int, typer.Option(help="Places at which each disk fault is tried.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the moments and places.")] = 0,
    folder: Annotated[str | None, typer.Option(help="Where the runs work.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Kill a training run at random moments and fault its disk; exit code 1 if anything is lost."""
    from manyhead.training.disturbance import run_chaos

    if not run_chaos(run, kills=kills, faults=faults, seed=seed, folder=folder, as_json=as_json):
        raise typer.Exit(1)


@app.command("train-text")
def train_text(
    output: Annotated[str, typer.Option(help="Folder of the model.")],
    text: Annotated[
        list[str] | None, typer.Option(help="File or folder; may be repeated. Else Python's own source.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time of training, on one core.")] = 10.0,
    steps: Annotated[int | None, typer.Option(help="Steps of training, in place of minutes.")] = None,
    channels: Annotated[int, typer.Option(help="Features of a token.")] = 128,
    depth: Annotated[int, typer.Option(help="Layers.")] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    context: Annotated[int, typer.Option(help="Tokens that it reads at a time.")] = 256,
    vocabulary: Annotated[int, typer.Option(help="Tokens of its tokeniser.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
) -> None:
    """Train a small text generator, such as on Python's own source; a killed run goes on when repeated."""
    from manyhead.text.commands import run_train
    from manyhead.text.model import TextModel

    sizes = TextModel(channels, depth, heads, context)
    run_train(output, text or [], minutes, steps, sizes, vocabulary, seed)


@app.command("generate")
def generate(
    model: Annotated[str, typer.Option(help="Folder of a model that train-text made.")],
    prompt: Annotated[str, typer.Option(help="Beginning of the text; '-' reads it from standard input.")],
    tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0 takes the likeliest.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Among the fewest that reach p together.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; another text each time if left out.")] = None,
) -> None:
    """Write on from a prompt, streaming."""
    from manyhead.text.commands import run_generate

    run_generate(model, prompt, tokens, temperature, top_k, top_p, seed)


bench_app = typer.Typer(help="Measure what parts of the library cost on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@bench_app.command("attention")
def bench_attention(
    pattern: Annotated[
        list[str] | None, typer.Option(help="Such as 'Window(7) & Causal((True, False))'; may be repeated.")
    ] = None,
    grid: Annotated[str, typer.Option(help="Sizes of the token grid.")] = "32x32",
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    dim: Annotated[int, typer.Option(help="Channels of a head.")] = 32,
    batch: Annotated[int, typer.Option(help="Samples.")] = 1,
    kernels: Annotated[str, typer.Option(help="Names separated by commas, or 'all'.")] = "all",
    backward: Annotated[bool, typer.Option(help="Whether to time the backward pass too.")] = True,
    repeats: Annotated[int, typer.Option(help="Runs of which the median is taken.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    output: Annotated[str | None, typer.Option(help="Folder for attention.json and a plot.")] = None,
) -> None:
    """Time, memory, pairs and operations of kernels under patterns, beside the plan."""
    from manyhead.kernels.bench import run_bench

    run_bench(
        grid,
        pattern or ["Window(7)"],
        kernels,
        heads=heads,
        head_dim=dim,
        batch=batch,
        backward=backward,
        repeats=repeats,
        as_json=as_json,
        output=output,
    )


@bench_app.command("cab")
def bench_cab(
    tasks: Annotated[str, typer.Option(help="text, forecast, reverse, masked.")] = (
        "text,forecast,reverse,masked"
    ),
    mixers: Annotated[str, typer.Option(help="Names separated by commas, or 'all'.")] = "all",
    mixer: Annotated[list[str] | None, typer.Option(help="Your own, package.Class; may be repeated.")] = None,
    budget: Annotated[str, typer.Option(help="tiny, small, medium or large.")] = "small",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    output: Annotated[str, typer.Option(help="Folder of the run; one that is there is continued.")] = "cab",
    text: Annotated[str | None, typer.Option(help="Your own text, in place of Python's source.")] = None,
    series: Annotated[
        str | None, typer.Option(help="Your own series, CSV or Parquet, in place of stock prices.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Channels, in place of the budget's.")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads, in place of the budget's.")] = None,
    length: Annotated[int | None, typer.Option(help="Characters, in place of the budget's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of training, in place of the budget's.")] = None,
    workers: Annotated[int, typer.Option(help="Local processes.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster ('local' starts one).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Which attention for which use: quality, time and memory of mixers at tasks under one budget."""
    from manyhead.cab.command import run_command

    run_command(
        tasks,
        mixers,
        mixer or [],
        budget,
        seeds,
        output,
        text=text,
        series=series,
        channels=channels,
        heads=heads,
        length=length,
        steps=steps,
        workers=workers,
        ray=ray,
        as_json=as_json,
    )


def main() -> None:
    """Run the command line: exit code 2 and one message for bad input, no traceback."""
    sys.path.insert(0, "")  # a user's own module:function is looked up where the command is typed
    try:
        app()
    except (InputError, OSError) as error:  # OSError: a full disk, a folder in use by another run
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
