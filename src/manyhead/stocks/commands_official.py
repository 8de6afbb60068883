"""`manyhead stocks import-official`: the published weights as a model that scores any panel."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhead.errors import InputError
from manyhead.stocks.options import End, Start, count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def import_official_command(
    file: Annotated[Path, typer.Argument(help="The released checkpoint, or what this command wrote.")],
    model: Annotated[
        Path | None, typer.Option(help="Where to keep the weights: FILE.safetensors if left out.")
    ] = None,
    prices: Annotated[str | None, typer.Option(help="Prices to score, as for `run`.")] = None,
    start: Start = None,
    end: End = None,
    universe: Annotated[str, typer.Option(help="How many of the most traded symbols, or 'all'.")] = "all",
    days: Annotated[int, typer.Option(help="How many of the newest days to score.")] = 60,
    nodes: Annotated[
        Path | None, typer.Option(help="Node vectors (N, dim) as .npy, symbols in order of the prices.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV or Parquet for the scores; printed if left out.")
    ] = None,
) -> None:
    """Read the published Stockformer weights, keep them as safetensors, and score prices with them."""
    from manyhead.stocks.config import build
    from manyhead.stocks.pipeline import load_panel
    from manyhead.stocks.published import read_published, save_published
    from manyhead.stocks.published_scores import score_published
    from manyhead.stocks.tables import print_table, write_table

    if prices is None and (out is not None or nodes is not None):
        raise InputError("--out and --nodes need --prices, which prices to score")
    published = read_published(file)
    facts = published.facts()
    sizes = facts["sizes"]
    typer.echo(
        f"{facts['parameters']:,} parameters: {sizes['features']} inputs, width {sizes['dim']}, "
        f"{sizes['layers']} layers, {sizes['input_days']} days in, {sizes['output_days']} out"
    )
    if "LABEL0" in published.factors:
        typer.echo("LABEL0, the label, is one of its inputs: at a decision, a second copy of known returns")
    if published.untrained:
        names = published.untrained
        typer.echo(f"{len(names)} inputs were never trained and are fed zeros: {names[0]} to {names[-1]}")
    target = file.with_suffix(".safetensors") if model is None else model
    if target != file:
        save_published(published, target)
        typer.echo(f"weights in {target}")
    if prices is None:
        return
    panel, _ = load_panel(build({"data": {"prices": prices, "start": start, "end": end}}))
    vectors = None if nodes is None else _vectors(nodes)
    chosen = count("--universe", universe)
    assert chosen is not None
    table = score_published(published, panel, days=days, universe=chosen, nodes=vectors)
    if out is None:
        print_table(table.filter(table["date"] == table["date"].max()).head(40), "newest day, best first")
    else:
        write_table(table, out)
        typer.echo(f"{table.height} scores of {table['date'].n_unique()} days in {out}")


def _vectors(path: Path) -> "NDArray[np.float32]":
    import numpy as np

    try:
        vectors: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        raise InputError(f"--nodes {path} is no .npy array: {fault}") from None
    return vectors
