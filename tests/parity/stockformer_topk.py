"""TopK-Dropout against pyqlib's TopkDropoutStrategy and backtest_daily."""

from typing import Any

import numpy as np

from manyhead.stocks.panel import Panel
from manyhead.stocks.portfolio import Costs, Exchange, TopkDropout, backtest

LIMITS = {"": 1e-6}
STRATEGY = {
    "topk": "topk",
    "n_drop": "n_drop",
    "hold_thresh": "hold_thresh",
    "risk_degree": "risk_degree",
    "only_tradable": "only_tradable",
    "forbid": "forbid_all_trade_at_limit",
    "forbid_all_trade_at_limit": "forbid_all_trade_at_limit",
}
MARKET = {"limit_threshold", "deal_price", "open_cost", "close_cost", "min_cost", "impact_cost", "trade_unit"}


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    fields = {name.removeprefix("in_"): value for name, value in arrays.items() if name.startswith("in_")}
    dates = arrays["dates"].astype("datetime64[D]")
    panel = Panel(dates, tuple(str(name) for name in arrays["symbols"]), fields)
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, options in config["runs"].items():
        start = options.get("start", config["start_index"])
        result = backtest(
            panel,
            arrays["score"],
            TopkDropout(**{ours: options[theirs] for theirs, ours in STRATEGY.items() if theirs in options}),
            _exchange(options.get("exchange", {})),
            account=options.get("account", 1e8),
            benchmark=arrays["bench_return"],
            start=str(dates[start]),
            end=str(dates[options["end"]]),
        )
        official = arrays.group(f"{name}/")
        pairs[f"{name}/dates"] = (result.dates.astype(str), official["dates"])
        pairs[f"{name}/amount"] = (result.amounts, official["amount"])
        pairs[f"{name}/weight"] = (result.weights, official["weight"])
        for column, values in official.items():
            if column.startswith("report_"):
                ours = result.report[column.removeprefix("report_")].to_numpy()
                pairs[f"{name}/{column}"] = (ours, values)
            elif column.startswith("risk_"):
                series, mode = column.removeprefix("risk_").rsplit("_", 1)
                risk = result.risk(mode)[series]
                for key, value in zip(arrays["risk_keys"], values, strict=True):
                    pairs[f"{name}/{column}/{key}"] = (np.float64(risk[str(key)]), value)
    return pairs


def _exchange(options: dict[str, Any]) -> Exchange:
    unknown = set(options) - MARKET
    assert not unknown, f"the golden file has exchange options that are not compared: {unknown}"
    costs = Costs(
        options.get("open_cost", 0.0005),
        options.get("close_cost", 0.0015),
        options.get("min_cost", 5.0),
        options.get("impact_cost", 0.0),
    )
    price = options.get("deal_price") or "close"
    pair = (price[0], price[1]) if isinstance(price, list) else price
    limit = options.get("limit_threshold")
    # pyqlib's region cn: None stands for its default limit
    return Exchange(costs, pair, 0.095 if limit is None else limit, options.get("trade_unit", 100))
