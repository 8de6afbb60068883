"""The configuration of a stock run: one TOML file, checked by pydantic, with three presets.

Every section has the defaults of the clean pipeline; a preset is a set of overrides, a user's TOML file
overrides the preset, and command-line options override the file.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from manyhead.errors import InputError


class Section(BaseModel):
    """A section refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Where the prices come from, and which days are used.

    `prices` is a file, a folder, 'skfolio' or 'yfinance:AAPL,MSFT'; dates are ISO, both ends included.
    """

    prices: str = "skfolio"
    start: str | None = None
    end: str | None = None
    sectors: str | None = None
    sector_column: str = "GICS Sector"
    membership: str | None = None
    splits: str | None = Field(None, description="file of stock splits, where prices are raw")
    dividends: str | None = Field(None, description="file of dividends, where prices are raw")
    renames: str | None = Field(None, description="file of ticker changes: old, new, date")
    exchange: str | None = Field(None, description="calendar to check for missing sessions, such as XNYS")
    jumps: Literal["suspend", "keep", "refuse"] = "suspend"
    columns: dict[str, str] = Field({}, description="names of the price file's columns, by field")
    factor_functions: tuple[str, ...] = ()


class Universe(Section):
    """Which symbols take part, decided from rows before the end of the training span."""

    count: int | Literal["all"] = 100
    window: int = Field(252, ge=20)
    presence: float = Field(0.9, ge=0, le=1, description="least share of the window's days with a price")


class Splits(Section):
    """Rolling splits in trading days; `count` takes the newest ones, 'all' takes every one."""

    train: int = Field(486, ge=40)
    validation: int = Field(81, ge=10)
    test: int = Field(81, ge=1)
    step: int | None = Field(None, ge=1, description="rows between splits; the test length if left out")
    count: int | Literal["all"] = 3
    within: bool = Field(
        False, description="windows may not reach back across a span's start, as in the released code"
    )


class Factors(Section):
    """Inputs of every model. `lags` thins Alpha360's sixty lags a field; empty keeps them all."""

    sets: tuple[Literal["alpha360", "alpha158"], ...] = ("alpha360",)
    lags: tuple[int, ...] = (0, 1, 2, 4, 9, 19, 39, 59)
    outliers: Literal["mad", "sigma", "none"] = "mad"
    neutralise: bool = True
    scaling: Literal["cross_section", "training"] = "cross_section"


class Relations(Section):
    """The fixed node vectors of the spatial attention, from training rows only."""

    kind: Literal["struc2vec", "spectral", "official_order", "none"] = "struc2vec"
    graph: Literal["knn", "threshold"] = "knn"
    neighbours: int = Field(10, ge=1)
    threshold: float = Field(0.5, gt=0, lt=1)
    method: Literal["pearson", "spearman"] = "pearson"


class Model(Section):
    """Stockformer's sizes; `alignment` says which rows enter a window (see `stocks.dataset`)."""

    dim: int = Field(32, ge=1)
    layers: int = Field(1, ge=1)
    input_days: int = Field(20, ge=2)
    output_days: int = Field(2, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    wavelet: str = "sym2"
    alignment: Literal["information", "official"] = "information"
    calendar: Literal["counter", "dates"] = "dates"
    fusion_self: bool = False
    st_temporal: bool = False
    decouple: bool = True
    fusion: Literal["attention", "addition"] = "attention"
    tasks: tuple[Literal["regression", "classification"], ...] = ("regression", "classification")

    @model_validator(mode="after")
    def _tradable(self) -> "Model":
        if self.alignment == "official" and self.output_days < 2:
            raise ValueError(
                "alignment 'official' needs output_days of at least 2: its first output is already past"
            )
        if not self.tasks:
            raise ValueError("tasks needs at least one of regression, classification")
        return self


class Training(Section):
    """How Stockformer is trained; the best epoch is chosen on validation rows."""

    epochs: int = Field(6, ge=1)
    batch_size: int = Field(6, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    clip_norm: float = Field(0.5, gt=0)
    classification_weight: float = Field(1.0, ge=0)
    balancer: str = "fixed"
    patience: int = Field(4, ge=0, description="epochs without a better one before stopping; 0 never stops")
    monitor: Literal["mae", "ic"] = "ic"
    loss: Literal["available", "official"] = "available"
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    device: str = "cpu"
    seeds: tuple[int, ...] = (0,)
    placebo: int | None = Field(None, description="seed that permutes labels within each day: no skill left")


class Baselines(Section):
    """Models on the same inputs, each tuned on validation with the same number of trials."""

    names: tuple[str, ...] = ("ridge", "lightgbm", "lstm")
    trials: int = Field(3, ge=1)


class Portfolio(Section):
    """How scores are held: TopK-Dropout, traded the day after the score, after costs.

    Costs are fractions of the traded value; `min_cost` is in money; `limit` is the daily move at which
    trading stops (None: no limit).
    """

    strategy: Literal["topk_dropout", "simple_topk"] = "topk_dropout"
    topk: int = Field(10, ge=1)
    n_drop: int = Field(2, ge=0)
    account: float = Field(1e8, gt=0)
    open_cost: float = Field(0.0005, ge=0)
    close_cost: float = Field(0.0005, ge=0)
    min_cost: float = Field(0.0, ge=0)
    limit: float | None = Field(None, gt=0)
    lot: int | None = Field(None, ge=1)
    risk_degree: float = Field(0.95, gt=0, le=1)
    hold_thresh: int = Field(1, ge=1)
    only_tradable: bool = False
    forbid_all_trade_at_limit: bool = True
    delist_after: int | None = Field(None, ge=1, description="days without a price until a payout")
    delisting_return: float = Field(0.0, ge=-1, lt=10, description="return on the last price at it")
    score: Literal["validation", "regression", "classification"] = "validation"


class Book(Section):
    """One more way to hold the scores, `[books.NAME]`; money and costs are those of `[portfolio]`.

    Between rebalancings weights drift with prices. `volatility` (a year), `max_turnover` (of the account, a
    day) and `borrow` (a year, on what is sold short) are shares, 0.1 for 10 %.
    """

    kind: Literal["topk_dropout", "topk", "equal_weight", "long_short", "sector_neutral", "optimised"]
    models: Literal["main", "all"] = Field("main", description="whose scores: Stockformer's or each model's")
    topk: int | None = Field(None, ge=1, description="names held; as in [portfolio] if left out")
    n_drop: int | None = Field(None, ge=0, description="names exchanged on a day; as in [portfolio]")
    quantile: float = Field(0.1, gt=0, le=0.5, description="share of the names on each side")
    long: float = Field(1.0, ge=0, le=10)
    short: float = Field(1.0, ge=0, le=10)
    every: int = Field(1, ge=1, description="days with scores between rebalancings")
    max_turnover: float | None = Field(None, gt=0)
    band: float = Field(0.0, ge=0, lt=1, description="share of the account below which no trade is made")
    volatility: float | None = Field(None, gt=0)
    window: int = Field(60, ge=20, description="days for volatility and, in 'optimised', covariances")
    max_scale: float = Field(2.0, gt=0)
    borrow: float = Field(0.005, ge=0, lt=1)
    candidates: int = Field(60, ge=2)
    risk_aversion: float = Field(5.0, gt=0)
    max_weight: float = Field(0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _known_to_its_kind(self) -> "Book":
        changed = {name for name, value in self if value != type(self).model_fields[name].default}
        foreign = sorted(changed - BOOK_SETTINGS[self.kind] - {"kind", "models"})
        if foreign:
            raise ValueError(
                f"a book of kind '{self.kind}' has no setting {foreign[0]!r}; it has "
                f"{', '.join(sorted(BOOK_SETTINGS[self.kind]))}"
            )
        if self.kind in ("long_short", "sector_neutral"):
            if self.long - self.short > 1:
                raise ValueError(
                    f"long - short must be at most 1, because the account borrows no cash: {self.long:g} - "
                    f"{self.short:g}"
                )
            if self.long + self.short == 0:
                raise ValueError("long and short cannot both be 0")
        return self


_TRADED = {"every", "max_turnover", "band", "volatility", "window", "max_scale"}
_SIDES = {"quantile", "long", "short", "borrow"}
# settings that each kind of book has
BOOK_SETTINGS: dict[str, set[str]] = {
    "topk_dropout": {"topk", "n_drop"},
    "topk": {"topk"} | _TRADED,
    "equal_weight": _TRADED,
    "long_short": _SIDES | _TRADED,
    "sector_neutral": _SIDES | _TRADED,
    "optimised": {"candidates", "risk_aversion", "max_weight"} | _TRADED,
}


class Leaks(Section):
    """Faults of the released pipeline, each a switch, all off but for comparison."""

    graph_all_dates: bool = False
    scaler_all_dates: bool = False
    universe_all_dates: bool = False
    label_as_factor: bool = False
    label_masking: bool = False
    choice_on_test: bool = False
    zero_fees: bool = False
    one_day_early: bool = False

    def on(self) -> list[str]:
        """Names of the switches that are on."""
        return [name for name, value in self if value]


class Config(Section):
    """A whole run."""

    preset: Literal["fast", "paper", "official_leaky"] = "fast"
    data: Data = Data()
    universe: Universe = Universe()
    splits: Splits = Splits()
    factors: Factors = Factors()
    relations: Relations = Relations()
    model: Model = Model()
    training: Training = Training()
    baselines: Baselines = Baselines()
    portfolio: Portfolio = Portfolio()
    books: dict[str, Book] = {}
    leaks: Leaks = Leaks()

    @model_validator(mode="after")
    def _sectors_where_needed(self) -> "Config":
        for name in self.books:
            if name == "main" or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(
                    f"books: {name!r} cannot be the name of a book; letters, digits, _ and - can"
                )
        needing = [name for name, book in self.books.items() if book.kind == "sector_neutral"]
        if needing and self.data.sectors is None:
            raise ValueError(f"books.{needing[0]} is sector_neutral and needs data.sectors (--sectors FILE)")
        return self

    def digest(self, *sections: str) -> str:
        """SHA-256 of the named sections, or of everything: equal settings, equal digest."""
        chosen = self.model_dump(mode="json", include=set(sections) or None)
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


_PAPER: dict[str, Any] = {
    "splits": {"train": 486, "validation": 81, "test": 81, "step": 60, "within": True},
    "factors": {"lags": (), "outliers": "sigma"},
    "model": {"dim": 128, "layers": 2, "alignment": "official", "calendar": "counter"},
    "training": {"epochs": 100, "batch_size": 12, "patience": 0, "monitor": "mae"},
    "portfolio": {"topk": 5, "n_drop": 3, "open_cost": 0.001, "close_cost": 0.002},
}

PRESETS: dict[str, dict[str, Any]] = {
    # sizes that two cores train in minutes
    "fast": {},
    # the paper's sizes, spans, costs and alignment, with every leak closed
    "paper": _PAPER,
    # what the released code does, at the sizes of `fast` so that the two can be compared
    "official_leaky": {
        "splits": {"within": False},
        "factors": {"outliers": "none", "neutralise": False, "scaling": "training"},
        "relations": {"kind": "official_order"},
        "model": {"alignment": "official", "calendar": "counter"},
        "training": {"monitor": "mae", "loss": "official"},
        "portfolio": {"strategy": "simple_topk", "topk": 10},
        "leaks": dict.fromkeys(Leaks.model_fields, True),
    },
}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; sections merge, values replace."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def build(*layers: Mapping[str, Any], preset: str | None = None) -> Config:
    """Validate layers of settings, later ones over earlier ones, all over the preset.

    Args:
        layers: nested mappings, such as a parsed TOML file and command-line options.
        preset: name of the preset; if left out, the layers' own `preset`, else 'fast'.

    Raises:
        InputError: for an unknown key or a value out of range; every fault is named with its path.
    """
    own: dict[str, Any] = {}
    for layer in layers:
        own = merge(own, layer)
    name = preset or own.get("preset", "fast")
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    try:
        return Config.model_validate(merge(PRESETS[name], own) | {"preset": name})
    except ValidationError as faults:
        raise InputError("; ".join(_sentence(fault) for fault in faults.errors())) from None


def _sentence(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        section: Any = Config
        for part in fault["loc"][:-1]:
            if section is Config and part == "books":
                section = Book
            elif section is not Book:
                section = section.model_fields[part].annotation
        return f"unknown key {path!r}; known here: {', '.join(sorted(section.model_fields))}"
    message = fault["msg"].removeprefix("Value error, ")
    if not path or isinstance(fault["input"], dict):  # a rule between settings names them itself
        return f"{path}: {message[0].lower()}{message[1:]}" if path else message
    return f"{path}: {message[0].lower()}{message[1:]}, got {fault['input']!r}"


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        InputError: if the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as missing:
        raise InputError(f"cannot read the configuration {path}: {missing.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise InputError(f"{path} is not valid TOML: {fault}") from None


def write_toml(config: Config) -> str:
    """Write a configuration as TOML that `read_toml` and `build` turn back into the same value."""
    lines = [f"preset = {_toml(config.preset)}"]
    for name, section in config:
        if isinstance(section, Section):
            lines += ["", f"[{name}]"]
            lines += _entries(section)
    for name, book in config.books.items():
        lines += ["", f"[books.{json.dumps(name)}]", *_entries(book, only_set=True)]
    return "\n".join(lines) + "\n"


def _entries(section: Section, only_set: bool = False) -> list[str]:
    shown = [(key, value) for key, value in section if not only_set or key in section.model_fields_set]
    return [f"{key} = {_toml(value)}" for key, value in shown if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)  # strings, numbers and Booleans are written alike in TOML and JSON
