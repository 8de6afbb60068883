"""Portfolios from scores: exchanges, strategies, the back-test and its measures."""

from manyhead.stocks.portfolio.backtest import Backtest, backtest
from manyhead.stocks.portfolio.benchmark import benchmark_returns, equal_weight_returns
from manyhead.stocks.portfolio.books import Book, Decision, EqualWeight, LongShort, SectorNeutral, TopK
from manyhead.stocks.portfolio.costs import Costs
from manyhead.stocks.portfolio.exchange import Exchange, exchange
from manyhead.stocks.portfolio.from_files import backtest_files
from manyhead.stocks.portfolio.ledger import Head, Ledger, config_hash, data_hash
from manyhead.stocks.portfolio.luck import (
    break_even_cost,
    deflated_sharpe,
    expected_maximum_sharpe,
    minimum_backtest_years,
    minimum_track_record,
    placebo_p_value,
    probabilistic_sharpe,
    probability_of_overfitting,
    smallest_sample,
)
from manyhead.stocks.portfolio.optimised import Optimised
from manyhead.stocks.portfolio.orders import Orders, next_orders, read_holdings
from manyhead.stocks.portfolio.rebalance import Rebalance
from manyhead.stocks.portfolio.risk import performance, risk_analysis
from manyhead.stocks.portfolio.scores import align, read_scores
from manyhead.stocks.portfolio.simple_topk import SimpleTopk, simple_topk
from manyhead.stocks.portfolio.strategy import Strategy
from manyhead.stocks.portfolio.topk_dropout import TopkDropout
from manyhead.stocks.portfolio.verdict import Verdict, count_luck

__all__ = [
    "Backtest",
    "Book",
    "Costs",
    "Decision",
    "EqualWeight",
    "Exchange",
    "Head",
    "Ledger",
    "LongShort",
    "Optimised",
    "Orders",
    "Rebalance",
    "SectorNeutral",
    "SimpleTopk",
    "Strategy",
    "TopK",
    "TopkDropout",
    "Verdict",
    "align",
    "backtest",
    "backtest_files",
    "benchmark_returns",
    "break_even_cost",
    "config_hash",
    "count_luck",
    "data_hash",
    "deflated_sharpe",
    "equal_weight_returns",
    "exchange",
    "expected_maximum_sharpe",
    "minimum_backtest_years",
    "minimum_track_record",
    "next_orders",
    "performance",
    "placebo_p_value",
    "probabilistic_sharpe",
    "probability_of_overfitting",
    "read_holdings",
    "read_scores",
    "risk_analysis",
    "simple_topk",
    "smallest_sample",
]
