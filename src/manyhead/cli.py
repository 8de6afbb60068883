"""The `manyhead` command, thin: every subcommand parses its arguments and calls the library."""

import sys
from typing import Annotated

import typer

from manyhead import __version__
from manyhead.errors import InputError
from manyhead.merging.commands import app as merging

app = typer.Typer(
    name="manyhead",
    help="Models with many heads: attention heads over token grids, task heads trained together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(merging, name="merge")


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    page: Annotated[
        str | None, typer.Option(help="Folder into which SLUG.json and SLUG.md are written.")
    ] = None,
) -> None:
    """Measure a paper's claim: paper, baseline, here, interval, verdict."""
    from manyhead.demonstration import run_demo

    run_demo(slug, seeds, budget, as_json=as_json, page=page)


@app.command("data")
def list_data(
    name: Annotated[str | None, typer.Argument(help="Name of a data set; all if left out.")] = None,
) -> None:
    """List the data sets, their licenses, and which are on this machine."""
    from manyhead.data.listing import print_data

    print_data(name)


def main() -> None:
    """Run the command line: exit code 2 and one message for bad input, no traceback."""
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
