"""The leak canary: replace everything after a decision and see which stage, if any, notices.

For a decision day r the pipeline is computed twice: from the prices as they are, and from prices whose
every value after the close of r is missing, noise, or drifted a hundredfold. What a decision on r may use
(universe, factors, scaled factors, returns, node vectors, scores, trades) must not change by one bit. The
first stage that does, and the first date, say where the future came in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.config import Config
from manyhead.stocks.labels import SELL
from manyhead.stocks.panel import Panel
from manyhead.stocks.prepare import Prepared, prepare
from manyhead.stocks.splits import Split

if TYPE_CHECKING:
    from manyhead.stocks.selector import Selector

REPLACEMENTS = ("missing", "noise", "drift")
STAGES = ("universe", "factors", "scaled factors", "returns", "relations", "scores", "trades")


@dataclass(frozen=True)
class Leak:
    """A stage that read the future.

    Attributes:
        stage: one of `STAGES`, or the name of a factor.
        decision: the day after which prices were replaced.
        changed: the first day at or before the decision whose value changed.
        what: which factor, symbol or setting changed first.
        replacement: 'missing', 'noise' or 'drift'.
    """

    stage: str
    decision: np.datetime64
    changed: np.datetime64
    what: str
    replacement: str

    def __str__(self) -> str:
        return (
            f"{self.stage}: {self.what} on {self.changed} changed when prices after {self.decision} were "
            f"replaced ({self.replacement})"
        )


def replaced(panel: Panel, row: int, replacement: str, seed: int = 0) -> Panel:
    """Replace every value after a row.

    Args:
        panel: prices.
        row: last row that stays.
        replacement: 'missing' (NaN), 'noise' (each value times a random factor) or 'drift' (a steady rise
            to a hundred times the value).
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    later = slice(row + 1, None)
    count = panel.days - row - 1
    factor: NDArray[np.float64]
    if replacement == "missing":
        factor = np.full((count, len(panel.symbols)), np.nan)
    elif replacement == "noise":
        factor = np.exp(random.normal(0, 0.5, (count, len(panel.symbols))))
    elif replacement == "drift":
        rise = 100.0 ** (np.arange(1, count + 1) / max(count, 1))
        factor = np.repeat(rise[:, None], len(panel.symbols), axis=1)
    else:
        raise InputError(f"replacement must be one of {', '.join(REPLACEMENTS)}; got {replacement!r}")
    fields = {}
    for name, values in panel.fields.items():
        changed = values.copy()
        changed[later] = changed[later] * factor
        fields[name] = changed
    return Panel(panel.dates, panel.symbols, fields, panel.warnings)


def check_factor(
    factor: Callable[[Panel], Any], panel: Panel, rows: Sequence[int], name: str = "factor"
) -> list[Leak]:
    """Check a user's factor: a function of the panel that returns (days, symbols), or a dict of such.

    Args:
        factor: the function.
        panel: prices to check it on.
        rows: decision rows.
        name: what to call it.

    Returns:
        at most one leak for each decision row and factor; an empty list for a clean factor.
    """
    clean = _by_name(factor(panel), name)
    leaks = []
    for row in rows:
        for replacement in REPLACEMENTS:
            altered = _by_name(factor(replaced(panel, row, replacement)), name)
            found = [
                leak
                for key, values in clean.items()
                if (leak := _first_change(key, values, altered[key], panel, row, replacement)) is not None
            ]
            if found:
                leaks += found
                break
    return leaks


def check_functions(functions: Sequence[str], panel: Panel, rows: Sequence[int]) -> list[Leak]:
    """Check users' factors named 'module:function', see `check_factor`."""
    from manyhead.stocks.factors import extra_factors

    def computed(prices: Panel) -> dict[str, NDArray[np.floating]]:
        factors = extra_factors(prices, functions)
        return {name: factors.values[..., place] for place, name in enumerate(factors.names)}

    return check_factor(computed, panel, rows)


def check_pipeline(
    panel: Panel,
    split: Split,
    config: Config,
    sectors: Mapping[str, str] | None = None,
    *,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    replacements: Sequence[str] = REPLACEMENTS,
    train: bool = True,
    selector: "Selector | None" = None,
) -> list[Leak]:
    """Check the whole pipeline of one split, stage by stage, down to scores and trades.

    Args:
        panel: prices.
        split: the split.
        config: settings.
        sectors: symbol -> sector, or None.
        rows: decision rows (of the panel) in the test span; first, middle and last but two if left out.
        seed: of the model.
        replacements: which replacements to try.
        train: also train the model on the altered prices and compare scores and trades; without it the
            check ends at the model's inputs.
        selector: a model that was trained on the split: it scores both sides in place of new training, whose
            inputs are compared anyway.

    Returns:
        the first leak of each decision row and replacement; an empty list for a clean pipeline.
    """
    span = split.test
    chosen = (
        [span.start, (span.start + span.stop) // 2, max(span.start, span.stop - 3)] if rows is None else rows
    )
    outside = [row for row in chosen if row not in range(split.validation_end, panel.days)]
    if outside:
        raise InputError(f"decision rows must lie after the validation span, got {outside[0]}")
    clean = _Stages(panel, split, config, sectors, seed, train, selector)
    leaks = []
    for row in dict.fromkeys(chosen):
        for replacement in replacements:
            leak: Leak | None
            try:
                altered = replaced(panel, row, replacement, seed)
                other = _Stages(altered, split, config, sectors, seed, train, selector)
                leak = clean.first_leak(other, row, replacement)
            except InputError as refused:  # a stage that needs the days after the decision to exist
                stage = "universe" if str(refused).startswith("universe") else "factors"
                day = panel.dates[row]
                leak = Leak(stage, day, day, f"refused ({refused})", replacement)
            if leak is not None:
                leaks.append(leak)
    return leaks


class _Stages:
    """One pass through the pipeline, with each stage's result kept for comparison."""

    def __init__(
        self,
        panel: Panel,
        split: Split,
        config: Config,
        sectors: Mapping[str, str] | None,
        seed: int,
        train: bool,
        trained: "Selector | None" = None,
    ) -> None:
        from manyhead.stocks import learn
        from manyhead.stocks.items import choose
        from manyhead.stocks.preprocess.daily import standardised

        self.panel, self.config = panel, config
        self.prepared: Prepared = prepare(panel, split, config, sectors, seed)
        self.first = split.start - self.prepared.split.start  # row of the panel at which `prepared` begins
        self.rows = self.scores = None
        if train:
            windows, inner = self.prepared.windows, self.prepared.split
            selector = trained or learn.train(self.prepared, config, seed)[0]
            validation = windows.decision_rows(inner.validation, within=config.splits.within, labelled=True)
            self.rows = windows.decision_rows(inner.test, within=config.splits.within)
            chosen, _ = choose(
                learn.score(selector, self.prepared, validation, config),
                windows.targets,
                config.portfolio.score,
            )
            scored = learn.score(selector, self.prepared, self.rows, config).variants()[chosen]
            self.scores = np.full((self.prepared.panel.days, scored.shape[1]), np.nan)
            self.scores[self.rows] = scored
            self.standard = standardised(self.scores)

    def first_leak(self, other: "_Stages", row: int, replacement: str) -> Leak | None:
        """Compare stage by stage what a decision on `row` may use."""
        ours, theirs = self.prepared, other.prepared
        last = row - self.first
        decision = self.panel.dates[row]
        if ours.panel.symbols != theirs.panel.symbols:
            odd = sorted(set(ours.panel.symbols) ^ set(theirs.panel.symbols)) or ["their order"]
            chosen_on = ours.panel.dates[ours.split.train_end - 1]
            return Leak("universe", decision, chosen_on, odd[0], replacement)

        def compare(stage: str, left: Any, right: Any, names: Sequence[str], until: int) -> Leak | None:
            return _first_change(stage, left, right, ours.panel, until, replacement, decision, names)

        symbols, factors = ours.panel.symbols, ours.windows.factors.names
        flow, other_flow = ours.windows.flow, theirs.windows.flow
        found = (
            compare("factors", ours.raw.rows(0, last + 1), theirs.raw.rows(0, last + 1), ours.raw.names, last)
            or compare(
                "scaled factors",
                ours.windows.factors.rows(0, last + 1),
                theirs.windows.factors.rows(0, last + 1),
                factors,
                last,
            )
            # the return of row t needs the close of t + 2
            or compare("returns", flow, other_flow, symbols, last - SELL)
        )
        if found is not None:
            return found
        if not np.array_equal(ours.nodes, theirs.nodes):
            odd_node = int(np.flatnonzero((ours.nodes != theirs.nodes).any(axis=1))[0])
            end = ours.panel.dates[ours.split.train_end - 1]
            return Leak("relations", decision, end, symbols[odd_node], replacement)
        if self.scores is None:
            return None
        return compare("scores", self.scores, other.scores, symbols, last) or self._trades(
            other, last, decision, replacement
        )

    def _trades(self, other: "_Stages", last: int, decision: np.datetime64, replacement: str) -> Leak | None:
        """Compare holdings and orders up to the decision day."""
        from manyhead.stocks.book import hold

        books = [
            hold(
                stages.prepared.panel.rows(0, last + 1), stages.standard[: last + 1], stages.config, "canary"
            )
            for stages in (self, other)
            if np.isfinite(stages.standard[:last]).any()
        ]
        if len(books) < 2:  # no score before the first test day, hence no trade up to it
            return None
        left, right = (book.report for book in books)
        if left.equals(right) and books[0].orders.equals(books[1].orders):
            return None
        return Leak("trades", decision, decision, "the portfolio", replacement)


def _by_name(values: Any, name: str) -> dict[str, NDArray[np.floating]]:
    named = values if isinstance(values, Mapping) else {name: values}
    return {key: np.asarray(value) for key, value in named.items()}


def _first_change(
    stage: str,
    left: Any,
    right: Any,
    panel: Panel,
    until: int,
    replacement: str,
    decision: np.datetime64 | None = None,
    names: Sequence[str] | None = None,
) -> Leak | None:
    """First day up to row `until`, included, on which two arrays of (days, ...) differ; NaN equals NaN."""
    left, right = left[: until + 1], right[: until + 1]
    differ = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    if not differ.any():
        return None
    place = np.argwhere(differ)[0]
    labels = panel.symbols if names is None else names
    what = labels[int(place[-1])] if len(labels) == differ.shape[-1] else stage
    return Leak(
        stage, panel.dates[until] if decision is None else decision, panel.dates[place[0]], what, replacement
    )
