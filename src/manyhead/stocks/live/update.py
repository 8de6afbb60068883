"""One day more: append new prices to a finished run, score the new days, say what to trade.

Every step writes its file whole and does nothing where its result is there, in this order: revisions,
prices, scores, model card, orders. A kill between two of them loses nothing; the next update goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.files import write_text
from manyhead.stocks.config import Config
from manyhead.stocks.evaluate import Grid, ensemble, models_of
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.holding import MAIN, exchange_of, strategy_of
from manyhead.stocks.items import STOCKFORMER, pieces_of, read_scores
from manyhead.stocks.live.card import CARD, Card, write_card
from manyhead.stocks.live.drift import DRIFT_DAYS, input_drift, load_reference
from manyhead.stocks.live.history import History, merge, refuse
from manyhead.stocks.live.scores import Scorer, read_live, with_earnings, write_live
from manyhead.stocks.panel import Panel
from manyhead.stocks.pipeline import load_rows, panel_from
from manyhead.stocks.portfolio.orders import Orders, next_orders
from manyhead.stocks.prepare import Prepared
from manyhead.stocks.readers.rows import Rows
from manyhead.stocks.renames import Rename, read_renames, renamed_rows


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        folder: of the run.
        days: days that were scored now, none if there was nothing to do.
        scores: of the newest day: date, symbol, then one column a model, mean over its seeds of scores
            standardised within the day; best first by the first model.
        orders: what to trade, None without holdings.
        orders_file: where the orders were written.
        card: the model card, with its alarms.
        notes: what a reader must know, in sentences.
    """

    folder: Path
    days: list[date]
    scores: pl.DataFrame
    orders: Orders | None
    orders_file: Path | None
    card: Card
    notes: tuple[str, ...]

    @property
    def alarms(self) -> list[str]:
        """Sentences that say what has drifted."""
        return self.card.alarms


def update(
    folder: str | Path,
    prices: Any = None,
    *,
    holdings: str | Path | pl.DataFrame | None = None,
    orders: str | Path | None = None,
    book: str = MAIN,
    model: str = STOCKFORMER,
    cash: float | None = None,
    renames: str | Path | None = None,
    accept_revisions: bool = False,
    client: Any = None,
) -> Update:
    """Append new prices to a run, score the new days, and write orders.

    Args:
        folder: a complete run without leaks.
        prices: anything that `read_prices` takes; rows that the run has already may be repeated. None scores
            nothing new and writes card and orders again.
        holdings: what is held now, see `portfolio.read_holdings`; orders are written if it is given.
        orders: CSV file for them; `live/orders-DATE.csv` in the run's folder if left out.
        book: which of the run's books the orders lead to.
        model: whose scores.
        cash: money in the account, where the holdings do not say.
        renames: a file of old, new, date: changes of symbols since the run; kept for later updates.
        accept_revisions: take over prices that differ from those that the run has. Scores of earlier days
            stay as they were decided; the newest day is scored again unless a newer one comes with them.
        client: stands in for the yfinance package.

    Raises:
        InputError: if the past was revised, the prices lack a column or a symbol of the models, or an
            argument cannot be used.
        OSError: if another update of this run is under way.
    """
    place = RunFolder(Path(folder))
    config = place.config()
    with _alone(place.path):
        history = History(place.path, place.rows().frame)
        changes = _renames(place, renames)
        notes: list[str] = []
        if prices is not None:
            # of a fetched history a week is enough to see whether it was revised; to take it over, all of it
            recent = isinstance(prices, str) and prices.startswith("yfinance:") and not accept_revisions
            since = str(history.last - timedelta(days=7)) if recent else None
            notes = _append(
                history, config, load_rows(config, prices, since=since, client=client), accept_revisions
            )
        panel = panel_from(Rows(history.rows), config, changes)
        scorer = Scorer(place, panel, changes)
        if not history.revised:
            _same_past(scorer.trained_on, panel, scorer)
        scored, prepared = _score(place, scorer)
        every = _all_scores(place, scorer, read_live(place.path), changes)
        notes += _absent(scorer, panel)
        known = load_reference(scorer.main_folder)
        inputs = None if known is None else input_drift(known, prepared, range(0, prepared.panel.days))
        earlier = place.read_json(CARD) if (place.path / CARD).exists() else None
        card = write_card(
            place, config, scorer.trained_on, scorer.split, scorer.symbols, every, inputs, earlier
        )
    table = _today(every, panel, config)
    made, file = None, None
    if holdings is not None:
        made = _orders(every, panel, scorer, holdings, book, model, cash)
        file = Path(orders) if orders is not None else place.path / "live" / f"orders-{panel.dates[-1]}.csv"
        made.save(file)
        notes += [warning for warning in made.warnings if warning not in panel.warnings]
    return Update(place.path, scored, table, made, file, card, tuple(notes))


def _append(history: History, config: Config, given: Rows, accept: bool) -> list[str]:
    """Add new rows to the kept prices; refuse a revised past unless it is accepted."""
    merged = merge(history.rows, given, config.data.start)
    if merged.revisions and not accept:
        refuse(merged.revisions)
    notes = merged.notes
    if merged.revisions:
        live = read_live(history.run)
        if live is not None and not merged.days:  # the decision that is not traded yet is taken again
            write_live(history.run, live.filter(pl.col("date") < history.last))
        history.note_revisions(merged.revisions)
        notes.append(
            f"the past was revised in {len(merged.revisions)} cells, as accepted: {merged.revisions[0]}"
            f"{' ...' if len(merged.revisions) > 1 else ''}; recorded in live/revisions.parquet"
        )
    if merged.changed.height:
        history.keep(merged.changed)
    return notes


def _renames(place: RunFolder, file: str | Path | None) -> list[Rename]:
    """Changes of symbols since the run, those given now kept for later updates."""
    kept = place.path / "live" / "renames.csv"
    known = set(read_renames(kept)) if kept.exists() else set()
    together = known | (set(read_renames(file)) if file is not None else set())
    if together != known:
        lines = [f"{change.old},{change.new},{change.day}" for change in sorted(together)]
        write_text(kept, "\n".join(["old,new,date", *lines]) + "\n")
    return sorted(together)


def _same_past(before: Panel, now: Panel, scorer: Scorer) -> None:
    """Refuse checked prices of the run's days that are others than when the models were trained.

    The rows are the same; a file of splits, dividends or renames that they are adjusted by may not be.
    """
    if now.days < before.days or (now.dates[: before.days] != before.dates).any():
        raise InputError("the run's days are not the first days of the prices as they are adjusted now")
    column = {symbol: place for place, symbol in enumerate(now.symbols)}
    for symbol, then in zip(scorer.symbols, scorer.known_as, strict=True):
        old_column = before.symbols.index(then)
        for field, values in before.fields.items():
            old, new = values[:, old_column], now[field][: before.days, column[symbol]]
            differ = np.flatnonzero(~((old == new) | (np.isnan(old) & np.isnan(new))))
            if len(differ):
                row = int(differ[0])
                raise InputError(
                    f"{field} of {symbol} on {before.dates[row]} was {old[row]:.10g} when the models were"
                    f" trained and is {new[row]:.10g} after adjustment now: a file of splits, dividends or"
                    " renames has changed its past"
                )


def _score(place: RunFolder, scorer: Scorer) -> tuple[list[date], Prepared]:
    """Score the days that have no scores yet, and append them to the table.

    Returns:
        these days, and what the models saw on them and on the last `DRIFT_DAYS`.
    """
    live, panel = read_live(place.path), scorer.panel
    done = set() if live is None else set(live["date"])
    later = np.flatnonzero(panel.dates > scorer.ended)
    rows: NDArray[np.int64] = np.array(
        [row for row in later if panel.dates[row].item() not in done], np.int64
    )
    first = panel.days - DRIFT_DAYS
    prepared = scorer.prepared(range(min(first, int(rows[0])) if len(rows) else first, panel.days))
    if not len(rows):
        return [], prepared
    fresh = scorer.score(prepared, rows)
    write_live(place.path, fresh if live is None else pl.concat([live, fresh]))
    return [panel.dates[row].item() for row in rows], prepared


def _all_scores(
    place: RunFolder, scorer: Scorer, live: pl.DataFrame | None, changes: list[Rename]
) -> pl.DataFrame:
    """Scores of the run and of the days since, with what they earned, under today's symbols."""
    run = read_scores(place.path, pieces_of(scorer.config, scorer.trained_on)).drop("earned")
    together = run if live is None else pl.concat([run, live.select(run.columns)])
    return with_earnings(renamed_rows(together, changes), scorer.panel)


def decided(scores: pl.DataFrame) -> pl.DataFrame:
    """Keep what was decided out of sample, the run's test days and the days since, as one part 'test'."""
    return scores.filter(pl.col("part") != "validation").with_columns(pl.lit("test").alias("part"))


def _today(scores: pl.DataFrame, panel: Panel, config: Config) -> pl.DataFrame:
    grid = Grid(panel.dates[-1:], panel.symbols)
    own = decided(scores).filter(pl.col("date") == panel.dates[-1].item())
    models = [name for name in (STOCKFORMER, *config.baselines.names) if (own["model"] == name).any()]
    columns = {name: ensemble(own, name, grid)[0] for name in models}
    table = pl.DataFrame({"symbol": list(panel.symbols), **columns}).fill_nan(None)
    table = table.filter(pl.any_horizontal(pl.col(models).is_not_null())) if models else table.head(0)
    dated = table.select(pl.lit(panel.dates[-1].item()).alias("date"), pl.all())
    return dated.sort(models[0], "symbol", descending=[True, False], nulls_last=True) if models else dated


def _orders(
    scores: pl.DataFrame,
    panel: Panel,
    scorer: Scorer,
    holdings: str | Path | pl.DataFrame,
    book: str,
    model: str,
    cash: float | None,
) -> Orders:
    own = decided(scores)
    if not (own["model"] == model).any():
        raise InputError(f"model: there is no {model!r} in this run; it has {', '.join(models_of(own))}")
    config = scorer.config
    return next_orders(
        holdings,
        panel,
        ensemble(own, model, Grid(panel.dates, panel.symbols)),
        strategy_of(config, len(scorer.symbols), book, scorer.sectors),
        exchange_of(config, book),
        cash=cash,
    )


def _absent(scorer: Scorer, panel: Panel) -> list[str]:
    """Say which names of the universe have no price on the newest day."""
    close = panel.select(scorer.symbols)["close"]
    gone = [symbol for symbol, price in zip(scorer.symbols, close[-1], strict=True) if np.isnan(price)]
    if not gone:
        return []
    long = [symbol for symbol in gone if np.isnan(close[-20:, scorer.symbols.index(symbol)]).all()]
    shown = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
    said = f"{len(gone)} of {len(scorer.symbols)} symbols have no price on {panel.dates[-1]}: {shown}"
    if long:
        said += f"; {len(long)} of them for 20 days or more (delisted, or renamed: see --renames)"
    return [said]


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the run's lock: two updates at once would each write half of the truth."""
    folder = run / "live"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a", encoding="utf-8") as stream:
        try:
            import fcntl
        except ImportError:  # Windows: no such lock, the writes stay atomic
            yield
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(error.errno, f"another update of {run} is under way") from error
        yield
