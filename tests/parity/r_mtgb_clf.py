"""R-MTGB for classes against the authors' code: the same comparison on another file."""

from tests.parity.r_mtgb import LIMITS, run

__all__ = ["LIMITS", "run"]
