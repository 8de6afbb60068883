"""Scores of days after a run's end, by the models of its newest split, each day as if it were the last.

A score is computed from the day's own window; nothing of it depends on which days are scored beside it, so
that an update every day, one after a month and a run over the longer prices give the same bits.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.files import atomic
from manyhead.stocks import learn
from manyhead.stocks.baselines import Inputs
from manyhead.stocks.config import Config
from manyhead.stocks.evaluate import Grid
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.items import STOCKFORMER, Item, Scored, pieces_of, read_facts, table
from manyhead.stocks.labels import next_return
from manyhead.stocks.panel import Panel
from manyhead.stocks.prepare import Prepared, prepare, scaler
from manyhead.stocks.preprocess.pipeline import State
from manyhead.stocks.renames import Rename, renamed_symbols
from manyhead.stocks.scoring import moved_split
from manyhead.stocks.sectors import Sectors
from manyhead.stocks.splits import choose_splits
from manyhead.stocks.trained import by_day, load_baseline
from manyhead.work import torch_threads

LIVE = "live/scores.parquet"


class Scorer:
    """The models of a run's newest split, ready to score later days.

    Args:
        place: folder of the run.
        panel: its prices, as they go on.
        renames: changes of symbols since its end.

    Raises:
        InputError: if the run is not complete, contains leaks, or the prices lack its days or symbols.
    """

    def __init__(self, place: RunFolder, panel: Panel, renames: Sequence[Rename] = ()) -> None:
        self.place, self.panel = place, panel
        self.config: Config = place.config()
        if self.config.leaks.on():
            raise InputError(
                f"the run in {place.path} has leaks on ({', '.join(self.config.leaks.on())}): it is for"
                " comparison only and does not score new days"
            )
        self.trained_on, sectors = place.panel()
        self.ended = self.trained_on.dates[-1]
        every = pieces_of(self.config, self.trained_on)
        newest = max(item.split for item in every)
        self.items: list[Item] = [item for item in every if item.split == newest]
        missing = [item for item in self.items if not item.done(place.path)]
        if missing:
            raise InputError(
                f"the run in {place.path} is not complete: {missing[0]} is missing; "
                f"`manyhead stocks run --resume --out {place.path}` continues it"
            )
        self.split = choose_splits(self.config, self.trained_on.days)[newest]
        self.known_as = learn.load(self.main_folder, self.config)[1]
        self.symbols = renamed_symbols(self.known_as, renames, self.ended)
        gone = [symbol for symbol in self.symbols if symbol not in panel.symbols]
        if gone:
            raise InputError(f"the prices have no symbol {gone[0]!r} of the models' universe")
        self.sectors: Mapping[str, str] | None = sectors
        if sectors is not None:
            named = zip(self.symbols, self.known_as, strict=True)
            moved = {now: sectors[then] for now, then in named if then in sectors}
            self.sectors = Sectors({**sectors, **moved})

    @property
    def main_folder(self) -> Path:
        """Folder of the first Stockformer of the newest split."""
        return next(item for item in self.items if item.model == STOCKFORMER).folder(self.place.path)

    @torch_threads()
    def prepared(self, days: range) -> Prepared:
        """Compute what the models see on some decision rows of the panel, and nothing else."""
        split = moved_split(self.split, self.trained_on, self.panel)
        empty = np.zeros((len(self.symbols), self.config.model.dim), np.float32)
        return prepare(
            self.panel,
            split,
            self.config,
            self.sectors,
            symbols=self.symbols,
            nodes=empty,  # each selector has its own
            only=days,
            learnt=self._learnt(),
        )

    @torch_threads()
    def score(self, prepared: Prepared, days: NDArray[np.int64]) -> pl.DataFrame:
        """Score decision rows of the panel with every model.

        Returns:
            split, model, seed, part ('live'), date, symbol, regression, classification, choice, score: the
            columns of a run's score table but for what was earned, which is not known yet.
        """
        rows = days - (self.panel.days - prepared.panel.days)
        return pl.concat([self._of(item, prepared, rows) for item in self.items])

    def _of(self, item: Item, prepared: Prepared, rows: NDArray[np.int64]) -> pl.DataFrame:
        folder, config = item.folder(self.place.path), self.config
        if item.model == STOCKFORMER:
            selector, symbols = learn.load(folder, config)
            scored: Scored = learn.score(selector, prepared, rows, config)
        else:
            model, symbols = load_baseline(item.model, folder)
            forecast = by_day(model, Inputs(prepared.windows, prepared.panel["close"]), rows)
            scored = learn.masked(forecast, None, prepared, rows)
        if symbols != self.known_as:
            raise InputError(f"{item} was trained on other symbols than the rest of its split")
        choice = read_facts(self.place.path, item)["choice"]
        long = table(scored, "live", prepared.panel.dates, prepared.panel.symbols, prepared.windows.targets)
        return long.drop("earned").select(
            pl.lit(item.split, pl.Int32).alias("split"),
            pl.lit(item.model).alias("model"),
            pl.lit(item.seed, pl.Int32).alias("seed"),
            pl.all(),
            pl.lit(choice).alias("choice"),
            pl.col(choice).alias("score"),
        )

    def _learnt(self) -> State:
        """What the scalers learnt on the run's own training rows, computed once."""
        file = self.place.path / "live" / "scaler.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        learnt = scaler(self.trained_on, self.split, self.config, self.sectors, self.known_as)
        if learnt:
            with atomic(file) as stream:
                np.savez(stream, **learnt)  # type: ignore[arg-type]
        return learnt


def read_live(run: Path) -> pl.DataFrame | None:
    """Read the scores of the days after a run's end, None if there are none yet."""
    file = run / LIVE
    return pl.read_parquet(file) if file.exists() else None


def write_live(run: Path, scores: pl.DataFrame) -> None:
    """Write the scores of the days after a run's end, whole."""
    with atomic(run / LIVE) as stream:
        scores.sort("date", "model", "seed", "symbol").write_parquet(stream)


def with_earnings(scores: pl.DataFrame, panel: Panel) -> pl.DataFrame:
    """Add what each decision earned, as far as it is known: null where it is not."""
    grid = Grid(panel.dates, panel.symbols)
    flow = next_return(panel["close"].astype(np.float64)).astype(np.float32)
    column = pl.DataFrame({"symbol": list(grid.symbols), "column": np.arange(len(grid.symbols))})
    placed = scores.select("date", "symbol").join(column, on="symbol", how="left", maintain_order="left")
    rows = np.searchsorted(grid.dates, placed["date"].to_numpy().astype("datetime64[D]"))
    earned = flow[rows, placed["column"].to_numpy()].astype(np.float64)
    return scores.with_columns(pl.Series("earned", earned).fill_nan(None))
