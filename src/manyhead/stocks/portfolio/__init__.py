"""Portfolios from scores: exchanges, strategies, the back-test and its measures."""

from manyhead.stocks.portfolio.backtest import Backtest, backtest
from manyhead.stocks.portfolio.benchmark import benchmark_returns, equal_weight_returns
from manyhead.stocks.portfolio.books import Book, Decision, EqualWeight, LongShort, SectorNeutral, TopK
from manyhead.stocks.portfolio.costs import Costs
from manyhead.stocks.portfolio.exchange import Exchange, exchange
from manyhead.stocks.portfolio.from_files import backtest_files
from manyhead.stocks.portfolio.optimised import Optimised
from manyhead.stocks.portfolio.rebalance import Rebalance
from manyhead.stocks.portfolio.risk import performance, risk_analysis
from manyhead.stocks.portfolio.scores import align, read_scores
from manyhead.stocks.portfolio.simple_topk import SimpleTopk, simple_topk
from manyhead.stocks.portfolio.strategy import Strategy
from manyhead.stocks.portfolio.topk_dropout import TopkDropout

__all__ = [
    "Backtest",
    "Book",
    "Costs",
    "Decision",
    "EqualWeight",
    "Exchange",
    "LongShort",
    "Optimised",
    "Rebalance",
    "SectorNeutral",
    "SimpleTopk",
    "Strategy",
    "TopK",
    "TopkDropout",
    "align",
    "backtest",
    "backtest_files",
    "benchmark_returns",
    "equal_weight_returns",
    "exchange",
    "performance",
    "read_scores",
    "risk_analysis",
    "simple_topk",
]
