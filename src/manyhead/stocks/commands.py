"""`manyhead stocks`: from prices to a report, each command a thin layer over the library."""

from pathlib import Path
from typing import Annotated, Any

import typer

from manyhead.errors import InputError

app = typer.Typer(
    help="Daily prices in, an honest walk-forward stock-selection result out.", no_args_is_help=True
)

Prices = Annotated[
    str | None,
    typer.Option(help="CSV, Parquet, folder of CSVs, Qlib folder, 'skfolio', or 'yfinance:AAPL,MSFT'."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML configuration.")]
Preset = Annotated[str | None, typer.Option(help="fast, paper, or official_leaky (for comparison only).")]
Start = Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD.")]
End = Annotated[str | None, typer.Option(help="Last day, YYYY-MM-DD.")]
Sectors = Annotated[str | None, typer.Option(help="CSV with a sector for each symbol.")]
Universe = Annotated[str | None, typer.Option(help="How many of the most traded symbols, or 'all'.")]
Splits = Annotated[str | None, typer.Option(help="How many of the newest rolling splits, or 'all'.")]
Seeds = Annotated[str | None, typer.Option(help="How many seeds ('2': seeds 0 and 1), or a list ('0,5').")]
Epochs = Annotated[int | None, typer.Option(help="Most epochs of training.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, such as --set model.dim=64; may come again."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run.")]
Workers = Annotated[int | None, typer.Option(help="Local processes; as many as there are cores if left out.")]
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster ('local' starts one).")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]


def settings(
    config: Path | None,
    preset: str | None,
    prices: str | None,
    start: str | None,
    end: str | None,
    sectors: str | None,
    universe: str | None,
    splits: str | None,
    seeds: str | None,
    epochs: int | None,
    others: list[str] | None,
) -> Any:
    """Lay command-line options over a configuration file over a preset."""
    from manyhead.stocks.config import build, read_toml

    options: dict[str, dict[str, Any]] = {}

    def put(section: str, key: str, value: Any) -> None:
        if value is not None:
            options.setdefault(section, {})[key] = value

    for key, value in {"prices": prices, "start": start, "end": end, "sectors": sectors}.items():
        put("data", key, value)
    put("universe", "count", _count("--universe", universe))
    put("splits", "count", _count("--splits", splits))
    put("training", "epochs", epochs)
    put("training", "seeds", _seeds(seeds))
    for assignment in others or []:
        path, separator, value = assignment.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (separator and dot):
            raise InputError(f"--set takes SECTION.KEY=VALUE, such as model.dim=64; got {assignment!r}")
        put(section, key, _value(value.strip()))
    return build(read_toml(config) if config else {}, options, preset=preset)


def _count(option: str, text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{option} takes a whole number above zero or 'all', got {text!r}")
    return int(text)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    from manyhead.demonstration import parse_seeds

    if "," in text:
        return tuple(parse_seeds(text))
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--seeds takes a number of seeds or a list such as 0,1,2; got {text!r}")
    return tuple(range(int(text)))


def _value(text: str) -> Any:
    """Read a value as TOML does; what is no TOML value is taken as text."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _folder(out: Path | None) -> Path:
    from datetime import datetime

    return out or Path("runs") / datetime.now().strftime("stocks-%Y%m%d-%H%M%S")


@app.command("run")
def run_command(
    prices: Prices = None,
    config: ConfigFile = None,
    preset: Preset = None,
    start: Start = None,
    end: End = None,
    sectors: Sectors = None,
    universe: Universe = None,
    splits: Splits = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    others: Set = None,
    out: Out = None,
    workers: Workers = None,
    ray: Ray = None,
    resume: Resume = False,
    against: Annotated[Path | None, typer.Option(help="Another run to compare with in the report.")] = None,
) -> None:
    """Run everything: models and baselines over rolling splits, portfolio after costs, report."""
    from manyhead.stocks.folder import RunFolder
    from manyhead.stocks.pipeline import run
    from manyhead.stocks.result import collect
    from manyhead.stocks.summary import summarise
    from manyhead.work import cores

    if resume and out is None:
        raise InputError("--resume needs --out, the folder of the run to continue")
    given = (config, preset, prices, start, end, sectors, universe, splits, seeds, epochs, others)
    if resume and out is not None and not any(given):
        chosen = RunFolder(out).config()
    else:
        chosen = settings(*given)
    other = None if against is None else collect(against)
    result = run(chosen, _folder(out), resume=resume, workers=workers or cores(), ray=ray, against=other)
    typer.echo(summarise(result))


@app.command("train")
def train_command(
    prices: Prices = None,
    config: ConfigFile = None,
    preset: Preset = None,
    start: Start = None,
    end: End = None,
    sectors: Sectors = None,
    universe: Universe = None,
    splits: Splits = "1",
    seeds: Seeds = None,
    epochs: Epochs = None,
    others: Set = None,
    out: Out = None,
    workers: Workers = None,
    resume: Resume = False,
) -> None:
    """Train Stockformer alone, on the newest split unless --splits says otherwise."""
    from manyhead.stocks.config import build
    from manyhead.stocks.pipeline import run
    from manyhead.stocks.summary import summarise
    from manyhead.work import cores

    chosen = settings(config, preset, prices, start, end, sectors, universe, splits, seeds, epochs, others)
    chosen = build(chosen.model_dump() | {"baselines": {"names": []}})
    folder = _folder(out)
    result = run(chosen, folder, resume=resume, workers=workers or cores())
    typer.echo(summarise(result))
    typer.echo(f"score the newest day: manyhead stocks predict --run {folder}")


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
def factors_command(
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    prices: Prices = None,
    config: ConfigFile = None,
    start: Start = None,
    end: End = None,
    sectors: Sectors = None,
    universe: Universe = "all",
    others: Set = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Clean, neutralise and scale, as models see them.")
    ] = False,
) -> None:
    """Compute factors for every day and symbol, and say which are dead or exploding."""
    from manyhead.stocks.tables import write_factors

    chosen = settings(config, None, prices, start, end, sectors, universe, None, None, None, others)
    for line in write_factors(chosen, out, clean):
        typer.echo(line)


@app.command("backtest")
def backtest_command(
    scores: Annotated[Path, typer.Option(help="CSV or Parquet with columns date, symbol, score.")],
    prices: Annotated[str, typer.Option(help="Prices, as for `run`.")],
    topk: Annotated[int, typer.Option(help="Names to hold.")] = 10,
    n_drop: Annotated[int, typer.Option(help="Names to exchange on a day at most.")] = 2,
    market: Annotated[str, typer.Option(help="Costs, lots and limits: us, cn or free.")] = "us",
    account: Annotated[float, typer.Option(help="Money at the start.")] = 1e8,
    lag: Annotated[int, typer.Option(help="Days from a score to its trade.")] = 1,
    start: Start = None,
    end: End = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report, positions and orders.")] = None,
) -> None:
    """Trade any score table with TopK-Dropout, after costs."""
    from manyhead.stocks.portfolio import TopkDropout, backtest_files
    from manyhead.stocks.tables import backtest_summary

    result = backtest_files(
        scores,
        prices,
        TopkDropout(topk=topk, n_drop=n_drop),
        market,
        out=out,
        account=account,
        lag=lag,
        start=start,
        end=end,
    )
    typer.echo(backtest_summary(result))
    if out is not None:
        typer.echo(f"report, positions and orders: {out}")


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
def leaks_command(
    prices: Prices = None,
    config: ConfigFile = None,
    start: Start = None,
    end: End = None,
    sectors: Sectors = None,
    universe: Universe = None,
    splits: Splits = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    others: Set = None,
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

    chosen = settings(config, None, prices, start, end, sectors, universe, splits, seeds, epochs, others)
    folder = _folder(out)
    table = Table(*HEADINGS, title="what each fault adds [95 % interval over seeds]")
    for row in leak_rows(price_leaks(chosen, folder, resume=resume, workers=workers or cores(), ray=ray)):
        table.add_row(*row)
    Console().print(table)
    typer.echo(f"page: {folder / 'leaks.html'}")


@app.command("canary")
def canary_command(
    prices: Prices = None,
    config: ConfigFile = None,
    preset: Preset = None,
    start: Start = None,
    end: End = None,
    sectors: Sectors = None,
    universe: Universe = None,
    others: Set = None,
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

    chosen = settings(config, preset, prices, start, end, sectors, universe, None, None, None, others)
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
def placebo_command(
    prices: Prices = None,
    config: ConfigFile = None,
    start: Start = None,
    end: End = None,
    sectors: Sectors = None,
    universe: Universe = None,
    others: Set = None,
    model: Annotated[str, typer.Option(help="Baseline to run.")] = "ridge",
    runs: Annotated[int, typer.Option(help="How many permutations of the labels.")] = 200,
) -> None:
    """Run a baseline on labels dealt out anew within each day: what no skill looks like here."""
    from manyhead.stocks.pipeline import load_panel
    from manyhead.stocks.placebo import placebo
    from manyhead.stocks.splits import choose_splits

    chosen = settings(config, None, prices, start, end, sectors, universe, None, None, None, others)
    panel, groups = load_panel(chosen)
    split = max(choose_splits(chosen, panel.days).items())[1]
    found = placebo(panel, split, chosen, groups, model=model, runs=runs)
    typer.echo(
        f"{runs} placebo runs of {model}: mean IC {found.mean:+.5f} (standard error {found.error:.5f}), "
        f"spread of one run {found.ic.std(ddof=1):.4f}"
    )
    typer.echo(f"p-values uniform? Kolmogorov-Smirnov p = {found.uniformity:.3f}")
