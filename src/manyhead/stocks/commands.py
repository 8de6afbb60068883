"""`manyhead stocks`: from prices to a report, each command a thin layer over the library."""

from pathlib import Path
from typing import Annotated

import typer

from manyhead.errors import InputError
from manyhead.stocks.commands_daily import backtest_command, update_command
from manyhead.stocks.commands_official import import_official_command
from manyhead.stocks.options import Out, Ray, Resume, Settings, Workers, configured, folder

app = typer.Typer(
    help="Daily prices in, an honest walk-forward stock-selection result out.", no_args_is_help=True
)


@app.command("run")
@configured()
def run_command(
    wanted: Settings,
    out: Out = None,
    workers: Workers = None,
    ray: Ray = None,
    resume: Resume = False,
    against: Annotated[Path | None, typer.Option(help="Another run to compare with in the report.")] = None,
    canary: Annotated[
        bool, typer.Option("--canary", help="Send the leak canary through every split; see the report.")
    ] = False,
    placebo: Annotated[
        int, typer.Option(help="Runs on labels permuted within each day, for the report.")
    ] = 0,
) -> None:
    """Run everything: models and baselines over rolling splits, portfolio after costs, report."""
    from manyhead.stocks.folder import RunFolder
    from manyhead.stocks.pipeline import run
    from manyhead.stocks.result import collect
    from manyhead.stocks.summary import summarise
    from manyhead.work import cores

    if resume and out is None:
        raise InputError("--resume needs --out, the folder of the run to continue")
    chosen = RunFolder(out).config() if resume and out is not None and not wanted.given else wanted.config()
    other = None if against is None else collect(against)
    result = run(
        chosen,
        folder(out),
        resume=resume,
        workers=workers or cores(),
        ray=ray,
        against=other,
        canary=canary,
        placebo=placebo,
    )
    typer.echo(summarise(result))


@app.command("train")
@configured(splits="1")
def train_command(wanted: Settings, out: Out = None, workers: Workers = None, resume: Resume = False) -> None:
    """Train Stockformer alone, on the newest split unless --splits says otherwise."""
    from manyhead.stocks.pipeline import run
    from manyhead.stocks.summary import summarise
    from manyhead.work import cores

    place = folder(out)
    chosen = wanted.config(baselines={"names": []})
    typer.echo(summarise(run(chosen, place, resume=resume, workers=workers or cores())))
    typer.echo(f"score the newest day: manyhead stocks predict --run {place}")


@app.command("predict")
def predict_command(
    run: Annotated[Path, typer.Option(help="Folder of a run.")],
    prices: Annotated[str | None, typer.Option(help="Newer prices; the run's own if left out.")] = None,
    days: Annotated[int, typer.Option(help="How many of the newest days to score.")] = 1,
    out: Annotated[Path | None, typer.Option(help="CSV or Parquet file; printed if left out.")] = None,
) -> None:
    """Score the newest day with the models of a run."""
    from manyhead.stocks.scoring import predict
    from manyhead.stocks.tables import print_table, write_table

    table = predict(run, prices, days)
    if out is None:
        print_table(table.head(40), f"{table.height} scores, best first")
    else:
        write_table(table, out)
        typer.echo(f"{table.height} scores in {out}")


@app.command("factors")
@configured("preset", "splits", "seeds", "epochs", universe="all")
def factors_command(
    wanted: Settings,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    clean: Annotated[
        bool, typer.Option("--clean", help="Clean, neutralise and scale, as models see them.")
    ] = False,
) -> None:
    """Compute factors for every day and symbol, and say which are dead or exploding."""
    from manyhead.stocks.tables import write_factors

    for line in write_factors(wanted.config(), out, clean):
        typer.echo(line)


app.command("backtest")(backtest_command)
app.command("update")(update_command)
app.command("import-official")(import_official_command)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    against: Annotated[Path | None, typer.Option(help="Another run to compare with.")] = None,
) -> None:
    """Compute every number of a finished run again and write its report."""
    from manyhead.stocks.pipeline import write_results
    from manyhead.stocks.result import collect
    from manyhead.stocks.summary import summarise

    result = collect(run)
    write_results(result, None if against is None else collect(against))
    typer.echo(summarise(result))


@app.command("demo")
def demo_command(out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("demo")) -> None:
    """Run the flagship on prices that ship with a dependency (skfolio's S&P 500 set): a few minutes."""
    import shutil

    from manyhead.stocks.config import build
    from manyhead.stocks.pipeline import run
    from manyhead.stocks.summary import summarise
    from manyhead.work import cores

    if (out / "config.toml").exists():
        shutil.rmtree(out)  # the demo's own folder: it always starts afresh
    chosen = build(
        {
            "data": {"prices": "skfolio", "start": "2017-01-01"},
            "universe": {"count": "all"},
            "portfolio": {"topk": 5, "n_drop": 1},
            "baselines": {"trials": 2},
        }
    )
    typer.echo(summarise(run(chosen, out, workers=cores())))


@app.command("leaks")
@configured("preset")
def leaks_command(
    wanted: Settings,
    out: Out = None,
    workers: Workers = None,
    ray: Ray = None,
    resume: Resume = False,
) -> None:
    """Price each fault of the released pipeline on these prices: what it adds to IC, return, Sharpe."""
    from rich.console import Console
    from rich.table import Table

    from manyhead.stocks.leaks import HEADINGS, leak_rows, price_leaks
    from manyhead.work import cores

    place = folder(out)
    table = Table(*HEADINGS, title="what each fault adds [95 % interval over seeds]")
    for row in leak_rows(
        price_leaks(wanted.config(), place, resume=resume, workers=workers or cores(), ray=ray)
    ):
        table.add_row(*row)
    Console().print(table)
    typer.echo(f"page: {place / 'leaks.html'}")


@app.command("canary")
@configured("splits", "seeds", "epochs")
def canary_command(
    wanted: Settings,
    factor: Annotated[
        str | None, typer.Option(help="Check your own factor, module:function, instead of the pipeline.")
    ] = None,
    no_training: Annotated[
        bool, typer.Option("--no-training", help="End at the model's inputs; seconds instead of minutes.")
    ] = False,
) -> None:
    """Replace everything after a decision: does any stage notice? Exit code 1 if one does."""
    from manyhead.stocks.canary import check_functions, check_pipeline
    from manyhead.stocks.pipeline import load_panel
    from manyhead.stocks.splits import choose_splits

    chosen = wanted.config()
    panel, groups = load_panel(chosen)
    if factor is not None:
        rows = [panel.days // 4, panel.days // 2, panel.days - 10]
        leaks = check_functions([factor], panel, rows)
    else:
        split = max(choose_splits(chosen, panel.days).items())[1]
        leaks = check_pipeline(panel, split, chosen, groups, train=not no_training)
    for leak in leaks:
        typer.echo(str(leak))
    if leaks:
        typer.echo(f"the future is read: first noticed in {leaks[0].stage}")
        raise typer.Exit(1)
    typer.echo("no look-ahead found: nothing that a decision may use changed by one bit")


@app.command("placebo")
@configured("preset", "splits", "seeds", "epochs")
def placebo_command(
    wanted: Settings,
    model: Annotated[str, typer.Option(help="Baseline to run.")] = "ridge",
    runs: Annotated[int, typer.Option(help="How many permutations of the labels.")] = 200,
) -> None:
    """Run a baseline on labels dealt out anew within each day: what no skill looks like here."""
    from manyhead.stocks.pipeline import load_panel
    from manyhead.stocks.placebo import placebo
    from manyhead.stocks.splits import choose_splits

    chosen = wanted.config()
    panel, groups = load_panel(chosen)
    split = max(choose_splits(chosen, panel.days).items())[1]
    found = placebo(panel, split, chosen, groups, model=model, runs=runs)
    typer.echo(
        f"{runs} placebo runs of {model}: mean IC {found.mean:+.5f} (standard error {found.error:.5f}), "
        f"spread of one run {found.ic.std(ddof=1):.4f}"
    )
    typer.echo(f"p-values uniform? Kolmogorov-Smirnov p = {found.uniformity:.3f}")
