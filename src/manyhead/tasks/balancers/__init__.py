"""Balancers, one per file, and the list of them by name."""

from importlib import import_module
from typing import Any

from manyhead.errors import InputError
from manyhead.tasks.balancers.base import Balancer, Losses, Scalarisation
from manyhead.tasks.balancers.fixed_weights import FixedWeights
from manyhead.tasks.balancers.flat import FlatRegions
from manyhead.tasks.balancers.rep import LogSum, RepMTL
from manyhead.tasks.balancers.scalarizer import TorchJDScalarizer, scalarizers
from manyhead.tasks.balancers.statistics import frozen_statistics
from manyhead.tasks.balancers.sum import Sum
from manyhead.tasks.balancers.torchjd import TorchJD, aggregators, plain_name
from manyhead.tasks.balancers.uncertainty import HomoscedasticUncertainty

# name -> module of this package and class; TorchJD's aggregators and scalarizers are known besides
BALANCERS: dict[str, tuple[str, str]] = {
    "sum": ("sum", "Sum"),
    "fixed": ("fixed_weights", "FixedWeights"),
    "uncertainty": ("uncertainty", "HomoscedasticUncertainty"),
    "flat": ("flat", "FlatRegions"),
    "log_sum": ("rep", "LogSum"),
    "rep_mtl": ("rep", "RepMTL"),
}


def balancer_names() -> list[str]:
    """Every name that `balancer_by_name` takes."""
    return [*BALANCERS, *sorted({*aggregators(), *scalarizers()} - set(BALANCERS))]


def balancer_by_name(name: str, **parameters: Any) -> Balancer:
    """Build a balancer from its name, as configuration files and the command line give it.

    Args:
        name: 'sum', 'fixed', 'uncertainty', 'log_sum', 'flat' (flat regions), 'rep_mtl', any TorchJD
            aggregator ('upgrad', 'mgda', 'pcgrad' ...) or scalarizer ('gls', 'dwa', 'famo', 'imtll',
            'stch', 'rlw' ...); case, '-' and '_' do not matter.
        parameters: what the balancer's constructor takes.

    Raises:
        InputError: if the name is unknown (the message lists the names) or a parameter does not fit.
    """
    plain = plain_name(name)
    for known, (module, kind) in BALANCERS.items():
        if plain == known.replace("_", ""):
            built = getattr(import_module(f"{__name__}.{module}"), kind)
            try:
                return built(**parameters)  # type: ignore[no-any-return]
            except TypeError as error:
                raise InputError(f"balancer {name!r} does not take {parameters}: {error}") from error
    if plain in scalarizers():
        return TorchJDScalarizer(plain, **parameters)
    if plain not in aggregators():
        raise InputError(f"balancer must be one of {', '.join(balancer_names())}; got {name!r}")
    return TorchJD(plain, **parameters)


__all__ = [
    "BALANCERS",
    "Balancer",
    "FixedWeights",
    "FlatRegions",
    "HomoscedasticUncertainty",
    "LogSum",
    "Losses",
    "RepMTL",
    "Scalarisation",
    "Sum",
    "TorchJD",
    "TorchJDScalarizer",
    "balancer_by_name",
    "balancer_names",
    "frozen_statistics",
]
