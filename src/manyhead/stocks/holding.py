"""From the words of a configuration to a strategy and an exchange of `manyhead.stocks.portfolio`."""

from collections.abc import Mapping
from dataclasses import replace

from manyhead.errors import InputError
from manyhead.stocks.config import Book, Config
from manyhead.stocks.portfolio import (
    Costs,
    EqualWeight,
    Exchange,
    LongShort,
    Optimised,
    Rebalance,
    SectorNeutral,
    Strategy,
    TopK,
    TopkDropout,
)
from manyhead.stocks.portfolio import books as portfolio_books

MAIN = "main"  # the book of the section [portfolio]


def book_named(config: Config, name: str) -> Book | None:
    """Return the settings of a book, None for the main one.

    Raises:
        InputError: if the configuration has no such book.
    """
    if name == MAIN:
        return None
    if name not in config.books:
        raise InputError(f"there is no book {name!r}; this run has {', '.join([MAIN, *config.books])}")
    return config.books[name]


def strategy_of(
    config: Config, symbols: int, name: str = MAIN, sectors: Mapping[str, str] | None = None
) -> Strategy:
    """Return the strategy by which a book holds scores.

    Args:
        config: settings of the run.
        symbols: columns of the scores; no more names can be held.
        name: 'main', or one of `config.books`.
        sectors: symbol -> sector, for sector-neutral books.

    Raises:
        InputError: if there is no such book, or it needs sectors and there are none.
    """
    main, book = config.portfolio, book_named(config, name)
    if book is None and main.strategy == "simple_topk":
        return Rebalance(TopK(main.topk))
    if book is None or book.kind == "topk_dropout":
        topk = min(main.topk if book is None or book.topk is None else book.topk, symbols)
        n_drop = main.n_drop if book is None or book.n_drop is None else book.n_drop
        return TopkDropout(
            topk=topk,
            n_drop=min(n_drop, topk),
            hold_thresh=main.hold_thresh,
            risk_degree=main.risk_degree,
            only_tradable=main.only_tradable,
            forbid_all_trade_at_limit=main.forbid_all_trade_at_limit,
        )
    return Rebalance(
        target_of(book, main.topk, sectors),
        every=book.every,
        max_turnover=book.max_turnover,
        band=book.band,
        volatility=book.volatility,
        window=book.window,
        max_scale=book.max_scale,
    )


def target_of(book: Book, topk: int, sectors: Mapping[str, str] | None) -> portfolio_books.Book:
    """Return the rule for a book's target weights.

    Args:
        book: its settings.
        topk: names to hold where the book does not say.
        sectors: symbol -> sector, or None.

    Raises:
        InputError: if the book needs sectors and there are none.
    """
    if book.kind == "long_short":
        return LongShort(book.quantile, book.long, book.short)
    if book.kind == "sector_neutral":
        if not sectors:
            raise InputError("a sector_neutral book needs data.sectors (--sectors FILE)")
        return SectorNeutral(sectors, book.quantile, book.long, book.short)
    if book.kind == "optimised":
        return Optimised(
            candidates=book.candidates,
            window=max(book.window, 20),
            risk_aversion=book.risk_aversion,
            max_weight=book.max_weight,
        )
    return EqualWeight() if book.kind == "equal_weight" else TopK(topk if book.topk is None else book.topk)


def exchange_of(config: Config, name: str = MAIN) -> Exchange:
    """Return the exchange on which a book trades: the main one's costs, and borrowing if it sells short."""
    main, book = config.portfolio, book_named(config, name)
    fees = (0.0, 0.0, 0.0) if config.leaks.zero_fees else (main.open_cost, main.close_cost, main.min_cost)
    rules = Exchange(
        Costs(*fees),
        limit=main.limit,
        lot=main.lot,
        delist_after=main.delist_after,
        delisting_return=main.delisting_return,
    )
    if book is None or book.kind not in ("long_short", "sector_neutral") or book.short == 0:
        return rules
    borrow = 0.0 if config.leaks.zero_fees else book.borrow
    return replace(rules, short=True, costs=replace(rules.costs, borrow=borrow))


def words_of(config: Config, name: str) -> str:
    """Say in a sentence how a book holds scores."""
    main, book = config.portfolio, book_named(config, name)
    if book is None:
        return f"{main.strategy}: best {main.topk} names"
    percent = f"{100 * book.quantile:g} %"
    sides = f"best {percent} long ({book.long:g}), worst {percent} short ({book.short:g})"
    said = {
        "topk_dropout": f"best {book.topk or main.topk} names, at most "
        f"{main.n_drop if book.n_drop is None else book.n_drop} exchanged a day",
        "topk": f"best {book.topk or main.topk} names in equal weights",
        "equal_weight": "every name with a score in equal weights",
        "long_short": sides,
        "sector_neutral": f"{sides}, within each sector",
        "optimised": f"expected return against {book.risk_aversion:g} x variance over the best "
        f"{book.candidates} names, at most {100 * book.max_weight:g} % each (skfolio)",
    }[book.kind]
    if book.kind != "topk_dropout" and book.every > 1:
        said += f"; rebalanced every {book.every} days, weights drift between"
    if book.volatility is not None:
        said += f"; scaled to {100 * book.volatility:g} % volatility a year"
    if book.max_turnover is not None:
        said += f"; at most {100 * book.max_turnover:g} % of the account traded a day"
    if book.kind in ("long_short", "sector_neutral") and book.short > 0:
        said += f"; borrowing costs {1e4 * book.borrow:g} basis points a year"
    return said
