"""Sequence mixers by name, as benchmarks and configurations name them, and their support matrix."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
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
        "vanilla": [(_BOTH | _CROSS, "multihead.MultiHeadAttention")],
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

# further mixers of tokens in sequences: the uses of each, its class, and its arguments by channels and heads
Arguments = Callable[[int, int, bool], dict[str, Any]]
_SELF = frozenset(_BOTH)
_CAUSAL = frozenset({CAUSAL_SELF})
_NO_ARGUMENTS: Arguments = lambda channels, heads, causal: {}  # noqa: E731
MORE: dict[str, tuple[frozenset[str], str, Arguments]] = {
    "linear": (frozenset(USES), "linear_attention.LinearAttention", _NO_ARGUMENTS),
    "normalized": (_CAUSAL, "linear_attention.NormalizedAttention", _NO_ARGUMENTS),
    "aaren": (_CAUSAL, "aaren.Aaren", _NO_ARGUMENTS),
    "s6": (_CAUSAL, "selective.S6", _NO_ARGUMENTS),
    "ssd": (_CAUSAL, "selective.SSD", _NO_ARGUMENTS),
    "lru": (_CAUSAL, "gated_rnn.LRU", lambda channels, heads, causal: {"state": channels}),
    "rglru": (_CAUSAL, "gated_rnn.RGLRU", _NO_ARGUMENTS),
    "qlstm": (_CAUSAL, "gated_rnn.QLSTM", lambda channels, heads, causal: {"expansion": 1}),
    "moh": (
        _SELF | {NONCAUSAL_CROSS},
        "moh.MixtureOfHeads",
        lambda channels, heads, causal: {"shared": max(1, heads // 4), "active": max(1, heads // 4)},
    ),
    "routing": (
        _CAUSAL,
        "routing.RoutingAttention",
        lambda channels, heads, causal: {
            "routed": heads // 2,
            "clusters": 4,
            "window": 32,
            "block": 32,
            "strict_causal": True,
        },
    ),
    "rcmha": (
        _SELF,
        "rcmha.RelativeConvolutionalAttention",
        lambda channels, heads, causal: {"max_length": 512},
    ),
    "fourier": (frozenset({NONCAUSAL_SELF}), "toeplitz.FourierMixing", _NO_ARGUMENTS),
    "none": (frozenset(USES), "nothing.NoMixing", _NO_ARGUMENTS),
}
NAMES = (*CAB, *MORE)


def uses_of(name: str) -> frozenset[str]:
    """The uses that a mixer of the catalogue has a form for."""
    return frozenset(CAB[name]) if name in CAB else MORE[name][0]


def build(
    name: str, channels: int, heads: int, *, causal: bool = False, cross: bool = False, **options: Any
) -> Mixer:
    """Build a mixer for one of the four uses.

    Args:
        name: one of `NAMES`, or the dotted path of a class that takes `(channels, heads, causal=, cross=)`.
        channels: size of the last axis of the input.
        heads: attention heads (kernels of a channel in S4D).
        causal, cross: the use.
        options: further arguments of the class.

    Raises:
        InputError: if there is no such mixer, or it has no form for the use.
    """
    use = use_of(causal, cross)
    if name in NAMES and use not in uses_of(name):
        known = ", ".join(u for u in USES if u in uses_of(name))
        raise InputError(f"{name} has no {use} form; it supports {known}")
    if name in MORE:
        return _further(name, channels, heads, causal=causal, cross=cross, **options)
    if name in CAB:
        module, _, kind = CAB[name][use].rpartition(".")
        if kind == "CausalLongShortAttention":
            mixer: Mixer = _class(f"manyhead.mixers.{module}", kind)(channels, heads, **options)
        else:
            mixer = _class(f"manyhead.mixers.{module}", kind)(
                channels, heads, causal=causal, cross=cross, **options
            )
        return mixer
    module, _, kind = name.rpartition(".")
    if not module:
        raise InputError(f"there is no mixer {name!r}; give one of {', '.join(NAMES)} or a dotted path")
    mixer = _class(module, kind)(channels, heads, causal=causal, cross=cross, **options)
    if use not in mixer.supports:
        raise InputError(f"{name} was asked for {use} and supports {', '.join(sorted(mixer.supports))}")
    return mixer


def _further(name: str, channels: int, heads: int, *, causal: bool, cross: bool, **options: Any) -> Mixer:
    """Build one of `MORE`: some take no heads, some no use."""
    _, home, arguments = MORE[name]
    module, _, kind = home.rpartition(".")
    made = _class(f"manyhead.mixers.{module}", kind)
    wanted = arguments(channels, heads, causal) | options
    taken = signature(made).parameters
    if "attention" in taken:  # it is built around a multi-head attention
        inner = _class("manyhead.mixers.multihead", "MultiHeadAttention")
        mixer: Mixer = made(inner(channels, heads, causal=causal, cross=cross), **wanted)
        return mixer
    given = {"channels": channels, "heads": heads, "causal": causal, "cross": cross}
    mixer = made(**{key: value for key, value in given.items() if key in taken}, **wanted)
    return mixer


def _class(module: str, kind: str) -> Any:
    try:
        return getattr(import_module(module), kind)
    except (ImportError, AttributeError) as absent:
        raise InputError(f"the mixer {module}.{kind} cannot be imported: {absent}") from absent
