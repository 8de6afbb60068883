"""Everything that one split's models see, in stages: universe, labels, factors, relations, windows.

Each stage reads only rows that it may: the universe, every fitted scaler and the graph see training rows. The
switches of `config.Leaks` are the released pipeline's faults; each undoes exactly one of these limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.stocks.calendar import calendar_index, running_index
from manyhead.stocks.config import Config
from manyhead.stocks.dataset import Windows
from manyhead.stocks.factors import (
    Factors,
    FactorSource,
    LaggedAlpha360,
    RollingAlpha158,
    alpha158,
    extra_factors,
    join,
    store,
    stretch,
)
from manyhead.stocks.labels import Alignment, known_within, next_return
from manyhead.stocks.panel import Panel
from manyhead.stocks.preprocess import (
    ClipOutliers,
    CrossSectionZScore,
    ExcludeOutliers,
    FillMissing,
    ForwardFill,
    InfiniteToMean,
    Neutralise,
    Pipeline,
    TrainingZScore,
    Winsorise,
    log_dollar_volume,
)
from manyhead.stocks.preprocess.pipeline import State
from manyhead.stocks.relations import node_embedding
from manyhead.stocks.splits import Split
from manyhead.stocks.universe import members, most_traded, read_membership

# rows before a split's first day: the longest look-back is 12-1 momentum's
HISTORY = 280
# factor arrays up to this size are held in memory; larger ones are computed row by row
HELD_BYTES = 2_000_000_000
# days over which a missing factor is carried forward
CARRY = 5


@dataclass(frozen=True)
class Prepared:
    """One split, ready for its models; rows count from `panel`'s first day.

    Attributes:
        panel: the universe's prices from some history before the split to its end.
        split: the split, in rows of `panel`.
        windows: inputs and targets by decision row.
        nodes: (N, dim) fixed node vectors.
        raw: factors before preprocessing, for checks.
        warnings: what a reader of the results must know.
    """

    panel: Panel
    split: Split
    windows: Windows
    nodes: NDArray[np.float32]
    raw: FactorSource
    warnings: tuple[str, ...]

    @property
    def tradable(self) -> NDArray[np.bool_]:
        """(days, N) where a symbol has a price, so that a score means something."""
        return np.isfinite(self.panel["close"])


def prepare(
    panel: Panel,
    split: Split,
    config: Config,
    sectors: Mapping[str, str] | None = None,
    seed: int = 0,
    *,
    symbols: list[str] | None = None,
    nodes: NDArray[np.float32] | None = None,
    only: range | None = None,
    learnt: State | None = None,
) -> Prepared:
    """Build one split's inputs.

    Args:
        panel: all prices; rows after `split.test_end` are not read but by a leak.
        split: rows of the panel.
        config: settings of the run.
        sectors: symbol -> sector, or None.
        seed: of the random walks.
        symbols: the universe of a model that is trained already, in its order.
        nodes: its node vectors.
        only: decision rows of the panel; factors are computed for their windows and for no other row. The
            bits of a row are the same as without it.
        learnt: what the scalers learnt when the model was trained, see `scaler`; learnt anew if left out.

    Raises:
        InputError: if the universe is empty or a setting does not fit these prices.
    """
    warnings: list[str] = []
    if symbols is None:
        symbols, warnings = choose_universe(panel, split, config)
    first = max(0, split.start - HISTORY)
    stop = min(split.test_end, panel.days)
    shown = panel.select(symbols).rows(first, stop)
    moved = Split(*(row - first for row in vars(split).values()))
    flow = next_return(shown["close"].astype(np.float64)).astype(np.float32)
    alignment = Alignment(config.model.alignment, config.model.input_days, config.model.output_days)
    held = None
    if only is not None:
        sample = alignment.window(0)
        reach = sample.decision - sample.factors.start
        held = range(max(0, only.start - first - reach), only.stop - first)
    raw = raw_factors(shown, config, lazy=only is not None)
    factors = standardise(raw, shown, moved, config, sectors, held=held, learnt=learnt)
    if config.leaks.label_as_factor:
        label = np.nan_to_num(flow, nan=0.0)[..., None]
        factors = join([factors, Factors(("LABEL0",), label)])
    if nodes is None:
        nodes = relate(shown, flow, moved, config, seed)
    model = config.model
    time, ahead = _time_index(shown, model.output_days, config)
    placebo = config.training.placebo
    labels = None if placebo is None else permuted(flow, placebo)
    return Prepared(
        shown,
        moved,
        Windows(flow, factors, time, alignment, labels, ahead),
        nodes,
        raw,
        (*shown.warnings, *warnings),
    )


def choose_universe(panel: Panel, split: Split, config: Config) -> tuple[list[str], list[str]]:
    """Choose the symbols of a split from rows before the end of its training span."""
    known = panel.days if config.leaks.universe_all_dates else split.train_end
    rule = config.universe
    warnings: list[str] = []
    if config.data.membership:
        belonging, warnings = members(panel, read_membership(config.data.membership), before=known)
        panel = panel.select(belonging)
    count = len(panel.symbols) if rule.count == "all" else rule.count
    chosen, more = most_traded(panel, count, before=known, window=rule.window, presence=rule.presence)
    return chosen, [*warnings, *more]


def raw_factors(panel: Panel, config: Config, lazy: bool = False) -> FactorSource:
    """Give the factor sets that the configuration names, side by side; lazily: computed row by row."""
    wanted = config.factors
    sources: list[FactorSource] = []
    if "alpha360" in wanted.sets:
        sources.append(LaggedAlpha360(panel, lags=wanted.lags))
    if "alpha158" in wanted.sets:
        sources.append(RollingAlpha158(panel) if lazy else alpha158(panel))
    if config.data.factor_functions:
        sources.append(extra_factors(panel, list(config.data.factor_functions)))
    return join(sources)


def standardise(
    raw: FactorSource,
    panel: Panel,
    split: Split,
    config: Config,
    sectors: Mapping[str, str] | None,
    *,
    held: range | None = None,
    learnt: State | None = None,
) -> FactorSource:
    """Clean, neutralise and scale factors; whatever is fitted is fitted on training rows.

    Args:
        raw: factors of the panel.
        panel: prices.
        split: rows of the panel.
        config: settings of the run.
        sectors: symbol -> sector, or None.
        held: rows to compute, and no others; all if left out.
        learnt: what the scalers learnt before; learnt here if left out.
    """
    steps = cleaning(panel, config, sectors)
    if learnt is None:
        fitted = steps.fit(raw, range(0, panel.days) if config.leaks.scaler_all_dates else split.train)
    else:
        fitted = steps.restore(learnt)
    clean = fitted.apply(raw)
    if held is not None:
        return stretch(clean, held)
    size = 4 * panel.days * len(panel.symbols) * len(raw.names)
    return store(clean) if size <= HELD_BYTES else clean


def cleaning(panel: Panel, config: Config, sectors: Mapping[str, str] | None) -> Pipeline:
    """Return the steps that clean, neutralise and scale factors."""
    wanted = config.factors
    if wanted.scaling == "training":
        return Pipeline((InfiniteToMean(), Winsorise(tail=0.001), TrainingZScore(), FillMissing()))
    listed = [sectors.get(symbol) for symbol in panel.symbols] if sectors else None
    outliers = {"mad": (ClipOutliers(),), "sigma": (ExcludeOutliers(),), "none": ()}[wanted.outliers]
    neutralise = (Neutralise(log_dollar_volume(panel), listed),) if wanted.neutralise else ()
    return Pipeline((ForwardFill(limit=CARRY), *outliers, *neutralise, CrossSectionZScore(), FillMissing()))


def scaler(
    panel: Panel, split: Split, config: Config, sectors: Mapping[str, str] | None, symbols: list[str]
) -> State:
    """Learn on training rows what the scalers of a trained model learnt, for `prepare`.

    Args:
        panel: the prices that the model was trained on.
        split: its rows.
        config: settings of the run.
        sectors: symbol -> sector, or None.
        symbols: the model's universe, in its order.
    """
    if config.factors.scaling != "training":
        return {}  # the scalers of a cross-section learn nothing
    first = max(0, split.start - HISTORY)
    shown = panel.select(symbols).rows(first, split.train_end)
    rows = range(split.start - first, split.train_end - first)
    return cleaning(shown, config, sectors).fit(raw_factors(shown, config, lazy=True), rows).state()


def relate(
    panel: Panel, flow: NDArray[np.float32], split: Split, config: Config, seed: int
) -> NDArray[np.float32]:
    """Give each symbol its fixed node vector, from returns of training rows."""
    wanted = config.relations
    if wanted.kind == "none":
        return np.zeros((len(panel.symbols), config.model.dim), np.float32)
    rows = range(0, panel.days) if config.leaks.graph_all_dates else known_within(split.train)
    return node_embedding(
        flow[rows.start : rows.stop],
        config.model.dim,
        kind=wanted.kind,
        graph=wanted.graph,
        neighbours=min(wanted.neighbours, len(panel.symbols) - 1),
        threshold=wanted.threshold,
        method=wanted.method,
        seed=seed,
    )


def permuted(flow: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Deal each day's known returns out anew among the symbols that have one: a placebo without skill."""
    random = np.random.default_rng(seed)
    dealt = flow.copy()
    for day in dealt:
        known = np.flatnonzero(np.isfinite(day))
        day[known] = day[random.permutation(known)]
    return dealt


def _time_index(
    panel: Panel, output_days: int, config: Config
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Temporal index of every row and of T2 days beyond the last, (days + T2, 2), and that of the days
    expected after each row, (days, T2, 2): weekdays, since holidays show only in later prices."""
    after = np.arange(1, output_days + 1)
    if config.model.calendar == "counter":
        time = running_index(panel.days + output_days)
        return time, time[np.arange(panel.days)[:, None] + after]
    expected = np.busday_offset(panel.dates[:, None], after, roll="backward")
    time = calendar_index(np.concatenate([panel.dates, expected[-1]]))
    return time, calendar_index(expected.reshape(-1)).reshape(panel.days, output_days, 2)
