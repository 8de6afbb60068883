"""A whole stock run: prices, splits, models, scores, portfolios, report; resumable piece by piece."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.files import atomic
from manyhead.stocks import learn
from manyhead.stocks.config import Config
from manyhead.stocks.controls import check_folds, run_placebo
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.holding import MAIN
from manyhead.stocks.items import STOCKFORMER, Item, Scored, choose, pieces_of, read_facts, store, table
from manyhead.stocks.live.card import write_card
from manyhead.stocks.live.drift import input_drift, reference
from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio.ledger import Ledger, data_hash
from manyhead.stocks.prepare import Prepared, prepare, relate
from manyhead.stocks.prices import panel_of, read_rows
from manyhead.stocks.readers.rows import Rows as PriceRows
from manyhead.stocks.renames import Rename, apply_renames, read_renames
from manyhead.stocks.report import write_report
from manyhead.stocks.result import LEDGER, Result, collect, metrics
from manyhead.stocks.sectors import read_sectors
from manyhead.stocks.splits import choose_splits
from manyhead.work import run_items

Rows = NDArray[np.int64]


def run(
    config: Config,
    folder: str | Path,
    *,
    resume: bool = False,
    workers: int = 1,
    ray: str | None = None,
    progress: bool = True,
    against: Result | None = None,
    canary: bool = False,
    placebo: int = 0,
) -> Result:
    """Run the pipeline that a configuration describes.

    Args:
        config: settings, see `config.build`.
        folder: where the run is kept.
        resume: continue the run in `folder`.
        workers: local processes.
        ray: address of a Ray cluster in place of local processes.
        progress: show what is running.
        against: another run to compare with in the report.
        canary: send the leak canary through every split, see `controls`.
        placebo: runs on permuted labels for the report; 0 leaves them out.

    Raises:
        InputError: if the prices or a setting cannot be used, or `folder` holds another run.
    """
    place = RunFolder(Path(folder))
    if resume and place.has_panel:
        place.open(config, resume)
        pieces = pieces_of(config, place.panel()[0])
    else:
        rows = load_rows(config)
        panel, sectors = panel_from(rows, config), load_sectors(config)
        pieces = pieces_of(config, panel)  # what cannot be run is refused before anything is written
        place.open(config, resume)
        place.keep_rows(rows)
        place.keep_panel(panel, sectors, config.data.prices)
    left = [item for item in pieces if not item.done(place.path)]
    # a piece that reports an error stops the run; those that are done stay done
    run_items(
        partial(_work, str(place.path.resolve())),
        left,
        workers=workers,
        ray=ray,
        title="stocks run",
        progress=progress,
    )
    if canary:
        check_folds(place, workers=workers, ray=ray, progress=progress)
    if placebo:
        run_placebo(place, placebo)
    result = collect(place.path)
    enter(result, place.path.parent / LEDGER)
    write_results(result, against)
    return result


def load_panel(config: Config) -> tuple[Panel, Mapping[str, str] | None]:
    """Read the prices and sectors that a configuration names."""
    return panel_from(load_rows(config), config), load_sectors(config)


def load_rows(
    config: Config, prices: Any = None, *, since: str | None = None, client: Any = None
) -> PriceRows:
    """Read prices as their source gives them.

    Args:
        config: settings; they name the columns and the first day.
        prices: later prices of the same form, read to their end; the configuration's own if left out.
        since: first day to read of later prices; the configuration's own if left out.
        client: stands in for the yfinance package.
    """
    data = config.data
    columns = data.columns or None
    if prices is None:
        return read_rows(data.prices, start=data.start, end=data.end, columns=columns, client=client)
    return read_rows(prices, start=since or data.start, columns=columns, client=client)


def panel_from(rows: PriceRows, config: Config, renames: Sequence[Rename] = ()) -> Panel:
    """Rename, adjust and check prices as a configuration says.

    Args:
        rows: prices as their source gives them.
        config: settings of the run.
        renames: changes of symbols beside those of the configuration.
    """
    data = config.data
    listed = read_renames(data.renames) if data.renames else []
    if listed or renames:
        rows = apply_renames(rows, sorted({*listed, *renames}))
    panel = panel_of(
        rows, splits=data.splits, dividends=data.dividends, exchange=data.exchange, jumps=data.jumps
    )
    if len(panel.symbols) < 2:
        raise InputError(f"selecting stocks needs at least 2 symbols, {data.prices} has {len(panel.symbols)}")
    return panel


def load_sectors(config: Config) -> Mapping[str, str] | None:
    """Read the sectors that a configuration names, if it does."""
    data = config.data
    return read_sectors(data.sectors, column=data.sector_column) if data.sectors else None


@lru_cache(maxsize=1)
def _opened(folder: str) -> tuple[Config, Panel, Mapping[str, str] | None]:
    place = RunFolder(Path(folder))
    return place.config(), *place.panel()


@lru_cache(maxsize=2)
def _prepared(folder: str, split: int) -> Prepared:
    """One split without node vectors, which alone depend on the seed and which only Stockformer reads."""
    config, panel, sectors = _opened(folder)
    nothing = np.empty((0, config.model.dim), np.float32)
    return prepare(panel, choose_splits(config, panel.days)[split], config, sectors, nodes=nothing)


def _work(folder: str, item: Item) -> str:
    """Carry out one piece; returns a line for the display."""
    if item.done(Path(folder)):
        return "done by a worker that was lost before it could say so"
    started = time.perf_counter()
    config, *_ = _opened(folder)
    prepared = _prepared(folder, item.split)
    windows, split = prepared.windows, prepared.split
    within = config.splits.within
    validation_rows = windows.decision_rows(split.validation, within=within, labelled=True)
    test_rows = windows.decision_rows(split.test, within=within)
    history: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"symbols": len(prepared.panel.symbols), "warnings": list(prepared.warnings)}
    place = item.folder(Path(folder))
    if item.model == STOCKFORMER:
        nodes = relate(prepared.panel, windows.flow, split, config, item.seed)
        prepared = replace(prepared, nodes=nodes)
        selector, fitted = learn.train(prepared, config, item.seed, place / "training")
        validation, test = (
            learn.score(selector, prepared, rows, config) for rows in (validation_rows, test_rows)
        )
        history = fitted.history
        facts |= {"best_epoch": fitted.best_epoch, "best_value": fitted.best_value, "steps": fitted.steps}
        learn.save(selector, prepared, place)
        if item.seed == config.training.seeds[0]:
            known = reference(prepared)
            known.save(place)
            facts["input_drift"] = input_drift(known, prepared, split.test)
        learn.save_attention(selector, prepared, test_rows, place)
    else:
        validation, test, facts["tuned"] = _baseline(
            item, prepared, config, validation_rows, test_rows, place
        )
    choice, skill = choose(validation, windows.targets, config.portfolio.score)
    facts |= {"choice": choice, "validation_ic": skill}
    scores = pl.concat(
        [
            table(scored, part, prepared.panel.dates, prepared.panel.symbols, windows.targets)
            for part, scored in (("validation", validation), ("test", test))
        ]
    )
    store(Path(folder), item, scores, facts, history, started)
    learn.discard_checkpoints(place / "training")
    return f"validation IC {skill[choice]:+.3f} ({choice})"


def _baseline(
    item: Item, prepared: Prepared, config: Config, validation: Rows, test: Rows, folder: Path
) -> tuple[Scored, Scored, dict[str, Any]]:
    """Tune a baseline on validation rows, score both spans with the best trial, and keep it."""
    from manyhead.stocks.baselines import Inputs, tune
    from manyhead.stocks.trained import by_day, save_baseline

    windows, within = prepared.windows, config.splits.within
    inputs = Inputs(windows, prepared.panel["close"])
    training = windows.decision_rows(prepared.split.train, within=within, labelled=True)
    tuned = tune(item.model, inputs, training, validation, trials=config.baselines.trials, seed=item.seed)

    save_baseline(tuned.model, inputs, prepared.panel.symbols, folder)

    def scored(rows: Rows) -> Scored:
        return learn.masked(by_day(tuned.model, inputs, rows), None, prepared, rows)

    return scored(validation), scored(test), {"choice": tuned.choice, "trials": tuned.ledger}


def enter(result: Result, path: Path) -> None:
    """Enter every model of a run into the ledger of evaluations: luck is counted from it.

    A configuration that was entered before on the same data counts once.
    """
    ledger = Ledger(path)
    data = data_hash(result.panel)
    for skill in result.models:
        own = result.config.model_dump(mode="json", exclude={"data", "baselines", "books"})
        if skill.model != STOCKFORMER:
            own = {name: own[name] for name in ("universe", "splits", "factors", "portfolio", "leaks")}
        held = {MAIN: result.books} | result.held
        for name, book in ((name, of[skill.model]) for name, of in held.items() if skill.model in of):
            # another way to hold the same scores is another trial
            more = {} if name == MAIN else {"book": result.config.books[name].model_dump(mode="json")}
            returns = book.report["net_return"].to_numpy()
            spread = returns.std(ddof=1) if len(returns) > 1 else 0.0
            measures = {
                "ic": skill.ic.estimate,
                "sharpe_daily": float(returns.mean() / spread) if spread > 0 else 0.0,
            }
            finite = {measure: value for measure, value in measures.items() if np.isfinite(value)}
            settings = {"model": skill.model, "settings": own, **more}
            ledger.record(data, settings, finite, note=str(result.folder.name))


def write_results(result: Result, against: Result | None = None) -> None:
    """Write scores.parquet, skill.parquet, portfolio tables, metrics.json and report.html."""
    place = RunFolder(result.folder)
    tables: Mapping[str, pl.DataFrame] = {"scores": result.scores, "skill": result.skill} | {
        f"portfolio/{name}": book.report for name, book in result.books.items()
    }
    for name, by_model in result.held.items():
        tables = {**tables, **{f"portfolio/{name}/{model}": book.report for model, book in by_model.items()}}
    for name, content in tables.items():
        with atomic(place.path / f"{name}.parquet") as stream:
            content.write_parquet(stream)
    place.write_json("metrics.json", metrics(result))
    _write_card(place, result)
    write_report(result, against)


def _write_card(place: RunFolder, result: Result) -> None:
    """Write the model card of a run that has just ended."""
    index, split = max(result.splits.items())
    main = Item(index, STOCKFORMER, result.config.training.seeds[0])
    symbols = learn.load(main.folder(place.path), result.config)[1]
    inputs = read_facts(place.path, main).get("input_drift")
    write_card(place, result.config, result.panel, split, symbols, result.scores, inputs)
