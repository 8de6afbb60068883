"""Commands of every day: bring a run up to date, trade a table of scores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhead.errors import InputError
from manyhead.stocks.options import End, Start

if TYPE_CHECKING:
    from manyhead.stocks.live.update import Update


def update_command(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    prices: Annotated[
        str | None, typer.Option(help="New prices, as for `run`; days that are known may be repeated.")
    ] = None,
    holdings: Annotated[
        Path | None, typer.Option(help="CSV of symbol and amount, with a row CASH: orders are written.")
    ] = None,
    orders: Annotated[
        Path | None, typer.Option(help="CSV for the orders; live/orders-DATE.csv in the run if left out.")
    ] = None,
    book: Annotated[str, typer.Option(help="Which of the run's books the orders lead to.")] = "main",
    model: Annotated[str, typer.Option(help="Whose scores the orders follow.")] = "stockformer",
    cash: Annotated[float | None, typer.Option(help="Money, where the holdings do not say.")] = None,
    renames: Annotated[
        Path | None, typer.Option(help="CSV of old, new, date: symbols that changed since the run.")
    ] = None,
    accept_revisions: Annotated[
        bool, typer.Option("--accept-revisions", help="Take over prices that differ from the known ones.")
    ] = False,
) -> None:
    """Append new prices to a run, score the new days, say what to trade and whether anything has drifted."""
    from manyhead.stocks.live.update import update

    done = update(
        run,
        prices,
        holdings=holdings,
        orders=orders,
        book=book,
        model=model,
        cash=cash,
        renames=renames,
        accept_revisions=accept_revisions,
    )
    for line in _told(done):
        typer.echo(line)


def _told(done: "Update") -> list[str]:
    """What an update did, line by line."""
    days = done.days
    span = f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else ""
    lines = [f"{len(days)} new day(s) scored{': ' + span if days else ''}"]
    if done.scores.height:
        first = done.scores.columns[2]
        best = ", ".join(f"{row['symbol']} {row[first]:+.2f}" for row in done.scores.head(5).to_dicts())
        lines.append(f"{done.scores['date'][0]}, best of {done.scores.height} by {first}: {best}")
    if done.orders is not None:
        table = done.orders.table
        filled = int((table["shares"].to_numpy() > 0).sum())
        lines.append(
            f"{filled} orders, costs {done.orders.cost:,.2f}, cash {done.orders.cash_before:,.2f} to "
            f"{done.orders.cash:,.2f}: {done.orders_file}"
        )
        lines += [
            f"  {row['side']:<4} {row['shares']:>12,.4g} {row['symbol']:<8} at about {row['price']:,.2f}"
            f"{'  (' + row['reason'] + ')' if row['reason'] else ''}"
            for row in table.head(40).to_dicts()
        ]
    lines += [f"note: {note}" for note in done.notes]
    lines += [f"ALARM: {alarm}" for alarm in done.alarms] or ["no alarm"]
    return [*lines, f"model card: {done.folder / 'model_card.md'}"]


def backtest_command(
    scores: Annotated[Path, typer.Option(help="CSV or Parquet with columns date, symbol, score.")],
    prices: Annotated[str, typer.Option(help="Prices, as for `run`.")],
    book: Annotated[
        str,
        typer.Option(
            help="topk_dropout, topk, equal_weight, long_short, sector_neutral or optimised (skfolio)."
        ),
    ] = "topk_dropout",
    topk: Annotated[int, typer.Option(help="Names to hold.")] = 10,
    n_drop: Annotated[int, typer.Option(help="Names to exchange on a day at most (topk_dropout).")] = 2,
    quantile: Annotated[float | None, typer.Option(help="Share of the names on each side.")] = None,
    long: Annotated[float | None, typer.Option(help="Sum of the long weights.")] = None,
    short: Annotated[float | None, typer.Option(help="Sum of the short weights.")] = None,
    sectors: Annotated[str | None, typer.Option(help="CSV of sectors (sector_neutral).")] = None,
    every: Annotated[int | None, typer.Option(help="Days between rebalancings; weights drift.")] = None,
    volatility: Annotated[float | None, typer.Option(help="Yearly volatility aimed at, such as 0.1.")] = None,
    max_turnover: Annotated[
        float | None, typer.Option(help="Most that is traded on a day, as a share of the account.")
    ] = None,
    borrow: Annotated[
        float | None, typer.Option(help="Basis points a year on what is sold short; 50 if left out.")
    ] = None,
    market: Annotated[str, typer.Option(help="Costs, lots and limits: us, cn or free.")] = "us",
    account: Annotated[float, typer.Option(help="Money at the start.")] = 1e8,
    lag: Annotated[int, typer.Option(help="Days from a score to its trade.")] = 1,
    start: Start = None,
    end: End = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report, positions and orders.")] = None,
) -> None:
    """Trade any score table, after costs: TopK-Dropout, or another book."""
    from manyhead.stocks.config import build
    from manyhead.stocks.holding import exchange_of, strategy_of
    from manyhead.stocks.portfolio import backtest_files, exchange
    from manyhead.stocks.sectors import read_sectors
    from manyhead.stocks.tables import backtest_summary

    if borrow is not None and borrow < 0:
        raise InputError(f"--borrow takes basis points of at least 0, got {borrow:g}")
    asked: dict[str, Any] = {
        "quantile": quantile,
        "long": long,
        "short": short,
        "every": every,
        "volatility": volatility,
        "max_turnover": max_turnover,
        "borrow": None if borrow is None else borrow / 1e4,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if book in ("topk_dropout", "topk"):
        given["topk"] = topk
    if book == "topk_dropout":
        given["n_drop"] = n_drop
    if book in ("long_short", "sector_neutral"):
        given.setdefault("quantile", 0.1 if book == "long_short" else 0.2)
    config = build({"books": {"asked": {"kind": book, **given}}, "data": {"sectors": sectors}})
    rules, asked_rules = exchange(market), exchange_of(config, "asked")
    if asked_rules.short:
        rules = exchange(market, short=True, borrow=asked_rules.costs.borrow)
    result = backtest_files(
        scores,
        prices,
        strategy_of(config, 10**9, "asked", read_sectors(sectors) if sectors else None),
        rules,
        out=out,
        account=account,
        lag=lag,
        start=start,
        end=end,
    )
    typer.echo(backtest_summary(result))
    if out is not None:
        typer.echo(f"report, positions and orders: {out}")
