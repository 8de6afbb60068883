"""TopK-Dropout: hold the best names, and exchange only the worst few of them each day.

The strategy of Qlib (Yang et al., 'Qlib: An AI-oriented Quantitative Investment Platform', 2020, arXiv
2009.11189; Microsoft, MIT license, `qlib/contrib/strategy/signal_strategy.py`, version 0.9.7), used by
Stockformer (arXiv 2401.06139, section 4.5). Each day, by the scores known before it:

1. candidates are the best `n_drop + topk - held` names not held;
2. of the names held and the candidates together, the `n_drop` worst are marked; those of them that are
   held are sold whole, unless they cannot be traded or were held for fewer than `hold_thresh` days;
3. the best candidates take the places, each with an equal share of `risk_degree` of the cash after the
   sales. Nothing else is rebalanced. A candidate that cannot be bought leaves its share in cash.

Equal scores rank by the order of the panel's columns. Names held without a score rank last; names
without a score are never bought. One deviation: with `n_drop=0` Qlib's slice `[-0:]` marks every
name, so that the whole book is sold each day; here nothing is marked.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError
from manyhead.stocks.portfolio.account import TOO_BRIEF, Account, Columns
from manyhead.stocks.portfolio.exchange import Market, Mask, Matrix
from manyhead.stocks.portfolio.strategy import Trader


@dataclass(frozen=True)
class TopkDropout:
    """Qlib's TopK-Dropout strategy.

    Args:
        topk: names to hold.
        n_drop: names to exchange on a day at most.
        hold_thresh: day ends a name must have been held before it may be sold.
        risk_degree: share of the cash that is invested.
        only_tradable: choose candidates and names to sell among those that can be traded both ways
            on the day of the trade.
        forbid_all_trade_at_limit: at either price limit neither buy nor sell; otherwise only the
            blocked side.

    Raises:
        InputError: if a number is out of its range.
    """

    topk: int = 50
    n_drop: int = 5
    hold_thresh: int = 1
    risk_degree: float = 0.95
    only_tradable: bool = False
    forbid_all_trade_at_limit: bool = True

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise InputError(f"topk must be at least 1, got {self.topk}")
        if self.n_drop < 0:
            raise InputError(f"n_drop must be at least 0, got {self.n_drop}")
        if self.hold_thresh < 0:
            raise InputError(f"hold_thresh must be at least 0, got {self.hold_thresh}")
        if not 0 < self.risk_degree <= 1:
            raise InputError(f"risk_degree must be above 0 and at most 1, got {self.risk_degree}")

    def trader(self, scores: Matrix, market: Market) -> Trader:
        """Return the function that trades one day, for scores of shape (days, symbols)."""
        # (days, symbols) columns from best to worst, NaN last; equal scores by column
        order = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
        scored = np.count_nonzero(~np.isnan(scores), axis=1)
        width = scores.shape[1]
        can_both = market.can_buy & market.can_sell

        def trade(day: int, known: int, account: Account) -> None:
            held = account.held().tolist()
            tradable = can_both[day] if self.only_tradable else None
            place = np.empty(width, np.int32)
            place[order[known]] = np.arange(width, dtype=np.int32)
            row = order[known, : scored[known]]
            candidates = self._candidates(row, set(held), tradable)
            comb = sorted([*held, *candidates], key=place.__getitem__)
            marked = self._worst(comb, tradable)
            sell = [column for column in held if column in marked]
            # a slice as in Qlib: with more names held than topk it may be empty
            buy = candidates[: len(sell) + self.topk - len(held)]
            self._sell(day, sell, account, market)
            self._buy(day, buy, account, market)

        return trade

    def _candidates(self, row: NDArray[np.int32], held: set[int], tradable: Mask | None) -> list[int]:
        """Return the best names not held, best first."""
        count = self.n_drop + self.topk - len(held)
        if tradable is None:
            # the best `count` not held are among the first `count + held`
            best = row[: max(count, 0) + len(held)] if count >= 0 else row
            free = [column for column in best.tolist() if column not in held]
            return free[:count]
        chosen: list[int] = []
        for column in row.tolist():
            if column not in held and tradable[column]:
                chosen.append(column)
                if len(chosen) >= count:  # Qlib tests after it has taken one
                    break
        return chosen

    def _worst(self, comb: list[int], tradable: Mask | None) -> set[int]:
        """Return the `n_drop` worst of names sorted from best to worst."""
        if self.n_drop == 0:
            return set()
        if tradable is None:
            return set(comb[-self.n_drop :])
        worst: set[int] = set()
        for column in reversed(comb):
            if tradable[column]:
                worst.add(column)
                if len(worst) >= self.n_drop:
                    break
        return worst

    def _sell(self, day: int, sell: list[int], account: Account, market: Market) -> None:
        columns = np.array(sell, np.intp)
        if self.forbid_all_trade_at_limit:
            columns = self._unblocked(day, columns, account, market, account.amount, buying=False)
        brief = account.days[columns] < self.hold_thresh
        if brief.any():
            can = market.can_sell[day, columns]
            waiting = columns[brief & can]
            account.block(day, waiting, account.amount[waiting], TOO_BRIEF, buying=False)
            account.block_untradable(day, columns[brief & ~can], account.amount, buying=False)
            columns = columns[~brief]
        account.sell(day, columns, account.amount[columns])

    def _buy(self, day: int, buy: list[int], account: Account, market: Market) -> None:
        if not buy:
            return
        columns = np.array(buy, np.intp)
        value = account.cash * self.risk_degree / len(buy)
        price = market.buy_price[day]
        with np.errstate(invalid="ignore"):
            wanted = value / price
        if self.forbid_all_trade_at_limit:
            columns = self._unblocked(day, columns, account, market, wanted, buying=True)
        account.buy(day, columns, market.lots(day, columns, wanted[columns]))

    @staticmethod
    def _unblocked(
        day: int, columns: Columns, account: Account, market: Market, wanted: Matrix, buying: bool
    ) -> Columns:
        """Drop and record the names that are suspended or at either limit."""
        free: Mask = market.can_buy[day, columns] & market.can_sell[day, columns]
        if free.all():
            return columns
        account.block_untradable(day, columns[~free], wanted, buying)
        return np.asarray(columns[free])
