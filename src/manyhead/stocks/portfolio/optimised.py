"""Books from skfolio's optimisers, fed with scores as expected returns and trailing covariances.

Scores become expected daily returns by Grinold's rule (Grinold and Kahn, 'Active Portfolio Management',
1999, chapter 10): alpha = information coefficient x volatility x standardised score. Covariances are
estimated from the closes known when the decision is taken.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyhead.errors import InputError, optional
from manyhead.stocks.portfolio.books import Decision
from manyhead.stocks.portfolio.exchange import Matrix


@dataclass(frozen=True)
class Optimised:
    """Target weights from an optimiser of skfolio.

    Args:
        optimiser: an instance of an optimiser of `skfolio.optimization`; by default `MeanRisk` that
            maximises expected return - `risk_aversion` x variance, long only, fully invested, at most
            `max_weight` a name. Its prior's covariance estimator is kept, its expected returns are
            replaced by the scores', and `previous_weights` is set where it has that argument.
        candidates: names given to the optimiser: the best by score; with `both_ends` half of them
            are the worst, for optimisers that sell short.
        window: days of returns for the covariance.
        ic: information coefficient assumed for the scores.
        risk_aversion: of the default optimiser.
        max_weight: of the default optimiser.
        both_ends: see `candidates`.

    Raises:
        InputError: if a number is out of its range; if skfolio is absent.
    """

    optimiser: Any = None
    candidates: int = 60
    window: int = 120
    ic: float = 0.03
    risk_aversion: float = 5.0
    max_weight: float = 0.1
    both_ends: bool = False

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise InputError(f"candidates must be at least 2, got {self.candidates}")
        if self.window < 20:
            raise InputError(f"window must be at least 20 days, got {self.window}")
        if not self.risk_aversion > 0:
            raise InputError(f"risk_aversion must be above 0, got {self.risk_aversion}")
        if not 0 < self.max_weight <= 1:
            raise InputError(f"max_weight must be above 0 and at most 1, got {self.max_weight}")
        optional("skfolio", "stocks")

    def weights(self, decision: Decision) -> Matrix | None:
        recent = decision.returns(self.window)
        if len(recent) < 20:
            return None
        eligible = decision.eligible & ~np.isnan(recent).any(axis=0) & (recent.std(axis=0) > 0)
        columns = self._chosen(decision.scores, eligible)
        if len(columns) < 2:
            return None
        returns = recent[:, columns]
        expected = self.expected_returns(decision.scores, eligible, columns, returns)
        fitted = self._fit(returns, expected, decision.weights[columns])
        if isinstance(fitted, str):
            said = (
                f"the optimiser failed on {decision.market.dates[decision.known]} ({fitted}); nothing traded"
            )
            decision.market.warnings.append(said)
            return None
        target = np.zeros(len(decision.scores))
        # solvers leave dust of the order of their tolerance
        target[columns] = np.where(np.abs(fitted) < 1e-6, 0.0, fitted)
        return target

    def expected_returns(
        self, scores: Matrix, eligible: NDArray[np.bool_], columns: NDArray[np.intp], returns: Matrix
    ) -> Matrix:
        """Return ic x volatility x standardised score for the chosen columns."""
        spread = float(scores[eligible].std())
        standard = (scores[columns] - scores[eligible].mean()) / spread if spread > 0 else 0 * scores[columns]
        return np.asarray(self.ic * returns.std(axis=0, ddof=1) * standard)

    def _chosen(self, scores: Matrix, eligible: NDArray[np.bool_]) -> NDArray[np.intp]:
        columns = np.flatnonzero(eligible)
        ranked = columns[np.argsort(-scores[columns], kind="stable")]
        if len(ranked) <= self.candidates:
            return np.asarray(ranked)
        if not self.both_ends:
            return np.asarray(ranked[: self.candidates])
        half = self.candidates // 2
        return np.concatenate([ranked[: self.candidates - half], ranked[len(ranked) - half :]])

    def _fit(self, returns: Matrix, expected: Matrix, held: Matrix) -> Matrix | str:
        clone = optional("sklearn.base", "stocks").clone
        optimiser = self._default() if self.optimiser is None else clone(self.optimiser)
        known = optimiser.get_params(deep=False)
        if "prior_estimator" in known:
            optimiser.set_params(prior_estimator=self._prior(known["prior_estimator"], expected))
        if "previous_weights" in known and known["previous_weights"] is None:
            optimiser.set_params(previous_weights=held)
        if "max_weights" in known and self.optimiser is None:
            optimiser.set_params(max_weights=max(self.max_weight, 1.0 / returns.shape[1]))
        try:
            optimiser.fit(returns)
        except Exception as failed:  # skfolio and its solvers raise many kinds
            return str(failed).splitlines()[0][:100] if str(failed) else type(failed).__name__
        fitted = np.asarray(optimiser.weights_, np.float64)
        return fitted if np.isfinite(fitted).all() else "weights are not finite"

    def _default(self) -> Any:
        optimization = optional("skfolio.optimization", "stocks")
        return optimization.MeanRisk(
            objective_function=optimization.ObjectiveFunction.MAXIMIZE_UTILITY,
            risk_aversion=self.risk_aversion,
        )

    @staticmethod
    def _prior(prior: Any, expected: Matrix) -> Any:
        """Put the scores' expected returns into a prior estimator."""
        moments, priors = optional("skfolio.moments", "stocks"), optional("skfolio.prior", "stocks")

        class ScoreMu(moments.BaseMu):  # type: ignore[misc, name-defined]
            """Expected returns that are given, not estimated."""

            def __init__(self, expected: Matrix | None = None) -> None:
                self.expected = expected

            def fit(self, X: Any, y: Any = None) -> Any:
                self.mu_ = self.expected
                self.n_features_in_ = np.shape(X)[1]
                return self

        if prior is None:
            prior = priors.EmpiricalPrior(covariance_estimator=moments.LedoitWolf())
        return prior.set_params(mu_estimator=ScoreMu(expected))
