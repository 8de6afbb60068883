"""Names of the two factor sets, and which prices each factor needs.

Both sets are those of Qlib (Yang et al., 'Qlib: An AI-oriented Quantitative Investment Platform', 2020,
arXiv 2009.11189), in the order in which Qlib hands them to a model.
"""

from collections.abc import Collection, Sequence
from typing import Literal

from manyhead.errors import InputError

FactorSet = Literal["alpha360", "alpha158"]
Order = Literal["qlib", "alphabetical"]

SERIES = ("close", "open", "high", "low", "vwap", "volume")  # of Alpha360, in its order
LAGS = tuple(range(60))
WINDOWS = (5, 10, 20, 30, 60)  # of Alpha158

_BAR = ("open", "high", "low", "close")
# factors of one day -> fields that they read
DAILY = {
    "KMID": ("open", "close"),
    "KLEN": ("open", "high", "low"),
    "KMID2": _BAR,
    "KUP": ("open", "high", "close"),
    "KUP2": _BAR,
    "KLOW": ("open", "low", "close"),
    "KLOW2": _BAR,
    "KSFT": _BAR,
    "KSFT2": _BAR,
    "OPEN0": ("open", "close"),
    "HIGH0": ("high", "close"),
    "LOW0": ("low", "close"),
    "VWAP0": ("vwap", "close"),
}
# factors of a window of days -> fields that they read
ROLLING = {
    "ROC": ("close",),
    "MA": ("close",),
    "STD": ("close",),
    "BETA": ("close",),
    "RSQR": ("close",),
    "RESI": ("close",),
    "MAX": ("high", "close"),
    "MIN": ("low", "close"),
    "QTLU": ("close",),
    "QTLD": ("close",),
    "RANK": ("close",),
    "RSV": ("high", "low", "close"),
    "IMAX": ("high",),
    "IMIN": ("low",),
    "IMXD": ("high", "low"),
    "CORR": ("close", "volume"),
    "CORD": ("close", "volume"),
    "CNTP": ("close",),
    "CNTN": ("close",),
    "CNTD": ("close",),
    "SUMP": ("close",),
    "SUMN": ("close",),
    "SUMD": ("close",),
    "VMA": ("volume",),
    "VSTD": ("volume",),
    "WVMA": ("close", "volume"),
    "VSUMP": ("volume",),
    "VSUMN": ("volume",),
    "VSUMD": ("volume",),
}


def factor_names(
    factors: FactorSet,
    fields: Collection[str],
    *,
    lags: Sequence[int] = (),
    windows: Sequence[int] = WINDOWS,
    order: Order = "qlib",
) -> tuple[str, ...]:
    """List the factors that some fields allow: a set shrinks to what the prices hold.

    Args:
        factors: 'alpha360' or 'alpha158'.
        fields: names of a panel's fields.
        lags: Alpha360 only: which of its sixty lags; empty means all.
        windows: Alpha158 only: lengths of its rolling windows in days.
        order: 'qlib', or 'alphabetical' (CLOSE0, CLOSE1, CLOSE10, ...), in which the released
            Stockformer checkpoint was trained.

    Raises:
        InputError: if an argument is not one of the above, or no factor remains.
    """
    if order not in ("qlib", "alphabetical"):
        raise InputError(f"order must be 'qlib' or 'alphabetical', got {order!r}")
    if factors == "alpha360":
        oldest_first = sorted(chosen_lags(lags), reverse=True)
        names = [f"{field.upper()}{lag}" for field in SERIES if field in fields for lag in oldest_first]
    elif factors == "alpha158":
        names = [name for name, needed in DAILY.items() if set(needed) <= set(fields)]
        for name, needed in ROLLING.items():
            if set(needed) <= set(fields):
                names += [f"{name}{window}" for window in chosen_windows(windows)]
    else:
        raise InputError(f"factors must be 'alpha360' or 'alpha158', got {factors!r}")
    if not names:
        raise InputError(f"no factor of {factors} can be made from the fields {sorted(fields)}")
    return tuple(sorted(names)) if order == "alphabetical" else tuple(names)


def chosen_lags(lags: Sequence[int]) -> tuple[int, ...]:
    """Return the wanted lags in days, all sixty for none; raise InputError for others."""
    for lag in lags:
        if lag not in LAGS:
            raise InputError(f"lags must lie in 0..{LAGS[-1]}, got {lag}")
    if len(set(lags)) != len(lags):
        raise InputError(f"lags must differ from each other, got {tuple(lags)}")
    return tuple(lags) or LAGS


def chosen_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the window lengths in ascending order; raise InputError if one cannot be used."""
    for window in windows:
        if window < 2:
            raise InputError(f"windows must be at least 2 days long, got {window}")
    if not windows or len(set(windows)) != len(windows):
        raise InputError(f"windows must be at least one length, all different, got {tuple(windows)}")
    return tuple(sorted(windows))
