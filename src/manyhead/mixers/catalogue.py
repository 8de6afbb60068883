"""Sequence mixers by name, as benchmarks and configurations name them, and their support matrix."""

from importlib import import_module
from typing import Any

from manyhead.errors import InputError
from manyhead.mixers.base import CAUSAL_CROSS, CAUSAL_SELF, NONCAUSAL_CROSS, NONCAUSAL_SELF, USES, Mixer
from manyhead.mixers.heads import use_of

# the mixers of CAB (Zhang et al., 2022, arXiv 2210.07661): name -> use -> the class that serves it
_BOTH = {NONCAUSAL_SELF, CAUSAL_SELF}
_CROSS = {NONCAUSAL_CROSS, CAUSAL_CROSS}
CAB: dict[str, dict[str, str]] = {
    name: {use: home for uses, home in homes for use in uses}
    for name, homes in {
        "vanilla": [(_BOTH | _CROSS, "softmax.SoftmaxAttention")],
        "local": [(_BOTH, "local.LocalAttention")],
        "abc": [(_BOTH | _CROSS, "bounded_memory.BoundedMemoryAttention")],
        "nystrom": [({NONCAUSAL_SELF}, "nystrom.NystromAttention")],
        "performer": [({NONCAUSAL_SELF} | _CROSS, "performer.Performer")],
        "lara": [({NONCAUSAL_SELF}, "lara.LARA")],
        "cosformer": [({NONCAUSAL_SELF, NONCAUSAL_CROSS}, "cosformer.CosFormer")],
        "probsparse": [({NONCAUSAL_SELF}, "probsparse.ProbSparseAttention")],
        "longshort": [
            ({NONCAUSAL_SELF}, "longshort.LongShortAttention"),
            ({CAUSAL_SELF}, "causal_longshort.CausalLongShortAttention"),
        ],
        "s4d": [(_BOTH, "s4d.S4D")],
    }.items()
}


def build(
    name: str, channels: int, heads: int, *, causal: bool = False, cross: bool = False, **options: Any
) -> Mixer:
    """Build a mixer for one of the four uses.

    Args:
        name: a name of `CAB`, or the dotted path of a class that takes `(channels, heads, causal=, cross=)`.
        channels: size of the last axis of the input.
        heads: attention heads (kernels of a channel in S4D).
        causal, cross: the use.
        options: further arguments of the class.

    Raises:
        InputError: if there is no such mixer, or it has no form for the use.
    """
    use = use_of(causal, cross)
    if name in CAB:
        homes = CAB[name]
        if use not in homes:
            known = ", ".join(u for u in USES if u in homes)
            raise InputError(f"{name} has no {use} form; it supports {known}")
        module, _, kind = homes[use].rpartition(".")
        if kind == "CausalLongShortAttention":
            mixer: Mixer = _class(f"manyhead.mixers.{module}", kind)(channels, heads, **options)
        else:
            mixer = _class(f"manyhead.mixers.{module}", kind)(
                channels, heads, causal=causal, cross=cross, **options
            )
        return mixer
    module, _, kind = name.rpartition(".")
    if not module:
        raise InputError(f"there is no mixer {name!r}; give one of {', '.join(CAB)} or a dotted path")
    mixer = _class(module, kind)(channels, heads, causal=causal, cross=cross, **options)
    if use not in mixer.supports:
        raise InputError(f"{name} was asked for {use} and supports {', '.join(sorted(mixer.supports))}")
    return mixer


def _class(module: str, kind: str) -> Any:
    try:
        return getattr(import_module(module), kind)
    except (ImportError, AttributeError) as absent:
        raise InputError(f"the mixer {module}.{kind} cannot be imported: {absent}") from absent
