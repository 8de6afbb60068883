"""Patterns: values that say which query token sees which key token on a grid.

`Window(7) & Causal((True, False))` is a pattern; so is `Window(9, dilation=2) | Prefix(4)`. A pattern
holds no device and no sizes of tensors: `mask`, `pairs`, `mask_mod`, `describe` take the grid.
"""

from manyhead.pattern.base import And, Not, Or, Pattern, Place, Term
from manyhead.pattern.members import Chosen, Explicit, PerHead, PerSample, Valid
from manyhead.pattern.shapes import Blocks, Causal, Everything, GridPartition, Halo, Prefix, Shifted
from manyhead.pattern.window import WHOLE, Border, Window

__all__ = [
    "WHOLE",
    "And",
    "Blocks",
    "Border",
    "Causal",
    "Chosen",
    "Everything",
    "Explicit",
    "GridPartition",
    "Halo",
    "Not",
    "Or",
    "Pattern",
    "PerHead",
    "PerSample",
    "Place",
    "Prefix",
    "Shifted",
    "Term",
    "Valid",
    "Window",
]
